"""Nothing is left behind: when every device has gone and what is kept for a time is past it, Redis and the broker hold what
they held at the start. `make soak` does the same for hours.
"""

from __future__ import annotations

import pytest

from tests.redis_servers import RedisServer
from tests.soak import LASTING, SLACK, Measure, Soak, growth, kind_of


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["embedded", "redis"])
async def test_a_broker_holds_no_more_after_thousands_of_streams_than_after_the_first(
    backend: str, redis_server: RedisServer
) -> None:
    """Memory, objects, tasks and descriptors."""
    async with Soak(redis_server if backend == "redis" else None) as soak:
        measures = []
        for _ in range(4):
            for _ in range(5):
                await soak.cycle()
            measures.append(await soak.measure())
            print(measures[-1])
        assert soak.streams == 1200
        assert soak.frames > 10 * soak.streams, "the streams were used"
        assert not growth(measures[1:]), "\n".join(map(str, measures))


@pytest.mark.timeout(120)
async def test_redis_holds_the_same_keys_and_as_much_as_before_the_devices_came(redis_server: RedisServer) -> None:
    async with Soak(redis_server) as soak, redis_server.client() as redis:
        await soak.cycle()  # which loads the scripts
        before, names = await soak.measure(), set(await redis.keys())
        assert {kind_of(name) for name in names} <= LASTING
        for _ in range(3):
            await soak.cycle()
        assert len(await redis.keys()) > 3 * 60, "it held something meanwhile"
        after = await soak.measure()
        assert set(await redis.keys()) == names
        assert after.redis_kib - before.redis_kib <= SLACK["redis_kib"], f"{before}\n{after}"
    async with redis_server.client() as redis:
        assert {kind_of(name) for name in await redis.keys()} <= {"id", "epoch"}, "an instance takes its keys with it"


@pytest.mark.parametrize("name", SLACK)
def test_growth_of_each_kind_is_found_and_noise_is_not(name: str) -> None:
    flat = {"memory_kib": 60_000, "objects": 50_000, "tasks": 9, "descriptors": 18, "redis_keys": 5, "redis_kib": 800}
    more = flat | {name: flat[name] + SLACK[name]}
    assert growth([Measure(**one) for one in (flat, more, flat, flat, more, flat)]) == {}
    leaks = [Measure(**flat | {name: flat[name] + step * (SLACK[name] + 1)}) for step in range(6)]
    assert list(growth(leaks)) == [name]
