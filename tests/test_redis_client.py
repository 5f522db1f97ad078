"""The way to Redis; what kinds there are is tried in tests/test_redis_kinds.py."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from sse_broker.config import RedisConfig
from sse_broker.redis_client import RedisClient
from tests.redis_servers import Access, RedisServer
from tests.waiting import until


async def test_certificates_are_read_once_and_not_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes 50 ms, in which the loop stands still, and a dozen servers may be asked at once."""
    read: list[object] = []
    create = ssl.create_default_context

    def counted(*arguments: Any) -> ssl.SSLContext:
        read.append(arguments)
        return create(*arguments)

    async with RedisServer(access=Access(password="sesame", tls=True)) as server:
        monkeypatch.setattr(ssl, "create_default_context", counted)
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        client = RedisClient(RedisConfig(addrs=(server.addr,), password="sesame", tls=True))
        (address,) = await client.owners(["any"])
        for connection in (await client.connect(), await client.connect(), await client.connect_to(address)):
            assert await connection.call([("PING",)], 5) == [b"PONG"]
            connection.drop()
        assert len(read) == 1


async def test_what_a_server_that_is_left_has_carried_out_is_answered_still(redis_server: RedisServer) -> None:
    """And so is not sent to the next, which would do it again. Of what it does not answer soon nothing is known."""
    client = RedisClient(RedisConfig(addrs=(redis_server.addr,)))
    answered, hanging, idle = [await client.connect() for _ in range(3)]
    soon = asyncio.create_task(answered.call([("INCR", "done"), ("BLPOP", "nothing", "0.03")], 5))
    never = asyncio.create_task(hanging.call([("BLPOP", "nothing", "30")], 60))
    await until(lambda: redis_server.ask("GET", "done"), what="the call in the middle")
    client._leave_all_but(("another", 1))
    assert not any(connection.is_open for connection in (answered, hanging, idle))
    with pytest.raises(RedisConnectionError):
        idle.send([("PING",)])
    with pytest.raises(RedisConnectionError):
        answered.send([("INCR", "done")])
    assert await soon == [1, None]
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(never, 5)
    assert await redis_server.ask("GET", "done") == "1"
