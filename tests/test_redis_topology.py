"""Which server is asked: what slots a Cluster's nodes name, and whom Sentinels name that do not agree."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError

from sse_broker.config import RedisConfig
from sse_broker.redis_connection import CONNECT_SECONDS, Dialer
from sse_broker.redis_keys import shard_key, touch
from sse_broker.redis_topology import FRESH_SECONDS, MAX_ASKED, Sentinels, Single, Slots, View, slot_of, topology_of
from tests.redis_servers import RedisServer
from tests.redis_sets import MASTER_NAME, RedisCluster, SentinelSet
from tests.waiting import free_port, until

HERE = ("127.0.0.1", 7000)


def _dialer(**config: Any) -> Dialer:
    return Dialer(RedisConfig(**config))


@pytest.mark.parametrize("key", ["a", "{sse}:id", "x{y}z", "{}a", "a{b", "}{", "ünï{cö}dé", "{{a}}", touch("d", "c")])
def test_the_slot_of_a_key_is_that_of_redis(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


def test_a_view_names_the_master_of_each_slot_and_every_node() -> None:
    reply = [
        [8192, 16383, [b"10.0.0.2", 6379, b"b", []]],
        [0, 8190, [b"10.0.0.1", 6379, b"a", []], [b"10.0.0.3", 6380, b"c", []]],
    ]
    view = View(reply, HERE)
    assert [view.owner(slot) for slot in (0, 8190, 8192, 16383)] == [("10.0.0.1", 6379)] * 2 + [("10.0.0.2", 6379)] * 2
    assert set(view.nodes) == {("10.0.0.1", 6379), ("10.0.0.2", 6379), ("10.0.0.3", 6380)}
    with pytest.raises(RedisConnectionError, match="no server has slot 8191"):
        view.owner(8191)
    with pytest.raises(RedisConnectionError):
        View([], HERE).owner(0)


def test_a_server_without_a_name_is_the_one_that_was_asked() -> None:
    """`cluster-preferred-endpoint-type unknown-endpoint`."""
    assert View([[0, 16383, [None, 6379, b"a", []]]], HERE).owner(1) == ("127.0.0.1", 6379)


def test_of_a_large_cluster_some_are_asked_and_not_always_the_same() -> None:
    slots = Slots(_dialer(addrs=tuple(f"10.0.0.{number}:6379" for number in range(40))))
    asked = [tuple(slots._some_nodes()) for _ in range(20)]
    assert {len(some) for some in asked} == {MAX_ASKED}
    assert len({node for some in asked for node in some}) > 30


def test_the_kind_follows_from_the_configuration() -> None:
    assert isinstance(topology_of(_dialer(addrs=("a:1",))), Single)
    assert isinstance(topology_of(_dialer(addrs=("a:1", "b:1"))), Slots)
    assert isinstance(topology_of(_dialer(addrs=("a:1",), sentinel="m")), Sentinels)


async def test_where_a_server_sends_us_is_tried_once_before_the_others_are_asked(redis_cluster: RedisCluster) -> None:
    slots = Slots(_dialer(addrs=tuple(redis_cluster.addrs)))
    owner = await redis_cluster.owner(slot_of(shard_key("id")))
    slots.moved(MovedError(f"{slot_of(shard_key('id'))} 10.0.0.1:6379"))
    assert await slots.master() == ("10.0.0.1", 6379)
    assert await slots.master() == ("127.0.0.1", owner.port)
    slots.moved(MovedError("1 10.0.0.1:6379"))  # of another slot
    assert await slots.master() == ("127.0.0.1", owner.port)


async def test_dead_nodes_of_a_cluster_are_no_hindrance(redis_cluster: RedisCluster) -> None:
    """Not even if most of those that are configured are."""
    dead = [f"127.0.0.1:{free_port()}" for _ in range(4)]
    slots = Slots(_dialer(addrs=(*dead, redis_cluster.servers[5].addr)))
    keys = [f"key{number}" for number in range(20)]
    expected = [("127.0.0.1", (await redis_cluster.owner(slot_of(key))).port) for key in keys]
    assert await slots.owners(keys) == expected


async def test_a_sentinel_that_knows_an_old_master_is_outvoted(sentinel_set: SentinelSet) -> None:
    """Its epoch is an older one."""
    lines = [f"sentinel monitor {MASTER_NAME} 127.0.0.1 {free_port()} 1"]
    await sentinel_set.failover()  # there was another master, so the epoch has risen
    async with RedisServer(arguments=["--sentinel"], lines=lines) as stale:
        sentinels = Sentinels(_dialer(addrs=(stale.addr, *sentinel_set.addrs), sentinel=MASTER_NAME))
        for _ in range(5):
            sentinels.moved(None)
            assert await sentinels.master() == ("127.0.0.1", (await sentinel_set.master()).port)


async def test_one_sentinel_that_is_left_is_enough(sentinel_set: SentinelSet) -> None:
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    sentinels = Sentinels(_dialer(addrs=(*dead, sentinel_set.addrs[0]), sentinel=MASTER_NAME))
    assert await sentinels.master() == ("127.0.0.1", (await sentinel_set.master()).port)


async def test_a_master_that_no_sentinel_knows_is_named(sentinel_set: SentinelSet) -> None:
    with pytest.raises(RedisConnectionError, match=r"no Sentinel knows a master called nobody: 127\.0\.0\.1:"):
        await Sentinels(_dialer(addrs=tuple(sentinel_set.addrs), sentinel="nobody")).master()


@pytest.mark.parametrize("sentinel", ["", MASTER_NAME], ids=["cluster", "sentinels"])
async def test_who_waits_for_servers_that_do_not_answer_is_told_together(sentinel: str) -> None:
    """One after the other, the last of ten would wait for ten seconds."""
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addrs = tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)
    topology = topology_of(_dialer(addrs=addrs, sentinel=sentinel))
    try:
        began = time.monotonic()
        failures = await asyncio.gather(*(topology.owners(["a"]) for _ in range(10)), return_exceptions=True)
        assert time.monotonic() - began < 2 * CONNECT_SECONDS
        assert [type(failure) for failure in failures] == [RedisConnectionError] * 10
        assert len({id(failure) for failure in failures}) == 10, "each has a traceback of its own"
    finally:
        for one in silent:
            one.close()


async def test_a_failure_is_soon_forgotten(sentinel_set: SentinelSet) -> None:
    """At once when others say that there is something new."""
    sentinels = Sentinels(_dialer(addrs=tuple(sentinel_set.addrs), sentinel=MASTER_NAME))
    ask, sentinels._known._ask = sentinels._known._ask, failing
    for surely in (True, False):
        with pytest.raises(RedisConnectionError):
            await sentinels.master()
        sentinels._known._ask = ask
        with pytest.raises(RedisConnectionError):
            await sentinels.master()
        if surely:
            sentinels.moved(None)
        else:
            await asyncio.sleep(1.1 * FRESH_SECONDS)
        assert await sentinels.master() == ("127.0.0.1", (await sentinel_set.master()).port)
        sentinels.moved(None)
        sentinels._known._ask = failing


async def failing() -> None:
    raise RedisConnectionError("nobody answers")


async def test_an_answer_from_before_a_switch_is_not_kept(sentinel_set: SentinelSet) -> None:
    sentinels = Sentinels(_dialer(addrs=tuple(sentinel_set.addrs), sentinel=MASTER_NAME))
    asked = 0
    ask = sentinels._known._ask

    async def counted() -> Any:
        nonlocal asked
        asked += 1
        return await ask()

    sentinels._known._ask = counted
    first = asyncio.create_task(sentinels.master())
    await until(lambda: asked == 1, pause_seconds=0, what="the look")
    sentinels.moved(None)
    assert await sentinels.master() == await first
    assert asked == 2
