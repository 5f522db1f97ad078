"""Traffic for recorded runs: senders that address users, devices and everyone, and mischief that makes devices drop, move,
vanish, change users and get kicked. All by one seeded generator, so that a run can be repeated roughly as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

import aiohttp

from tests.devices import Device
from tests.event_client import Answer, Api
from tests.history import Online
from tests.recorder import Recorder
from tests.waiting import until

LONG = "lorem ipsum " * 1500


class Node(Protocol):
    """What traffic needs of a broker: BrokerProcess and ServedBroker fit."""

    @property
    def base_url(self) -> str:
        """Where it answers."""

    def mint(self, uid: str, device: str | None = None, *, ttl: float = 300) -> str:
        """Make a token."""


def minter(broker: Node) -> Callable[[str, str], str]:
    """Return a function that makes a token that is like no other: a kick revokes the one that it hits alone."""
    ttl = itertools.count(300)
    return lambda uid, device: broker.mint(uid, device, ttl=next(ttl))


def make_devices(
    brokers: Sequence[Node], draw: random.Random, count: int, users: int, *, prefix: str = ""
) -> list[Device]:
    """Return devices `d0`, `d1`... of users `u0`, `u1`..., which connect to any of the brokers."""
    mint = minter(brokers[0])
    urls = [broker.base_url for broker in brokers]
    return [
        Device(f"{prefix}d{number}", f"{prefix}u{number % users}", urls, mint, draw=random.Random(draw.random()))
        for number in range(count)
    ]


async def settle(recorder: Recorder, api: Api, *, seconds: float = 20) -> None:
    """Wait until all devices are connected and have seen a last frame.

    Raises: AssertionError with how each device stands.
    """
    try:
        # First connected, as one that comes without a last id would not see what was sent before.
        await until(lambda: all(device.connected for device in recorder.devices), seconds=seconds)
        await recorder.settle(api, seconds=seconds)
    except AssertionError as failure:
        states = [f"{device.name}: {device.state()}" for device in recorder.devices]
        raise AssertionError("\n".join([str(failure), *states])) from None


async def at_rest(recorder: Recorder, api: Api, *, seconds: float = 10) -> dict[str, Online]:
    """Wait until `/info` names those devices online that are connected, and return what it says in the end anyway."""

    async def fits() -> bool:
        return set(await recorder.online(api)) == {device.name for device in recorder.devices if device.connected}

    with contextlib.suppress(AssertionError):  # the judge tells better what is wrong
        await until(fits, seconds=seconds, pause_seconds=0.1)
    return await recorder.online(api)


class Traffic:
    """Sends, and with `mischief` disturbs, from entering to leaving. `answers` are those of `/send`, with None for none."""

    def __init__(
        self,
        recorder: Recorder,
        brokers: Sequence[Node],
        draw: random.Random,
        *,
        senders: int = 3,
        pause_seconds: tuple[float, float] = (0.01, 0.08),
        mischief: Sequence[Device] = (),
        mischief_pause_seconds: tuple[float, float] = (0.02, 0.15),
        kicks: bool = True,
        becomes: bool = True,
    ) -> None:
        self.recorder, self.brokers = recorder, list(brokers)
        self.answers: list[tuple[float, float, Answer | None]] = []
        self._draw = draw
        self._senders, self._pause_seconds = senders, pause_seconds
        self._mischief, self._mischief_pause_seconds = mischief, mischief_pause_seconds
        self._kicks, self._becomes = kicks, becomes
        self._apis: list[Api] = []
        self._spared: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin."""
        self._apis = [await Api(broker.base_url).__aenter__() for broker in self.brokers]
        self._tasks = [asyncio.create_task(self._send(), name=f"sender {n}") for n in range(self._senders)]
        if self._mischief:
            self._tasks.append(asyncio.create_task(self._disturb(), name="mischief"))

    def spare(self, *brokers: Node) -> None:
        """Ask these brokers for nothing, and let no device connect to them; none: use all again."""
        self._spared = {broker.base_url for broker in brokers}
        for device in self.recorder.devices:
            device.urls = [broker.base_url for broker in self.brokers if broker.base_url not in self._spared]

    async def stop(self) -> None:
        """End, with all devices on their way back."""
        self._stopping = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for device in self._mischief:
                device.come_back()
            await asyncio.gather(*(api.close() for api in self._apis))

    def _api(self) -> Api:
        return self._draw.choice([api for api in self._apis if api.base_url not in self._spared])

    def _users(self) -> list[str]:
        return sorted({device.uid for device in self.recorder.devices})

    async def _send(self) -> None:
        draw, loop = self._draw, asyncio.get_running_loop()
        while not self._stopping:
            kind = draw.random()
            users, devices = [], []
            if kind < 0.45:
                users = draw.sample(self._users(), draw.choice((1, 1, 1, 2)))
            if 0.35 < kind < 0.8:
                devices = [device.name for device in draw.sample(self.recorder.devices, draw.choice((1, 1, 1, 3)))]
            text = draw.choice(("", "short", "two\nlines", "ünïcödé \U0001f600", LONG if draw.random() < 0.1 else "x"))
            event = draw.choice(("", "", "news"))
            start = loop.time()
            answer = await self.recorder.send(self._api(), text, users=users, devices=devices, event=event)
            self.answers.append((start, loop.time(), answer))
            await asyncio.sleep(draw.uniform(*self._pause_seconds))

    async def _disturb(self) -> None:
        draw = self._draw
        while not self._stopping:
            await asyncio.sleep(draw.uniform(*self._mischief_pause_seconds))
            device = draw.choice(list(self._mischief))
            await self._play(device, draw.random())

    async def _play(self, device: Device, kind: float) -> None:
        draw = self._draw
        if kind < 0.3:
            await device.drop(abrupt=kind < 0.15)
        elif kind < 0.5:
            await device.drop(abrupt=kind < 0.4, stay_away=True)
        elif kind < 0.65:
            device.come_back()
        elif kind < 0.8:
            await device.move()
        elif kind < 0.88:
            await device.vanish()
        elif kind < 0.92:
            if self._becomes:
                device.become(draw.choice(self._users()))
            await device.drop()
        elif kind < 0.96:
            device.forget()
            await device.drop()
        elif self._kicks:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self._api().kick(device=device.name, data="go")
