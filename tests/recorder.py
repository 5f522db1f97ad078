"""Records a run for the judge: sends, what devices saw, presence messages, faults. See `history` for the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.devices import Device
from tests.event_client import Answer, Api
from tests.history import Fault, Heard, History, Online, Send, Status
from tests.stalls import stalls_noted
from tests.waiting import until

PREFIX = "sse_topic_"
CHANNELS = ("device_online", "device_offline", "user_online", "user_offline")


class Recorder:
    """What happens in one run. `devices` are the agents taking part; `history` may be called at any time."""

    def __init__(self, devices: Iterable[Device] = ()) -> None:
        self.devices = list(devices)
        self.sends: list[Send] = []
        self.faults: list[Fault] = []
        self.heard: list[Heard] | None = None
        self.settled_at = inf
        self._count = 0
        self._listening: asyncio.Task[None] | None = None

    async def send(
        self, api: Api, text: str = "", *, users: Iterable[str] = (), devices: Iterable[str] = (), event: str = ""
    ) -> Answer | None:
        """Send a frame, to everyone without names, and record it; None if there was no answer.

        Its data is `text` behind a number, which makes it unique.
        """
        self._count += 1
        data, users, devices = f"{self._count} {text}", frozenset(users), frozenset(devices)
        sent_at = time.monotonic()
        answer, status, answered_at = None, Status.UNKNOWN, inf
        try:
            answer = await api.send(
                data, uid=sorted(users) or None, device=sorted(devices) or None, event=event or None
            )
            # After a 503 nobody knows: the request may have reached Redis, and the answer not.
            known = {200: Status.ACCEPTED, 503: Status.UNKNOWN}
            status = known.get(answer.status, Status.REFUSED)
            answered_at = inf if status is Status.UNKNOWN else time.monotonic()
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass
        finally:  # also when the sender is cancelled
            addressed = answer.result if answer and status is Status.ACCEPTED else None
            self.sends.append(
                Send(data, users, devices, event or "message", sent_at, answered_at, status, addressed)
            )  # fmt: skip
        return answer

    @contextlib.contextmanager
    def fault(
        self, *, data: bool = False, messages: bool = False, presence: bool = True, after: float = 0
    ) -> Iterator[None]:
        """Declare that something is broken on purpose while the block runs.

        For `after` seconds more, what it did to presence and its messages is excused, but no loss of data.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self.faults.append(Fault(start, end, data, messages, presence))
            if after:
                self.faults.append(Fault(end, end + after, False, messages, presence))

    def stalls(
        self, pids: Callable[[], Iterable[int]] = tuple, *, after: float
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Declare stalls of this process and of others with these ids as the faults that they are, and `after` seconds more."""
        return stalls_noted(lambda start, end: self.faults.append(Fault(start, end + after)), pids)

    async def listen(self, redis: Redis) -> None:
        """Record presence messages from now on; `redis` stays the caller's and must decode text."""
        self.heard = []
        ready = asyncio.Event()
        self._listening = asyncio.create_task(self._listen(redis, ready), name="presence listener")
        await asyncio.wait_for(ready.wait(), 10)

    async def _listen(self, redis: Redis, ready: asyncio.Event) -> None:
        while True:
            try:
                async with redis.pubsub() as subscription:
                    await subscription.subscribe(*(PREFIX + channel for channel in CHANNELS))
                    ready.set()
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=1)
                        if message:
                            self._hear(message)
            except (RedisError, OSError):
                await asyncio.sleep(0.05)

    def _hear(self, message: dict[str, Any]) -> None:
        fields = json.loads(message["data"])
        assert self.heard is not None
        self.heard.append(
            Heard(
                message["channel"].removeprefix(PREFIX),
                fields["uid"],
                fields["device_name"],
                fields["reason"],
                fields["payload"],
                fields["device_id"],
                time.monotonic(),
            )
        )

    async def settle(self, api: Api, *, seconds: float = 30) -> None:
        """Wait until a last frame to everyone is accepted and every device, connected, has seen it.

        Raises: AssertionError naming the devices that have not.
        """

        async def accepted() -> Answer | None:
            answer = await self.send(api, "the last")
            return answer if answer and answer.status == 200 else None

        await until(accepted, seconds=seconds, what="a send that is accepted", pause_seconds=0.1)
        data = self.sends[-1].data

        def missing() -> list[str]:
            return [device.name for device in self.devices if not (device.connected and device.has_seen(data))]

        try:
            await until(lambda: not missing(), seconds=seconds)
        except AssertionError:
            raise AssertionError(f"these devices have not seen the last frame: {missing()}") from None
        self.settled_at = time.monotonic()

    async def online(self, api: Api) -> dict[str, Online]:
        """Ask `/info` who of the devices is online; again where a busy broker is not able to say."""
        online = {}
        for device in self.devices:

            async def answer(name: str = device.name) -> Answer | None:
                answer = await api.info(device=name)
                return None if answer.status == 503 else answer

            result = (await until(answer, pause_seconds=0.2)).result
            if result["online"]:
                online[device.name] = Online(result["uid"], result["instance_address"])
        return online

    def history(self, **settings: Any) -> History:
        """Return the history so far; `settings` are further fields of History."""
        history = History(sends=list(self.sends), faults=list(self.faults), settled_at=self.settled_at, **settings)
        history.heard = None if self.heard is None else list(self.heard)
        history.clock_offset = time.time() - time.monotonic()
        for device in self.devices:
            sessions, attempts = device.records()
            history.sessions += sessions
            history.attempts += attempts
        return history

    async def stop(self) -> None:
        """End the devices and the listener."""
        await asyncio.gather(*(device.stop() for device in self.devices))
        if self._listening:
            while not self._listening.done():  # redis-py may swallow a cancellation
                self._listening.cancel()
                await asyncio.wait([self._listening], timeout=0.5)
            if not self._listening.cancelled():
                self._listening.result()
