"""A cluster under traffic to which something happens: brokers on one Redis, devices that stay and devices that come and go,
senders, a presence listener; and in the end the verdict. What happens to it is the test's.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from tests.broker_process import BrokerProcess
from tests.event_client import Answer
from tests.history import History, decide
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.traffic import Traffic, at_rest, make_devices, settle
from tests.waiting import until

HEARTBEAT_SECONDS = 1
TABLES = {"sse": {"heartbeat_interval": HEARTBEAT_SECONDS, "device_frame_cache_size": 2000}}


class Scene:
    """Use with `async with`: traffic runs in the block; behind it everything comes to rest and is judged.

    `steady` devices stay where they are, `restless` ones do everything that devices do. `judged` are fields of History.
    """

    def __init__(
        self,
        redis: RedisServer,
        *,
        brokers: int = 2,
        steady: int = 8,
        restless: int = 6,
        tables: Mapping[str, Mapping[str, Any]] = TABLES,
        becomes: bool = True,
        seed: int | None = None,
        **judged: Any,
    ) -> None:
        self.seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        self.redis = redis
        self.draw = random.Random(self.seed)
        self.brokers = [BrokerProcess(tables, redis=redis) for _ in range(brokers)]
        devices = make_devices(self.brokers, self.draw, count=steady + restless, users=5)
        self.steady, self.restless = devices[:steady], devices[steady:]
        self.recorder = Recorder(devices)
        self.traffic = Traffic(
            self.recorder,
            self.brokers,
            self.draw,
            pause_seconds=(0.02, 0.1),
            mischief=self.restless,
            kicks=False,
            becomes=becomes,
        )
        self._judged: dict[str, Any] = {"presence_seconds": 8, "cache_frames": 2000, "delivery_seconds": None, **judged}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        print("seed", self.seed)
        try:
            await self._start()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def _start(self) -> None:
        await asyncio.gather(*(broker.start() for broker in self.brokers))
        await self.recorder.listen(await self._stack.enter_async_context(self.redis.client()))
        for device in self.recorder.devices:
            device.start()
        await until(lambda: all(device.connected for device in self.recorder.devices), seconds=20)
        await self.traffic.__aenter__()
        await self.accepted(10)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.traffic.__aexit__(None, None, None)
            if kind is None:
                self._check(await self._come_to_rest())
        except AssertionError as failure:
            kind = AssertionError
            raise AssertionError(f"{failure}\n{self.warnings()}") from None
        finally:
            if kind is not None:
                print(self.warnings())
            await self.recorder.stop()
            await self._stack.aclose()
            if kind is not None:
                await asyncio.gather(*(broker.discard() for broker in self.brokers))
        await asyncio.gather(*(broker.stop() for broker in self.brokers))

    async def _come_to_rest(self) -> History:
        alive = [broker for broker in self.brokers if broker.running]
        async with alive[0].api() as api:
            await settle(self.recorder, api)
            for device in self.restless[:3]:
                await device.drop(stay_away=True)
            online = await at_rest(self.recorder, api)
        history = self.recorder.history(**self._judged)
        history.online_at_end = online
        return history

    @staticmethod
    def _check(history: History) -> None:
        findings = decide(history)
        kinds = Counter(finding.kind for finding in findings)
        assert not findings, f"{dict(kinds)}\n" + "\n".join(map(str, findings[:20]))

    def warnings(self) -> str:
        """Return what the brokers' logs say of trouble."""
        lines = []
        for number, broker in enumerate(self.brokers):
            for line in broker.stderr_text().splitlines():
                if "WARNING" in line or "ERROR" in line or "Redis is back" in line:
                    lines.append(f"broker {number}: {line}")
        return "\n".join(lines)

    # What happens meanwhile

    @property
    def answers(self) -> list[tuple[float, float, Answer | None]]:
        """When each send was asked and answered, and how."""
        return self.traffic.answers

    async def accepted(self, count: int = 20, *, seconds: float = 20) -> None:
        """Wait until so many sends were accepted that were asked from now on."""
        now = asyncio.get_running_loop().time()

        def enough() -> bool:
            late = [answer for asked, _, answer in self.answers if asked >= now]
            return sum(bool(answer and answer.status == 200) for answer in late) >= count

        await until(enough, seconds=seconds, what=f"{count} sends that are accepted")

    async def refused(self, count: int = 3, *, seconds: float = 6) -> None:
        """Wait until so many sends were answered with 503 that were asked from now on."""
        now = asyncio.get_running_loop().time()

        def told() -> bool:
            late = [answer for asked, _, answer in self.answers if asked >= now]
            return sum(bool(answer and answer.status == 503) for answer in late) >= count

        await until(told, seconds=seconds, what=f"{count} sends that are answered with 503")

    def check_streams_stayed_open(self) -> None:
        """Fail if a steady device had to come back."""
        broken = {device.name: len(device.visits) for device in self.steady if len(device.visits) != 1}
        assert not broken, f"streams that did not stay open: {broken}\n{self.warnings()}"

    def check_answers(self, *, longest_seconds: float = 3.0) -> None:
        """Fail if a send hung, or was answered with anything but 200 and 503."""
        for asked, answered, answer in self.answers:
            assert answer is not None, f"no answer after {answered - asked:.1f} s"
            assert answer.status in (200, 503), answer
            assert answered - asked < longest_seconds, f"{answer.status} after {answered - asked:.1f} s"
