"""The master that has the broker's keys dies, or is replaced in good order, under traffic: open streams stay open, sends are
refused while nobody answers and go on by themselves, ids never go back, and presence is right again.

What Redis acknowledged and lost with a master that dies is excused; nothing is where the replacement was planned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.broker_process import BrokerProcess
from tests.faults import TAG, Scene, Stage
from tests.lifetimes import started
from tests.redis_servers import RedisServer
from tests.redis_sets import MASTER_NAME, RedisCluster, SentinelSet, settled
from tests.waiting import until

# How long after another master is there the last send may still be refused: a look around, and what waits for its turn.
BACK_SECONDS = 2.5


@pytest.fixture(scope="module")
def sentinel_stage(session_sentinel_set: SentinelSet) -> Iterator[Stage]:
    """Two brokers on a master with a replica that Sentinels watch."""
    yield from started(Stage(2, session_sentinel_set))


@pytest.fixture(scope="module")
def cluster_stage(session_redis_cluster: RedisCluster) -> Iterator[Stage]:
    """Two brokers on a Redis Cluster."""
    yield from started(Stage(2, session_redis_cluster))


@pytest.fixture(params=["sentinel_stage", "cluster_stage"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Each kind in turn."""
    chosen: Stage = request.getfixturevalue(request.param)
    return chosen


async def check_info(scene: Scene) -> None:
    """Wait until every broker's `/info` counts the devices that are connected, and names where the steady ones are."""

    async def right(broker: BrokerProcess) -> bool:
        async with broker.api() as api:
            cluster = await api.info()
            if cluster.status != 200 or cluster.result["instance_count"] != len(scene.brokers):
                return False
            for device in scene.steady:
                info = await api.info(device=device.name)
                if info.status != 200 or f"http://{info.result['instance_address']}" != device.client.url:
                    return False
            return True

    for broker in scene.brokers:
        await until(lambda broker=broker: right(broker), seconds=10, what="/info that is right", pause_seconds=0.1)


def check_refusals(scene: Scene, down_at: float, up_at: float, *, since: float = 0) -> None:
    """Fail if a send that was asked `since` then was refused while a master answered."""
    for asked, answered, answer in scene.traffic.answers:
        if answer is not None and answer.status == 503 and asked >= since:
            assert answered >= down_at, "refused before anything happened"
            assert asked <= up_at + BACK_SECONDS, f"refused {asked - up_at:.1f} s after another master was there"


async def test_a_master_that_is_killed_is_replaced_and_every_stream_stays_open(stage: Stage) -> None:
    """Sends are refused at once meanwhile; nothing that the new master has acknowledged is lost."""
    loop = asyncio.get_running_loop()
    async with Scene(stage) as scene:
        master = await stage.master()
        with scene.recorder.fault(data=True, messages=True, after=4):
            await scene.accepted(5)
            down_at = loop.time()
            await master.kill()
            await scene.refused()
            assert await stage.master() is not master
        up_at = loop.time()
        await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
        check_refusals(scene, down_at, up_at)
        await check_info(scene)


async def test_a_planned_failover_of_a_cluster_loses_nothing(cluster_stage: Stage) -> None:
    """There and back: no frame, no presence message, no stream."""
    loop = asyncio.get_running_loop()
    cluster: RedisCluster = cluster_stage.redis
    async with Scene(cluster_stage) as scene:
        slot = await cluster.slot_of(TAG)
        since = 0.0
        for _ in range(2):
            down_at = loop.time()
            await cluster.hand_over(slot)
            up_at = loop.time()
            await scene.accepted()
            check_refusals(scene, down_at, up_at, since=since)
            since = loop.time()
        scene.check_streams_stayed_open()
        scene.check_answers()
        await check_info(scene)


async def replaced(stage: Stage) -> tuple[RedisServer, RedisServer]:
    """Ask the Sentinels to replace the master, which works on; return it and the new one, once all agree."""
    sentinels: SentinelSet = stage.redis
    old = await sentinels.master()
    await sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER_NAME)

    async def new() -> RedisServer | None:
        master = await sentinels.master()
        return None if master is old else master

    return old, await settled(new, "another master")


async def demote(old: RedisServer, new: RedisServer) -> None:
    """Do what Sentinels would do ten seconds later."""
    await old.ask("REPLICAOF", "127.0.0.1", new.port)


async def test_a_planned_failover_with_sentinels_loses_nothing_if_the_master_must_have_a_replica(
    sentinel_stage: Stage,
) -> None:
    """`min-replicas-to-write 1`: it then takes no write from the moment that its replica leaves it."""
    loop = asyncio.get_running_loop()
    async with Scene(sentinel_stage) as scene:
        old = await sentinel_stage.master()
        await old.ask("CONFIG", "SET", "min-replicas-to-write", 1)
        try:
            down_at = loop.time()
            old, new = await replaced(sentinel_stage)
            up_at = loop.time()
            await scene.accepted()
        finally:
            await old.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        scene.check_streams_stayed_open()
        scene.check_answers()
        check_refusals(scene, down_at, up_at)
        await check_info(scene)
        await demote(old, new)


async def test_a_master_that_works_is_left_as_soon_as_sentinels_name_another(sentinel_stage: Stage) -> None:
    """It is told itself only ten seconds later, and what it takes until then is lost."""
    async with Scene(sentinel_stage) as scene:
        with scene.recorder.fault(data=True, messages=True, after=4):
            old, new = await replaced(sentinel_stage)

            async def forsaken() -> bool:
                one = await old.ask("GET", f"{TAG}:id")
                await scene.accepted(3)
                return bool(await old.ask("GET", f"{TAG}:id") == one and (await old.ask("ROLE"))[0] == "master")

            await until(forsaken, seconds=5, what="sends that the old master sees nothing of")
        await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
        await check_info(scene)
        await demote(old, new)
