"""A connection to one Redis server: dialled, used for several commands at once, dropped. It knows how to get in (user, password,
TLS) and how replies and failures look, and nothing of which server to ask or what is said.

They are raw connections of redis-py, without its retries: a command that may have been carried out must not be sent again by
anyone who does not know whether that is harmless. `redis_lane` does.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
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

Address = tuple[str, int]

CONNECT_SECONDS = 1.0
# SO_LINGER: on close drop what is unsent, and reset the connection.
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
# How exact the deadline of a reply is.
RESCHEDULE_SECONDS = 0.05
# What connecting, or a connection, may fail with.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError, EOFError)
# What no waiting mends.
REFUSALS = (AuthenticationError, AuthorizationError, NoPermissionError)


async def dial(config: RedisConfig, address: Address, *, sentinel: bool = False) -> AbstractConnection:
    """Return a new connection to a server; the caller disconnects it. Raises: one of FAILURES.

    `sentinel`: it is one, which may or may not want the same user and password as the servers: they are offered, and it is
    no failure when it wants none.
    """
    kind = SSLConnection if config.tls else Connection
    # What redis-py says after connecting is refused by a Sentinel that wants a password, and it wants to know none by itself.
    options: dict[str, Any] = {"redis_connect_func": _say_nothing}
    if not sentinel:
        options = {"db": config.db, "username": config.username or None, "password": config.password or None}
    connection = kind(
        host=address[0],
        port=address[1],
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()  # type: ignore[no-untyped-call]
        _reset_on_close(connection)
        if sentinel and config.password:
            login = [name for name in (config.username, config.password) if name]
            await call(connection, [("AUTH", *login)], CONNECT_SECONDS)
    except BaseException:
        await disconnect(connection)
        raise
    return connection


def _say_nothing(connection: AbstractConnection) -> None:
    connection._parser.on_connect(connection)  # type: ignore[no-untyped-call]


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
    async with asyncio.timeout(seconds) as deadline:
        await send(connection, commands).drain()
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


def send(connection: AbstractConnection, commands: Sequence[Sequence[Any]]) -> asyncio.StreamWriter:
    """Begin to send commands; return what tells how far that is. Raises: ConnectionError of redis."""
    writer = connection._writer
    if writer is None or writer.transport.is_closing():  # which uvloop would refuse with a RuntimeError
        raise RedisConnectionError("the connection is lost")
    # Not by `send_packed_command`: when interrupted it closes the connection, which goes on sending in the background.
    # And packed by hiredis: 6 µs for a command of 18 arguments, where redis-py takes 34.
    writer.write(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))
    return writer


def cut(connection: AbstractConnection) -> None:
    """Break a connection under whoever uses it, who sees it fail and drops it."""
    if connection._writer is not None:
        connection._writer.transport.abort()


def _reset_on_close(connection: AbstractConnection) -> None:
    """Have the kernel drop what is unsent when the connection is dropped."""
    sock = connection._writer.get_extra_info("socket") if connection._writer is not None else None
    if sock is not None:
        with suppress(OSError, ValueError):  # closed by now
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def _is_reply(error: RedisError) -> bool:
    # Some come as connection errors, although the connection is well.
    return isinstance(error, ResponseError | AuthenticationError) or (
        isinstance(error, RedisConnectionError) and "LOADING" in str(error)
    )
