"""Commands for keys on many servers: each goes to its server, in order; what fails fails alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError, ResponseError

from sse_broker.config import RedisConfig
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES
from sse_broker.redis_spread import Spread
from sse_broker.redis_topology import slot_of
from tests.cutting_proxy import CuttingProxy
from tests.redis_servers import RedisServer
from tests.redis_sets import RedisCluster
from tests.waiting import free_port, until

KEYS = [f"key{number}" for number in range(30)]


@pytest.fixture
async def spread(redis_cluster: RedisCluster) -> AsyncIterator[Spread]:
    """A spread over a Cluster."""
    spread = Spread(RedisClient(RedisConfig(addrs=tuple(redis_cluster.addrs))), connections=2, seconds=2)
    yield spread
    spread.close()


async def test_each_command_goes_to_the_server_of_its_key_and_has_its_answer(spread: Spread) -> None:
    assert await spread.run(KEYS, [("SET", key, f"value of {key}") for key in KEYS]) == [b"OK"] * len(KEYS)
    assert await spread.run(KEYS, [("GET", key) for key in KEYS]) == [f"value of {key}".encode() for key in KEYS]
    assert await spread.run([], []) == []


async def test_a_command_that_is_refused_fails_alone(spread: Spread) -> None:
    replies = await spread.run(KEYS, [("INCR" if key != KEYS[3] else "WHAT", key) for key in KEYS])
    assert isinstance(replies.pop(3), ResponseError)
    assert replies == [1] * (len(KEYS) - 1)


async def test_connections_that_the_servers_have_closed_are_not_used_again(
    spread: Spread, redis_cluster: RedisCluster
) -> None:
    commands = [("SET", key, "x") for key in KEYS]
    await spread.run(KEYS, commands)
    idle = [connection for connections in spread._idle.values() for connection in connections]
    await redis_cluster.cut_clients()
    await until(lambda: not any(connection.is_open for connection in idle), what="the ends of the connections")
    assert await spread.run(KEYS, commands) == [b"OK"] * len(KEYS)


async def test_keys_that_have_moved_are_found_at_the_second_try(spread: Spread, redis_cluster: RedisCluster) -> None:
    key = KEYS[0]
    assert await spread.run([key], [("SET", key, "x")]) == [b"OK"]
    await redis_cluster.migrate_slot(slot_of(key))

    async def found() -> bool:
        (reply,) = await spread.run([key], [("GET", key)])
        assert reply == b"x" or isinstance(reply, RedisError)
        return reply == b"x"

    await until(found, seconds=3, what="the key")


async def test_a_server_that_does_not_answer_costs_no_more_than_the_time_for_it(redis_server: RedisServer) -> None:
    async with CuttingProxy(redis_server.port) as proxy:
        spread = Spread(RedisClient(RedisConfig(addrs=(proxy.addr,))), connections=2, seconds=0.3)
        assert await spread.run(["k"], [("SET", "k", "x")]) == [b"OK"]
        proxy.deaf = True
        (reply,) = await spread.run(["k"], [("GET", "k")])
        assert isinstance(reply, TimeoutError)
        assert not spread._idle["127.0.0.1", int(proxy.addr.rpartition(":")[2])], "it is not used again"
        proxy.deaf = False
        assert await spread.run(["k"], [("GET", "k")]) == [b"x"]
        spread.close()


async def test_a_server_that_is_not_there_is_each_command_s_failure() -> None:
    spread = Spread(RedisClient(RedisConfig(addrs=(f"127.0.0.1:{free_port()}",))), connections=1, seconds=1)
    replies = await spread.run(["a", "b"], [("GET", "a"), ("GET", "b")])
    assert all(isinstance(reply, FAILURES) for reply in replies)
    spread.close()
