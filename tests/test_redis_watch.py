"""Sentinels are heard: when they name another master, and that they can still be heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sse_broker import redis_watch
from sse_broker.config import RedisConfig
from sse_broker.redis_connection import Dialer
from sse_broker.redis_watch import Watch
from tests.redis_sets import MASTER_NAME, SentinelSet
from tests.waiting import until


class Heard:
    """A watch, and how often it called."""

    def __init__(self, servers: SentinelSet, name: str = MASTER_NAME) -> None:
        self.calls = 0
        self.watch = Watch(Dialer(RedisConfig(addrs=tuple(servers.addrs), sentinel=name)), self._hear)

    async def _hear(self) -> None:
        self.calls += 1


@pytest.fixture
async def heard(sentinel_set: SentinelSet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Heard]:
    """A watch that listens to all three; each has called once, as nobody knows what was missed before."""
    monkeypatch.setattr(redis_watch, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(redis_watch, "PAUSE_SECONDS", (0.05, 0.1))
    heard = Heard(sentinel_set)
    heard.watch.start()
    await until(lambda: heard.calls == 3, what="all Sentinels")
    yield heard
    await heard.watch.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "sentinel watch"]


async def test_a_failover_is_heard_from_each_sentinel_and_by_the_name_of_the_master_alone(
    heard: Heard, sentinel_set: SentinelSet
) -> None:
    other = Heard(sentinel_set, "another")
    other.watch.start()
    await until(lambda: other.calls == 3, what="all Sentinels")
    await sentinel_set.failover()
    await until(lambda: heard.calls >= 6, what="the word of all Sentinels")
    assert other.calls == 3
    await other.watch.close()


async def test_a_sentinel_that_is_silent_for_long_is_asked_and_one_that_hangs_is_left(
    heard: Heard, sentinel_set: SentinelSet
) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await until(lambda: loop.time() - start > 1.0, what="some silence")
    assert heard.calls == 3, "one that answers is kept"
    victim = sentinel_set.sentinels[0]
    victim.freeze()
    try:
        await until(lambda: loop.time() - start > 2.0, what="the patience to end")
    finally:
        victim.thaw()
    await until(lambda: heard.calls == 4, what="the Sentinel that is back")


async def test_without_sentinels_nobody_is_listened_to() -> None:
    async def never() -> None:
        raise AssertionError

    watch = Watch(Dialer(RedisConfig(addrs=("127.0.0.1:1",))), never)
    watch.start()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "sentinel watch"]
    await watch.close()
