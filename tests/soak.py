"""`make soak`: connects, sends and closes without end, and looks whether anything grows: the broker's memory, objects, tasks
and descriptors, and the keys and memory of Redis. The suite runs a short one (tests/test_hygiene.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

from tests.broker_process import BrokerProcess
from tests.event_client import Api, EventClient
from tests.redis_servers import RedisServer
from tests.waiting import until

# Everything that is kept for a time is kept for so long, so that it is gone soon after its device.
EXPIRE_SECONDS = 2
# A kicked token is remembered until its end.
TOKEN_SECONDS = EXPIRE_SECONDS + 3
TABLES = {"sse": {"heartbeat_interval": 1, "device_frame_cache_expire": EXPIRE_SECONDS}}
SENDS_AT_ONCE = 4
PROGRAM = (sys.executable, "-m", "tests.counted_broker")


@dataclass(frozen=True, slots=True)
class Measure:
    """What is held at a moment of rest: no device is online, and all that is kept for a time is gone.

    Memory in KiB. `redis_keys` leaves none out; `redis_kib` is what data takes, without connections and buffers.
    """

    memory_kib: int
    descriptors: int
    objects: int
    tasks: int
    redis_keys: int
    redis_kib: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in zip(NAMES, astuple(self), strict=True))


NAMES = [field.name for field in fields(Measure)]
# How much more the last measures may be than the first, in their own units: noise of allocators and of connection pools.
# Per device that came and went a leak of one object would be hundreds.
SLACK = {"memory_kib": 1500, "objects": 150, "tasks": 4, "descriptors": 6, "redis_keys": 0, "redis_kib": 80}


def growth(measures: Sequence[Measure]) -> dict[str, int]:
    """Return what grew beyond its slack, from the median of the first third to that of the last."""
    third = max(len(measures) // 3, 1)
    grown = {}
    for name in NAMES:
        first, last = (median(getattr(one, name) for one in part) for part in (measures[:third], measures[-third:]))
        if last - first > SLACK[name]:
            grown[name] = round(last - first)
    return grown


# The keys of a cluster of one instance without devices. What is kept for a time goes; see `redis_keys` for when.
LASTING = {"id", "epoch", "nodes", "node", "acked", "inbox"}


def kind_of(key: str) -> str:
    """Return the first word of a key's name."""
    return key.removeprefix("{sse}:").partition(":")[0]


def held_by(pid: int) -> tuple[int, int]:
    """Return a process's resident memory in KiB and how many descriptors it has open."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))
    return memory_kib, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Soak:
    """One broker, on Redis or embedded, and devices that come and go; use with `async with`.

    The names of devices and users are never used again, so whatever is kept for one is seen to grow.
    """

    def __init__(self, redis: RedisServer | None, *, seed: int = 1) -> None:
        self.redis = redis
        self.broker = BrokerProcess(TABLES, redis=redis, program=PROGRAM)
        self.counts_file = self.broker.folder / "counts.json"
        self.broker._env["COUNTS_FILE"] = str(self.counts_file)
        self.streams = self.sends = self.frames = 0
        self._draw = random.Random(seed)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Soak:
        await self._stack.enter_async_context(self.broker)
        self.api = await self._stack.enter_async_context(Api(self.broker.base_url))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def cycle(self, streams: int = 60, sends: int = 60) -> None:
        """Let devices come, get frames, and go in every way."""
        first = self.streams
        self.streams += streams
        names = [f"device {number}" for number in range(first, self.streams)]
        clients = await asyncio.gather(*(self._client(name, number).open() for number, name in enumerate(names)))
        # Some come a second time, with a last id, while the first stream is open.
        again = (self._client(name, number, last_id=1).open() for number, name in enumerate(names[::5]))
        clients += await asyncio.gather(*again)
        for begin in range(0, sends, SENDS_AT_ONCE):
            numbers = range(begin, min(begin + SENDS_AT_ONCE, sends))
            await asyncio.gather(*(self._send(number, first, names) for number in numbers))
        self.sends += sends
        await self.api.request("GET", "/info")
        await self.api.request("GET", "/nothing/here")
        for name in names[::7]:
            await self.api.kick(device=name, data="go")
        self.frames += sum(len(client.frames) for client in clients)
        await asyncio.gather(*(client.close(abrupt=self._draw.random() < 0.5) for client in clients))

    async def _send(self, number: int, first: int, names: Sequence[str]) -> None:
        """Send to a user, a device or everyone in turn."""
        streams = len(names)
        target = ({"uid": f"user {first + number % streams // 2}"}, {"device": names[number % streams]}, {})
        await self.api.send("x" * self._draw.choice((1, 100, 5000)), **target[number % 3])

    def _client(self, name: str, number: int, **options: int) -> EventClient:
        token = self.broker.mint(f"user {(self.streams - number) // 2}", name, ttl=TOKEN_SECONDS)
        return EventClient(self.broker.base_url, token=token, device=name, **options)

    async def measure(self) -> Measure:
        """Wait until all is gone that should go, and measure.

        Raises: AssertionError if keys stay in Redis that were not there before.
        """

        async def nobody() -> bool:
            return bool((await self.api.info()).result["device_count"] == 0)

        await until(nobody, seconds=20, what="the end of all devices", pause_seconds=0.1)
        keys = kib = 0
        if self.redis is not None:
            keys, kib = await self._measure_redis(self.redis)
        counts = await self._resting_counts()
        return Measure(*held_by(self.broker.pid), counts["objects"], counts["tasks"], keys, kib)

    async def _resting_counts(self) -> dict[str, int]:
        """Return the counts once they fall no more, and all is past its time that is kept for one: frames and kicked tokens.

        The embedded backend looks for that when it is sent something.
        """
        counts: dict[str, int] = {}
        past = time.monotonic() + TOKEN_SECONDS + 1

        async def falls_no_more() -> bool:
            nonlocal counts
            if self.redis is None:
                await self.api.send("x", uid="nobody")
            before, counts = counts, await self._counts()
            return time.monotonic() > past and bool(before) and counts["objects"] >= before["objects"]

        await until(falls_no_more, seconds=30, what="counts that fall no more", pause_seconds=1.2)
        return counts

    async def _counts(self) -> dict[str, int]:
        self.counts_file.unlink(missing_ok=True)

        def there() -> bool:
            self.broker.process.signal(signal.SIGUSR2)
            return self.counts_file.exists()

        await until(there, seconds=10, what="the broker's counts", pause_seconds=0.2)
        counts: dict[str, int] = json.loads(self.counts_file.read_text())
        return counts

    async def _measure_redis(self, redis: RedisServer) -> tuple[int, int]:
        async with redis.client() as client:

            async def expired() -> bool:
                return not set(map(kind_of, await client.keys())) - LASTING

            await until(expired, seconds=40, what="the expiry of all that is kept for a time", pause_seconds=0.2)
            await client.memory_purge()
            memory = await client.info("memory")
            # Not DBSIZE, which counts what is expired and not yet removed.
            return len(await client.keys()), memory["used_memory_dataset"] // 1024


async def soak(redis: RedisServer | None, minutes: float) -> int:
    """Soak one broker for so long; return how many kinds of growth there were."""
    where = "redis" if redis else "embedded"
    async with Soak(redis) as broker:
        measures: list[Measure] = []
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end or len(measures) < 6:
            for _ in range(5):
                await broker.cycle()
            measures.append(await broker.measure())
            print(f"{where}: {broker.streams} devices, {broker.sends} sends, {measures[-1]}", flush=True)
        # The first shows caches that fill up.
        grown = growth(measures[1:])
        print(
            f"{where}: {broker.streams} devices, {broker.sends} sends, {broker.frames} frames: {grown or 'no growth'}"
        )
        return len(grown)


async def both(minutes: float) -> int:
    """Soak the embedded backend and Redis, half of the time each."""
    async with RedisServer() as redis:
        grown = [await soak(one, minutes / 2) for one in (redis, None)]
    return int(any(grown))


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    return asyncio.run(both(parser.parse_args().minutes))


if __name__ == "__main__":
    sys.exit(main())
