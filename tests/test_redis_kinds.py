"""The `[redis]` table (docs/contract.md, section 5): two brokers on every kind of Redis that it can name, tried from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sse_broker.errors import StartError
from tests.broker_process import RedisKind
from tests.redis_servers import Access, RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.served import ServedBroker

STANDALONE: dict[str, tuple[Access, dict[str, Any]]] = {
    "plain": (Access(), {}),
    "password": (Access(password="sesame-1"), {}),
    "user": (Access(username="broker", password="sesame-2"), {}),
    "tls": (Access(password="sesame-3", tls=True), {}),
    "database": (Access(), {"db": 3, "pool_size": 4}),
}


async def try_it(redis: RedisKind, more: dict[str, Any] | None = None) -> None:
    """Connect, send, move to the other broker, miss and catch up, be kicked."""
    tables = {"redis": more or {}}
    async with ServedBroker(tables, redis=redis) as one, ServedBroker(tables, redis=redis) as two:
        async with one.client("u", "d") as client:
            assert (await two.api.send("1", uid="u")).result == 1
            assert (await client.next_frame()).data == "1"
            last_id = client.last_id
            assert (await two.api.info()).result["instance_count"] == 2
        assert (await one.api.send("2", device="d")).status == 200
        assert (await two.api.send("3")).status == 200
        async with two.client("u", "d", last_id=last_id) as client:
            assert [(await client.next_frame()).data for _ in range(2)] == ["2", "3"]
            assert (await one.api.info(device="d")).result["instance_address"] == two.address
            assert (await one.api.kick(device="d", data="bye")).result == 1
            assert (await client.next_event("sys_kick_offline")).data == "bye"


@pytest.fixture(params=STANDALONE)
async def standalone(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RedisServer, dict[str, Any]]]:
    """A server, and what the configuration says besides its address."""
    access, more = STANDALONE[request.param]
    async with RedisServer(access=access) as server:
        yield server, more


async def test_one_address_is_a_standalone_redis(
    standalone: tuple[RedisServer, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a password, as a user, over TLS, in another database."""
    server, more = standalone
    if server.access.tls:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
    await try_it(server, more)
    if "db" in more:
        info = await server.ask("INFO", "keyspace")
        assert set(info) == {"db3"}


SETS: dict[str, tuple[Access, bool]] = {
    "password": (Access(password="sesame-4"), False),
    "password, Sentinels too": (Access(password="sesame-5"), True),
    "user, Sentinels too, TLS": (Access(username="broker", password="sesame-6", tls=True), True),
}
ACCESSES: dict[str, Access] = {
    "password": Access(password="sesame-7"),
    "user, TLS": Access(username="broker", password="sesame-8", tls=True),
}


async def test_with_a_master_name_the_addresses_are_sentinels(sentinel_set: SentinelSet) -> None:
    await try_it(sentinel_set)


@pytest.mark.parametrize("kind", SETS)
async def test_sentinels_and_their_servers_may_want_a_password(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the servers is offered to Sentinels; those that want none do not mind."""
    access, guarded = SETS[kind]
    async with SentinelSet(access=access, guarded=guarded) as servers:
        if access.tls:
            monkeypatch.setenv("SSL_CERT_FILE", str(servers.ca_file))
        await try_it(servers)


async def test_several_addresses_are_a_redis_cluster(redis_cluster: RedisCluster) -> None:
    await try_it(redis_cluster)


@pytest.mark.parametrize("kind", ACCESSES)
async def test_a_redis_cluster_may_want_a_password(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RedisCluster(access=ACCESSES[kind]) as servers:
        if servers.access.tls:
            monkeypatch.setenv("SSL_CERT_FILE", str(servers.ca_file))
        await try_it(servers)


@pytest.fixture(params=["valkey_server", "valkey_sentinel_set", "valkey_cluster"])
def valkeys(request: pytest.FixtureRequest) -> RedisServer | SentinelSet | RedisCluster:
    """Each kind of servers, of Valkey."""
    servers: RedisServer | SentinelSet | RedisCluster = request.getfixturevalue(request.param)
    return servers


async def test_valkey_does_as_well(valkeys: RedisServer | SentinelSet | RedisCluster) -> None:
    server = valkeys if isinstance(valkeys, RedisServer) else valkeys.servers[0]
    assert "valkey_version" in await server.ask("INFO", "server")
    await try_it(valkeys)


async def test_a_wrong_password_stops_the_start() -> None:
    """With one sentence, without the password in it."""
    async with RedisServer(access=Access(password="sesame-1")) as server:
        broker = ServedBroker({"redis": {"password": "sesame-0"}}, redis=server)
        with pytest.raises(StartError) as caught:
            await broker.start()
        await broker.stop()
        assert "Redis" in caught.value.message
        assert "sesame" not in caught.value.message
        assert "\n" not in caught.value.message
