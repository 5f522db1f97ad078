"""Recorded runs without faults: whatever devices do, each frame accepted for a device is seen exactly once, in order, by
nobody else, and presence is told as it was.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from sse_broker.memory import MemoryBackend
from sse_broker.presence import PresenceMessage
from tests.event_client import Api
from tests.history import End, Heard, History, Session, decide
from tests.recorder import PREFIX, Recorder
from tests.redis_servers import RedisServer
from tests.served import Serve, ServedBroker
from tests.traffic import Traffic, at_rest, make_devices, settle
from tests.waiting import until

SENDS = 500
REPLAYS = 50
ENDS = {End.DROPPED, End.EXTRUDE, End.VANISHED, End.KICK}
# How long what a stall of the machine has done to presence takes to come right: three heartbeats.
AFTER_SECONDS = 3
TABLES = {"sse": {"heartbeat_interval": 1}}


async def listen(recorder: Recorder, broker: ServedBroker, redis: RedisServer | None, stack: AsyncExitStack) -> None:
    """Record presence messages, by pub/sub or from the embedded backend."""
    if redis is not None:
        await recorder.listen(await stack.enter_async_context(redis.client()))
        return
    heard: list[Heard] = []

    def hear(message: PresenceMessage) -> None:
        channel, now = message.channel.removeprefix(PREFIX), time.monotonic()
        words = message.uid, message.device_name, message.reason, message.payload, message.device_id
        heard.append(Heard(channel, *words, now))

    assert isinstance(broker.backend, MemoryBackend)
    broker.backend.listeners.append(hear)
    recorder.heard = heard


def is_rich(recorder: Recorder) -> bool:
    """Tell whether enough has happened for a verdict to say something, however fast the broker is."""
    if len(recorder.sends) < SENDS:
        return False
    sessions = recorder.history(presence_seconds=6, cache_frames=100, delivery_seconds=8).sessions
    return {session.end for session in sessions} >= ENDS and replays(sessions) > REPLAYS


def replays(sessions: Sequence[Session]) -> int:
    """Return in how many sessions a client asked for what it had missed, and got something."""
    return sum(bool(session.asked_id and session.frames) for session in sessions)


async def record(brokers: Sequence[ServedBroker], seed: int, redis: RedisServer | None = None) -> History:
    """Let devices play and senders send, let it all come to rest, and return what was recorded."""
    draw = random.Random(seed)
    devices = make_devices(brokers, draw, count=24, users=9)
    recorder = Recorder(devices)
    async with Api(brokers[0].base_url) as api, AsyncExitStack() as stack:
        stack.push_async_callback(recorder.stop)
        pids = [] if redis is None else [redis.process.pid]
        await stack.enter_async_context(recorder.stalls(lambda: pids, after=AFTER_SECONDS))
        await listen(recorder, brokers[0], redis, stack)
        for device in devices:
            device.start()
        async with Traffic(recorder, brokers, draw, mischief=devices):
            await until(lambda: is_rich(recorder), seconds=90, pause_seconds=0.3)
        await settle(recorder, api)
        for device in devices[:8]:
            await device.drop(stay_away=True)
        online = await at_rest(recorder, api)
        history = recorder.history(presence_seconds=6, cache_frames=100, delivery_seconds=8)
        history.online_at_end = online
    return history


def check(history: History, seed: int) -> None:
    """Fail unless the run was good, and rich enough to tell."""
    findings = decide(history)
    kinds = Counter(finding.kind for finding in findings)
    assert not findings, f"seed {seed}: {dict(kinds)}\n" + "\n".join(map(str, findings[:20]))
    ends = Counter(session.end for session in history.sessions)
    for end in (*ENDS, End.OPEN):
        assert ends[end], f"seed {seed}: no session ended by {end}: {ends}"
    assert replays(history.sessions) > REPLAYS
    assert sum(len(session.frames) for session in history.sessions) > 2000


@pytest.fixture
def seed() -> int:
    """A new seed for each run; set it by hand to look into one."""
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return seed


async def test_an_embedded_broker_loses_and_doubles_nothing_while_devices_come_and_go(
    serve_embedded: Serve, seed: int
) -> None:
    check(await record([await serve_embedded(TABLES)], seed), seed)


async def test_three_brokers_on_redis_lose_and_double_nothing_while_devices_come_and_go(
    serve_on_redis: Serve, redis_server: RedisServer, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Devices change brokers at random."""
    brokers = [await serve_on_redis(TABLES) for _ in range(3)]
    history = await record(brokers, seed, redis_server)
    # On a machine so busy that no heartbeat came for seconds.
    assert history.faults or "the cluster has cleared" not in caplog.text
    check(history, seed)
