"""A cluster under traffic to which something happens: brokers on one Redis, devices that stay and devices that come and go,
senders, a presence listener; and in the end the verdict. What happens to it is the test's.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from tests.broker_process import BrokerProcess
from tests.devices import Device
from tests.event_client import Api
from tests.history import Heard, History, decide
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.traffic import Traffic, at_rest, make_devices, settle
from tests.waiting import until

# An instance that does nothing for twice as long is taken for dead, also one on a machine that is busy with other things.
HEARTBEAT_SECONDS = 1.5
# How long what a stall of the machine has done to presence takes to come right.
AFTER_SECONDS = 3 * HEARTBEAT_SECONDS
MAX_BUFFER_BYTES = 256 * 1024
DRAIN_SECONDS = 3
TABLES: Mapping[str, Mapping[str, Any]] = {
    "sse": {
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "device_frame_cache_size": 2000,
        "max_buffer_bytes": MAX_BUFFER_BYTES,
    },
    "server": {"drain_seconds": DRAIN_SECONDS, "max_body_bytes": MAX_BUFFER_BYTES},
}
START_SECONDS = 60
# The tag of the broker's keys.
TAG = "{sse}"


class Stage:
    """Brokers on a Redis that keeps its data; for a module, as they take long to start. Not tied to an event loop.

    `redis`: other servers, which run already and are not ended here.
    """

    def __init__(self, brokers: int, redis: SentinelSet | RedisCluster | None = None) -> None:
        self.own = RedisServer(persist=True) if redis is None else None
        self.redis: Any = redis or self.own
        self.brokers = [BrokerProcess(TABLES, redis=self.redis) for _ in range(brokers)]

    async def start(self) -> None:
        """Start everything."""
        if self.own:
            await self.own.start()
        else:
            await self.redis.heal()
            await self.redis.flush()
        await asyncio.gather(*(broker.start(seconds=START_SECONDS) for broker in self.brokers))

    async def master(self) -> RedisServer:
        """Return the server that has the broker's keys."""
        if isinstance(self.redis, SentinelSet):
            return await self.redis.master()
        if isinstance(self.redis, RedisCluster):
            return await self.redis.owner(await self.redis.slot_of(TAG))
        return self.redis

    async def listening(self) -> RedisServer:
        """Return a server where presence is heard that is not the master, if there is such a one: that may die."""
        master = await self.master()
        if isinstance(self.redis, SentinelSet):
            return next(server for server in self.redis.data if server is not master)
        if isinstance(self.redis, RedisCluster):
            replica = await self.redis.replica(master)
            return next(server for server in self.redis.servers if server not in (master, replica))
        return master

    async def heal(self) -> None:
        """Bring back what a test has broken, and wait until nobody is online any more."""
        if self.own:
            self.own.thaw()
            if not self.own.running:
                await self.own.start()
        else:
            await self.redis.heal()
        for broker in self.brokers:
            broker.thaw()
        await asyncio.gather(*(broker.start(seconds=START_SECONDS) for broker in self.brokers if not broker.running))

        async def empty() -> bool:
            cluster = (await api.info()).result
            return bool(cluster and cluster["device_count"] == 0 and cluster["instance_count"] == len(self.brokers))

        async with self.brokers[0].api() as api:
            await until(empty, seconds=20, what="a cluster that is whole and holds nobody", pause_seconds=0.1)

    async def forget(self) -> None:
        """Kill Redis and remove its data."""
        await self.redis.kill()
        shutil.rmtree(self.redis.folder / "appendonlydir")

    async def stop(self) -> None:
        """End everything and check what the brokers printed."""
        try:
            await asyncio.gather(*(broker.stop() for broker in self.brokers))
        finally:
            if self.own:
                await self.own.stop()


class Scene:
    """Traffic on a stage. Use with `async with`: behind the block everything comes to rest and is judged.

    `steady` devices stay where they are, `restless` ones do everything that devices do, changing users only if they
    `become`. Names begin with `prefix`, so that each scene has its own.
    """

    def __init__(
        self, stage: Stage, *, steady: int = 8, restless: int = 6, becomes: bool = True, seed: int | None = None
    ) -> None:
        self.seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        self.stage, self.redis, self.brokers = stage, stage.redis, stage.brokers
        self.draw = random.Random(self.seed)
        self.prefix = f"{uuid.uuid4().hex[:6]}-"
        devices = make_devices(self.brokers, self.draw, steady + restless, 5, prefix=self.prefix)
        self.steady, self.restless = devices[:steady], devices[steady:]
        for number, device in enumerate(self.steady):  # so that each broker has some
            device.prefer(self.brokers[number % len(self.brokers)].base_url)
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
        self._stack = AsyncExitStack()
        self._logs: list[int] = []

    async def __aenter__(self) -> Self:
        print("seed", self.seed)
        try:
            await self.stage.heal()
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def _start(self) -> None:
        self._logs = [len(broker.stderr_text()) for broker in self.brokers]
        await self._stack.enter_async_context(self.recorder.stalls(self._pids, after=AFTER_SECONDS))
        listening = await self.stage.listening()
        await self.recorder.listen(await self._stack.enter_async_context(listening.client()))
        for device in self.recorder.devices:
            device.start()
        await until(lambda: all(device.connected for device in self.recorder.devices), seconds=20)
        await self.traffic.start()
        await self.accepted(10)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.traffic.stop()
                self._check(await self._come_to_rest())
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.warnings()}") from None
        finally:
            if kind is not None:
                print(self.warnings())
            await self._end()

    def _pids(self) -> list[int]:
        servers = [self.redis] if isinstance(self.redis, RedisServer) else self.redis.servers
        return [one.process.pid for one in (*self.brokers, *servers) if one.running]

    async def _end(self) -> None:
        await self.traffic.stop()
        await self.recorder.stop()
        await self._stack.aclose()

    async def _come_to_rest(self) -> History:
        alive = next(broker for broker in self.brokers if broker.running)
        async with Api(alive.base_url) as api:
            await settle(self.recorder, api)
            for device in self.restless[:3]:
                await device.drop(stay_away=True)
            online = await at_rest(self.recorder, api)
        history = self.recorder.history(presence_seconds=8, cache_frames=2000)
        history.online_at_end = online
        history.heard = [message for message in history.heard or () if message.device.startswith(self.prefix)]
        if "the cluster has cleared this instance" in self.warnings():
            # A test intends it, or the machine was so busy that no heartbeat came for seconds.
            assert history.faults, "an instance was cleared that nothing had happened to"
        return history

    @staticmethod
    def _check(history: History) -> None:
        findings = decide(history)
        kinds = Counter(finding.kind for finding in findings)
        firsts = {(finding.kind, finding.device): finding for finding in reversed(findings)}
        hit = {finding.device for finding in findings}
        # Times from the first connection on.
        start = min((session.connecting_at for session in history.sessions), default=0.0)
        streams = [
            f"{one.device} {one.uid} at {one.node}: {one.connecting_at - start:.2f} to {one.ended_at - start:.2f} s, "
            f"{one.end}, asked with {one.asked_id}, {len(one.frames)} frames"
            for one in history.sessions
            if one.device in hit
        ]
        faults = [f"fault {fault.start - start:.2f} to {fault.end - start:.2f} s" for fault in history.faults]
        assert not findings, "\n".join([str(dict(kinds)), *map(str, firsts.values()), *streams, *faults])

    def warnings(self) -> str:
        """Return what the brokers' logs say of trouble since the beginning."""
        lines = []
        for number, (broker, start) in enumerate(zip(self.brokers, self._logs, strict=False)):
            for line in broker.stderr_text()[start:].splitlines():
                if ("WARNING" in line or "ERROR" in line or "Redis is back" in line) and "asyncio:" not in line:
                    lines.append(f"broker {number}: {line}")
        return "\n".join(lines)

    # What happens meanwhile

    def devices_at(self, broker: BrokerProcess, devices: Sequence[Device]) -> list[Device]:
        """Return those devices that are connected to this broker."""
        return [device for device in devices if device.connected and device.client.url == broker.base_url]

    def heard_of(self, device: Device) -> list[Heard]:
        """Return the presence messages about a device so far, in order."""
        heard = self.recorder.heard or ()
        return [message for message in heard if message.is_device and message.device == device.name]

    async def accepted(self, count: int = 20, *, seconds: float = 30) -> None:
        """Wait until so many sends were accepted that were asked from now on."""
        await self._answered(200, count, seconds)

    async def refused(self, count: int = 3, *, seconds: float = 10) -> None:
        """Wait until so many sends were answered with 503 that were asked from now on."""
        await self._answered(503, count, seconds)

    async def _answered(self, status: int, count: int, seconds: float) -> None:
        now = asyncio.get_running_loop().time()

        def enough() -> bool:
            late = [answer for asked, _, answer in self.traffic.answers if asked >= now]
            return sum(bool(answer and answer.status == status) for answer in late) >= count

        await until(enough, seconds=seconds, what=f"{count} sends that are answered with {status}")

    def check_streams_stayed_open(self) -> None:
        """Fail if a steady device had to come back."""
        broken = {device.name: len(device.visits) for device in self.steady if len(device.visits) != 1}
        assert not broken, f"streams that did not stay open: {broken}\n{self.warnings()}"

    def check_answers(self, *, longest_seconds: float = 3.5) -> None:
        """Fail if a send hung, or was answered with anything but 200 and 503."""
        for asked, answered, answer in self.traffic.answers:
            assert answer is not None, f"no answer after {answered - asked:.1f} s"
            assert answer.status in (200, 503), answer
            assert answered - asked < longest_seconds, f"{answer.status} after {answered - asked:.1f} s"
