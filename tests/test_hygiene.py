"""Nothing is left behind: when every device has gone and what is kept for a time is past it, Redis and the broker hold what
they held at the start. `make soak` does the same for hours.
"""

from __future__ import annotations

import pytest

from tests.redis_servers import RedisServer
from tests.soak import LASTING, SLACK, Measure, Soak, growth, kind_of

# What Redis itself takes at first use and keeps: tables that grew, the heap of its Lua. A log for each device would be 5 MB.
FIRST_USE_KIB = 500


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["embedded", "redis"])
async def test_a_broker_and_redis_hold_no_more_after_thousands_of_streams_than_before(
    backend: str, redis_server: RedisServer
) -> None:
    """Memory, objects, tasks and descriptors of the broker; keys and memory of Redis, which go back to the very start."""
    async with Soak(redis_server if backend == "redis" else None) as soak, redis_server.client() as redis:
        start, names = await soak.measure(), set(await redis.keys())
        assert {kind_of(name) for name in names} <= LASTING
        measures = []
        for _ in range(2):  # the first half fills caches; what the second adds is growth
            for _ in range(10):
                await soak.cycle()
            if backend == "redis":
                assert len(await redis.keys()) > 3 * 60, "it held something meanwhile"
            measures.append(await soak.measure())
        report = "\n".join(map(str, [start, *measures]))
        print(report)
        assert soak.streams == 1200
        assert soak.frames > 10 * soak.streams, "the streams were used"
        assert not growth(measures), report
        left = set(await redis.keys())
        assert names <= left
        assert [kind_of(name) for name in left - names] == ["inbox"] * (backend == "redis"), "made by the first frame"
        assert measures[-1].redis_kib - start.redis_kib <= FIRST_USE_KIB, report
    if backend == "redis":
        async with redis_server.client() as redis:
            left = {kind_of(name) for name in await redis.keys()}
        assert left == {"id", "epoch"}, "an instance takes its keys with it"


@pytest.mark.parametrize("name", SLACK)
def test_growth_of_each_kind_is_found_and_noise_is_not(name: str) -> None:
    flat = {"memory_kib": 60_000, "objects": 50_000, "tasks": 9, "descriptors": 18, "redis_keys": 5, "redis_kib": 800}
    more = flat | {name: flat[name] + SLACK[name]}
    assert growth([Measure(**one) for one in (flat, more, flat, flat, more, flat)]) == {}
    leaks = [Measure(**flat | {name: flat[name] + step * (SLACK[name] + 1)}) for step in range(6)]
    assert list(growth(leaks)) == [name]
