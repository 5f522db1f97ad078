"""The slot of the broker's keys moves to another master of a Redis Cluster, key by key, under traffic: nothing is lost, doubled or
out of order, and no stream ends. While some keys are here and others there, sends are refused: no script may run on half of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults import TAG, Scene, Stage
from tests.lifetimes import started
from tests.redis_sets import RedisCluster


@pytest.fixture(scope="module")
def stage(session_redis_cluster: RedisCluster) -> Iterator[Stage]:
    """Two brokers on a Redis Cluster."""
    yield from started(Stage(2, session_redis_cluster))


async def test_a_slot_that_moves_twice_in_a_row_costs_nothing(stage: Stage) -> None:
    """To another master and on to the third, while devices come, go and move, too."""
    cluster: RedisCluster = stage.redis
    async with Scene(stage) as scene:
        slot = await cluster.slot_of(TAG)
        first = await stage.master()
        second = await cluster.migrate_slot(slot, batch=3)
        await scene.accepted(5)
        masters = [await cluster.owner(at) for at in (0, 8000, 16383)]
        third = await cluster.migrate_slot(
            slot, to=next(server for server in masters if server not in (first, second)), batch=3
        )
        await scene.accepted()
        assert await stage.master() is third
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_slot_that_is_left_half_way_for_some_seconds_costs_nothing(stage: Stage) -> None:
    """What was asked meanwhile was refused or waits; heartbeats fail so long that every instance could be taken for dead."""
    cluster: RedisCluster = stage.redis
    async with Scene(stage) as scene:
        with scene.recorder.fault(after=4):

            async def halfway() -> None:
                loop = asyncio.get_running_loop()
                start = loop.time()
                await scene.refused(3)
                while loop.time() - start < 4:
                    await scene.refused(3)
                scene.check_streams_stayed_open()

            await cluster.migrate_slot(await cluster.slot_of(TAG), batch=3, halfway=halfway)
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
