"""The way to Redis; what kinds there are is tried in tests/test_redis_kinds.py."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from sse_broker.config import RedisConfig
from sse_broker.redis_client import RedisClient
from tests.redis_servers import Access, RedisServer


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
