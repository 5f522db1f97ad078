"""Connections to Redis, whatever kind it is: standalone, Sentinel or Cluster. It hides the kind, and knows nothing of what is
said over a connection.

The shard's connections are raw ones of redis-py, without its retries: a command that may have been carried out must not
be sent again by anyone who does not know whether that is harmless. `redis_lane` does.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from sse_broker.config import RedisConfig
from sse_broker.redis_keys import shard_key

CONNECT_SECONDS = 1.0
# For the client of keys outside the shard: batches of renewals that nobody waits for.
REPLY_SECONDS = 5.0
# SO_LINGER: on close drop what is unsent, and reset the connection.
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
# How exact the deadline of a reply is.
RESCHEDULE_SECONDS = 0.05
# What connecting, or a connection, may fail with.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError, EOFError)
# What no waiting mends.
REFUSALS = (AuthenticationError, AuthorizationError, NoPermissionError)


class RedisClient:
    """Gives connections to the shard's present master, and one client for keys in all slots."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._options: dict[str, Any] = {
            "username": config.username or None,
            "password": config.password or None,
            "protocol": 2,
            "socket_connect_timeout": CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
        }
        if config.tls:
            self._options["ssl"] = True
        self._sentinel: Sentinel | None = None
        self._spread: Redis | RedisCluster | None = None

    async def connect(self) -> AbstractConnection:
        """Return a new connection to the master that has the shard; the caller disconnects it. Raises: one of FAILURES."""
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            host, port = await self._master()
            options = {name: value for name, value in self._options.items() if name != "ssl"}
            kind = SSLConnection if self._config.tls else Connection
            connection = kind(host=host, port=port, db=self._config.db, socket_timeout=None, **options)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                _reset_on_close(connection)
            except BaseException:
                await disconnect(connection)
                raise
            return connection

    @property
    def is_cluster(self) -> bool:
        """Whether keys are on several servers."""
        return self._config.is_cluster

    def spread(self) -> "Redis | RedisCluster":
        """Return the client for keys outside the shard."""
        if self._spread is None:
            self._spread = self._make_spread()
        return self._spread

    async def moved(self) -> None:
        """Forget where the shard's master is: it has answered that it is not the one."""
        if isinstance(self._spread, RedisCluster):
            with suppress(*FAILURES):
                await self._spread.aclose()

    async def close(self) -> None:
        """Close every connection that is not the caller's."""
        if self._spread is not None:
            await self._spread.aclose()
        if self._sentinel is not None:
            for one in self._sentinel.sentinels:
                await one.aclose()

    async def _master(self) -> tuple[str, int]:
        if self._config.sentinel:
            host, port = await self._sentinels().discover_master(self._config.sentinel)
            return str(host), int(port)
        if not self._config.is_cluster:
            return self._config.addresses[0]
        cluster = self.spread()
        assert isinstance(cluster, RedisCluster)
        await cluster.initialize()
        node = cluster.get_node_from_key(shard_key("id"))
        if node is None:
            raise RedisClusterException("no server has the slot of the broker's keys")
        return str(node.host), int(node.port)

    def _sentinels(self) -> Sentinel:
        if self._sentinel is None:
            # Sentinels speak without TLS and user unless they are set up as the servers are; redis-py passes these on.
            options = self._options | {"socket_timeout": CONNECT_SECONDS}
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                list(self._config.addresses),
                sentinel_kwargs=_without_login(options),
                **options,
            )
        return self._sentinel

    def _make_spread(self) -> "Redis | RedisCluster":
        options = self._options | {"socket_timeout": REPLY_SECONDS}
        if self._config.sentinel:
            master: Redis = self._sentinels().master_for(self._config.sentinel, db=self._config.db)
            return master
        if self._config.is_cluster:
            nodes = [ClusterNode(host, port) for host, port in self._config.addresses]
            return RedisCluster(startup_nodes=nodes, **options | {"retry": Retry(NoBackoff(), 1)})
        host, port = self._config.addresses[0]
        ssl = options.pop("ssl", False)
        pool = ConnectionPool(
            connection_class=SSLConnection if ssl else Connection,
            host=host,
            port=port,
            db=self._config.db,
            max_connections=self._config.pool_size or None,
            **options,
        )
        return Redis.from_pool(pool)


async def disconnect(connection: AbstractConnection) -> None:
    """Drop a connection, at once and whatever its state; what was not sent yet never will be.

    A close would go on sending, and the kernel after it: a call could be carried out long after it was given up.
    """
    with suppress(Exception):
        if connection._writer is not None:
            connection._writer.transport.abort()
        await connection.disconnect(nowait=True)


async def call(connection: AbstractConnection, commands: Sequence[Sequence[Any]], seconds: float) -> list[Any]:
    """Send commands together and return their replies; one that Redis refused is its exception, in its place.

    `seconds` may pass until they are sent, and again until each reply. Raises: one of FAILURES when the connection does; then it is of no more use, and what was carried out is unknown.
    """
    replies: list[Any] = []
    loop = asyncio.get_running_loop()
    writer = connection._writer
    if writer is None:
        raise RedisConnectionError("not connected")
    async with asyncio.timeout(seconds) as deadline:
        # Not by `send_packed_command`: when interrupted it closes the connection, which goes on sending in the background.
        # And packed by hiredis: 6 µs for a command of 18 arguments, where redis-py takes 34.
        writer.write(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))
        await writer.drain()
        since = loop.time()
        for _ in commands:
            now = loop.time()
            if (
                now - since > RESCHEDULE_SECONDS
            ):  # a timer for each of 128 replies that are there already would cost 3 µs each
                since = now
                deadline.reschedule(now + seconds)
            try:
                replies.append(await connection.read_response(disconnect_on_error=False))
            except RedisError as error:
                if not connection.is_connected or not _is_reply(error):
                    raise
                replies.append(error)
    return replies


def _reset_on_close(connection: AbstractConnection) -> None:
    """Have the kernel drop what is unsent when the connection is dropped."""
    sock = connection._writer.get_extra_info("socket") if connection._writer is not None else None
    if sock is not None:
        with suppress(OSError, ValueError):  # closed by now
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def _is_reply(error: RedisError) -> bool:
    # LOADING comes as a connection error, although the connection is well.
    return isinstance(error, ResponseError) or (isinstance(error, RedisConnectionError) and "LOADING" in str(error))


def _without_login(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("username", "password")}
