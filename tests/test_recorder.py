"""Recorded runs without faults: whatever devices do, each frame accepted for a device is seen exactly once, in order, by
nobody else, and presence is told as it was.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.broker_process import BrokerProcess
from tests.history import End, History, decide
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.traffic import Traffic, at_rest, make_devices, settle
from tests.waiting import until

RunBroker = Callable[..., Awaitable[BrokerProcess]]
SENDS = 600


async def record(brokers: Sequence[BrokerProcess], seed: int, redis: RedisServer | None = None) -> History:
    """Let devices play and senders send, let it all come to rest, and return what was recorded."""
    draw = random.Random(seed)
    devices = make_devices(brokers, draw, count=24, users=9)
    recorder = Recorder(devices)
    subscriber = redis.client() if redis else None
    async with brokers[0].api() as api:
        try:
            if subscriber:
                await recorder.listen(subscriber)
            for device in devices:
                device.start()
            async with Traffic(recorder, brokers, draw, mischief=devices):
                await until(lambda: len(recorder.sends) >= SENDS, seconds=60)
            await settle(recorder, api)
            for device in devices[:8]:
                await device.drop(stay_away=True)
            online = await at_rest(recorder, api)
            history = recorder.history(presence_seconds=6, cache_frames=100, delivery_seconds=5)
            history.online_at_end = online
        finally:
            await recorder.stop()
            if subscriber:
                await subscriber.aclose()
    return history


def check(history: History, seed: int) -> None:
    """Fail unless the run was good, and rich enough to tell."""
    findings = decide(history)
    kinds = Counter(finding.kind for finding in findings)
    assert not findings, f"seed {seed}: {dict(kinds)}\n" + "\n".join(map(str, findings[:20]))
    ends = Counter(session.end for session in history.sessions)
    for end in (End.DROPPED, End.EXTRUDE, End.VANISHED, End.KICK, End.OPEN):
        assert ends[end], f"seed {seed}: no session ended by {end}: {ends}"
    assert sum(bool(session.asked_id and session.frames) for session in history.sessions) > 50
    assert sum(len(session.frames) for session in history.sessions) > 3000


@pytest.fixture
def seed() -> int:
    """A new seed for each run; set it by hand to look into one."""
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return seed


async def test_an_embedded_broker_loses_and_doubles_nothing_while_devices_come_and_go(
    run_broker: RunBroker, seed: int
) -> None:
    """Nobody listens to presence here: what `/info` says at the end is judged."""
    broker = await run_broker({"sse": {"heartbeat_interval": 1}})
    start = time.monotonic()
    history = await record([broker], seed)
    print(f"{time.monotonic() - start:.1f} s")
    check(history, seed)


async def test_three_brokers_on_redis_lose_and_double_nothing_while_devices_come_and_go(
    run_broker: RunBroker, redis_server: RedisServer, seed: int
) -> None:
    """Devices change brokers at random, and presence messages are judged one by one."""
    brokers = [await run_broker({"sse": {"heartbeat_interval": 1}}, redis=redis_server) for _ in range(3)]
    start = time.monotonic()
    history = await record(brokers, seed, redis_server)
    print(f"{time.monotonic() - start:.1f} s")
    check(history, seed)
