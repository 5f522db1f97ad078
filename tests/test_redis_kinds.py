"""The `[redis]` table (CONTRACT section 5): two brokers on every kind of Redis that it can name, tried from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.broker_process import BrokerProcess, RedisKind
from tests.redis_servers import Access, RedisServer
from tests.redis_sets import RedisCluster, SentinelSet

RunBroker = Callable[..., Awaitable[BrokerProcess]]
STANDALONE: dict[str, tuple[Access, dict[str, Any]]] = {
    "plain": (Access(), {}),
    "password": (Access(password="sesame-1"), {}),
    "user": (Access(username="broker", password="sesame-2"), {}),
    "tls": (Access(password="sesame-3", tls=True), {}),
    "database": (Access(), {"db": 3, "pool_size": 4}),
}


async def try_it(run_broker: RunBroker, redis: RedisKind, more: Mapping[str, Any] | None = None) -> None:
    """Connect, send, move to the other broker, miss and catch up, be kicked."""
    one, two = [await run_broker({"redis": dict(more or {})}, redis=redis) for _ in range(2)]
    async with one.api() as api, two.api() as other:
        async with one.client("u", "d") as client:
            assert (await other.send("1", uid="u")).result == 1
            assert (await client.next_frame()).data == "1"
            last_id = client.last_id
            assert (await other.info()).result["instance_count"] == 2
        assert (await api.send("2", device="d")).status == 200
        assert (await other.send("3")).status == 200
        async with two.client("u", "d", last_id=last_id) as client:
            assert [(await client.next_frame()).data for _ in range(2)] == ["2", "3"]
            assert (await api.info(device="d")).result["instance_address"] == two.address
            assert (await api.kick(device="d", data="bye")).result == 1
            assert (await client.next_event("sys_kick_offline")).data == "bye"


@pytest.fixture(params=STANDALONE)
async def standalone(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RedisServer, dict[str, Any]]]:
    """A server, and what the configuration says besides its address."""
    access, more = STANDALONE[request.param]
    async with RedisServer(access=access) as server:
        yield server, more


async def test_one_address_is_a_standalone_redis(
    run_broker: RunBroker, standalone: tuple[RedisServer, dict[str, Any]]
) -> None:
    """With a password, as a user, over TLS, in another database."""
    server, more = standalone
    await try_it(run_broker, server, {**server.config, **more})
    if "db" in more:
        info = await server.ask("INFO", "keyspace")
        assert set(info) == {"db3"}


async def test_with_a_master_name_the_addresses_are_sentinels(run_broker: RunBroker, sentinel_set: SentinelSet) -> None:
    await try_it(run_broker, sentinel_set, sentinel_set.config)


async def test_several_addresses_are_a_redis_cluster(run_broker: RunBroker, redis_cluster: RedisCluster) -> None:
    await try_it(run_broker, redis_cluster, redis_cluster.config)


async def test_a_wrong_password_stops_the_start(run_broker: RunBroker) -> None:
    """Exit code 1 and one line, without the password in it."""
    async with RedisServer(access=Access(password="sesame-1")) as server:
        broker = BrokerProcess({"redis": {"password": "sesame-0"}}, redis=server)
        broker.config["redis"]["password"] = "sesame-0"
        broker.launch()
        try:
            assert await broker.wait() == 1
            last = broker.stderr_text().splitlines()[-1]
            assert last.startswith("sse-broker: ")
            assert "Redis" in last
            assert "sesame" not in broker.stderr_text()
            broker.assert_clean_output()
        finally:
            await broker.discard()
