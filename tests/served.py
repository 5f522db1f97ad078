"""A whole broker inside the test's own process: any configuration, either backend, a real HTTP server on a free port.

Against `broker_process` it costs milliseconds, and a test can look at what the server holds. What the log says of
trouble fails the test.
"""

from __future__ import annotations

import logging
import socket
import time
import typing
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import jwt

from sse_broker.access import access_of
from sse_broker.backend import Backend
from sse_broker.config import Config
from sse_broker.gate import Gate
from sse_broker.http_server import HttpServer
from sse_broker.listener import public_address
from sse_broker.server import make_backend, make_broker, open_sockets
from sse_broker.web_api import Api
from tests.broker_process import SECRET, RedisKind
from tests.event_client import Api as ApiClient
from tests.event_client import EventClient
from tests.lifetimes import Lifetime

Tables = Mapping[str, Mapping[str, Any]]


def make_config(tables: Tables | None = None, redis: RedisKind | None = None) -> Config:
    """Return a configuration: the defaults, a free port, the tests' secret, a Redis if one is given, and `tables` over all."""
    given: dict[str, dict[str, Any]] = {"server": {"port": 0}, "jwt": {"secret": SECRET}}
    if redis is not None:
        given["redis"] = {**redis.config, "addrs": tuple(redis.config["addrs"])}
    for table, keys in (tables or {}).items():
        given.setdefault(table, {}).update(keys)
    kinds = typing.get_type_hints(Config)
    return Config(**{table: kinds[table](**keys) for table, keys in given.items()})


class Trouble(logging.Handler):
    """Keep what is logged as an error or with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record if it tells of trouble."""
        if record.levelno >= logging.ERROR or record.exc_info:
            self.lines.append(self.format(record))


class ServedBroker(Lifetime):
    """One instance with its HTTP server; use with `async with`. `api` calls its endpoints, with the first API key.

    `wrap` may put something between the broker and its backend. The fixture `both_ways` sets `short_way`.
    """

    short_way = True

    def __init__(
        self,
        tables: Tables | None = None,
        *,
        redis: RedisKind | None = None,
        wrap: Callable[[Backend], Backend] = lambda backend: backend,
    ) -> None:
        self.config = make_config(tables, redis)
        self.backend = wrap(make_backend(self.config))
        self.trouble = Trouble()
        self._steps: list[Callable[[], Awaitable[Any]]] = []

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if kind is None:
            self.assert_no_trouble()

    async def start(self) -> None:
        """Start everything."""
        logging.getLogger().addHandler(self.trouble)
        sockets = open_sockets(self.config)
        self._steps.append(partial(_closed, sockets))
        self.broker = make_broker(self.config, self.backend, public_address(sockets))
        self._steps.append(self.broker.close)
        await self.broker.start()
        self.gate = Gate(access_of(self.config))
        self.http = HttpServer(Api(self.broker, self.gate, self.config), short_way=self.short_way)
        self._steps.append(self.http.close)
        await self.http.start(sockets)
        keys = self.config.api.keys
        self.api = await ApiClient(self.base_url, keys[0] if keys else None).__aenter__()
        self._steps.append(self.api.close)

    async def stop(self) -> None:
        """End every stream as a shutdown does, and stop everything."""
        if self._steps:
            await self.broker.drain(2)
        while self._steps:
            await self._steps.pop()()
        logging.getLogger().removeHandler(self.trouble)

    def assert_no_trouble(self) -> None:
        """Check that nothing was logged as an error or with a traceback."""
        assert not self.trouble.lines, "\n".join(self.trouble.lines)

    def connection_count(self) -> int:
        """Return how many connections the HTTP server has, streams not among them."""
        server = self.http.runner.server
        assert server is not None
        return len(self.http.hall.doors) + len([one for one in server.connections if one.transport is not None])

    @property
    def address(self) -> str:
        """The instance address, `ip:port`."""
        return self.broker.instance.address

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    @property
    def base_url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://{self.address}"

    def mint(self, uid: str, device: str | None = None, *, ttl: float = 300, **claims: Any) -> str:
        """Make a token as a back end that shares the secret would."""
        now = time.time()
        claims = {"uid": uid, "iat": int(now), "exp": int(now + ttl)} | claims
        if device is not None:
            claims["device_name"] = device
        return jwt.encode(claims, self.config.jwt.secret, algorithm="HS256")

    def client(self, uid: str, device: str, **options: Any) -> EventClient:
        """Return a client with a fresh token, not yet connected; `options` are those of EventClient."""
        return EventClient(self.base_url, **{"token": self.mint(uid, device), "device": device} | options)


async def _closed(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


Serve = Callable[..., Awaitable[ServedBroker]]
