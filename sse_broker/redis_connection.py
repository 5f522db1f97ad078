"""A connection to one Redis server: dialled, used for several commands at once, dropped. It knows how to get in (user, password,
TLS) and how replies and failures look, and nothing of which server to ask or what is said.

redis-py connects and logs in; then its transport is taken over. So there are none of its retries: a command that may have
been carried out must not be sent again by anyone who does not know whether that is harmless, and `redis_lane` does. And a
round trip costs 60 µs less than through its streams and readers, each a coroutine of its own.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
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
# Replies that nobody waits for yet: messages of a subscription.
MAX_UNASKED = 1_000
# What connecting, or a connection, may fail with.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError, EOFError)
# What no waiting mends.
REFUSALS = (AuthenticationError, AuthorizationError, NoPermissionError)
_INCOMPLETE = object()


class RedisConnection(asyncio.Protocol):
    """One connection; one at a time calls or waits. `drop` ends it, whatever its state."""

    def __init__(self, connection: AbstractConnection) -> None:
        writer = connection._writer
        if writer is None or writer.transport.is_closing():
            raise RedisConnectionError("the connection is lost")
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._transport = writer.transport
        parse_error = connection._parser.parse_error
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_INCOMPLETE)
        self._replies: list[Any] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._seconds = 0.0
        self._heard_at = 0.0
        self._lost: BaseException | None = None
        self._transport.set_protocol(self)

    @classmethod
    async def dial(cls, config: RedisConfig, address: Address, *, sentinel: bool = False) -> Self:
        """Return a new connection to a server; the caller drops it. Raises: one of FAILURES.

        `sentinel`: it is one, which may or may not want the same user and password as the servers: they are offered, and it
        is no failure when it wants none.
        """
        connection = _connection(config, address, sentinel=sentinel)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
            _reset_on_close(connection)
            self = cls(connection)
            if sentinel and config.password:
                login = [name for name in (config.username, config.password) if name]
                await self.call([("AUTH", *login)], CONNECT_SECONDS)
        except BaseException:
            _end(connection)
            raise
        return self

    @property
    def is_open(self) -> bool:
        """Whether it can be used, as far as is known here."""
        return self._lost is None and not self._transport.is_closing()

    def drop(self) -> None:
        """Close at once; what was not sent yet never will be, and whoever waits sees it fail.

        A close would go on sending, and the kernel after it: a call could be carried out long after it was given up.
        """
        self._fail(RedisConnectionError("the connection was dropped"))

    async def call(self, commands: Sequence[Sequence[Any]], seconds: float) -> list[Any]:
        """Send commands together and return their replies; one that Redis refused is its exception, in its place.

        `seconds` may pass until the first reply, and again until each next. Raises: one of FAILURES when the connection
        does; then it is of no more use, and what was carried out is unknown.
        """
        self.send(commands)
        replies = await self._take(len(commands), seconds)
        for reply in replies:
            if isinstance(reply, RedisError) and not _is_reply(reply):
                raise reply
        return replies

    def send(self, commands: Sequence[Sequence[Any]]) -> None:
        """Begin to send commands. Raises: ConnectionError of redis."""
        if self._lost is not None or self._transport.is_closing():  # to which uvloop would write with a RuntimeError
            raise RedisConnectionError("the connection is lost")
        # Packed by hiredis: 6 µs for a command of 18 arguments, where redis-py takes 34.
        self._transport.write(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))

    async def next(self, seconds: float) -> Any:
        """Return the next message of a subscription, or reply to what was sent. Raises: one of FAILURES; after a TimeoutError
        it is as good as before.
        """
        return (await self._take(1, seconds))[0]

    async def _take(self, count: int, seconds: float) -> list[Any]:
        if len(self._replies) < count:
            if self._lost is not None:
                raise RedisConnectionError("the connection is lost") from self._lost
            self._wanted, self._seconds, self._heard_at = count, seconds, self._loop.time()
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._overdue, self._waiter)
            self._waiter.add_done_callback(lambda _: timer.cancel())
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._replies = self._replies[:count], self._replies[count:]
        return taken

    def _overdue(self, waiter: "asyncio.Future[None]") -> None:
        """Give up waiting, if nothing came for so long; a timer for each of 128 replies would cost 3 µs each."""
        left = self._heard_at + self._seconds - self._loop.time()
        if waiter.done():
            return
        if left <= 0:
            waiter.set_exception(TimeoutError(f"no answer for {self._seconds:g} s"))
            return
        timer = self._loop.call_later(left, self._overdue, waiter)
        waiter.add_done_callback(lambda _: timer.cancel())

    def _fail(self, error: BaseException) -> None:
        if self._lost is None:
            self._lost = error
            _end(self._connection)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    # --- asyncio.Protocol ---

    def data_received(self, data: bytes) -> None:
        """Take replies; they are handed on when all that is waited for are there."""
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._replies.append(reply)
        except RedisError as error:
            self._fail(error)
            return
        waiter = self._waiter
        if waiter is None:
            if len(self._replies) > MAX_UNASKED:
                self._fail(RedisConnectionError("more came than was asked for"))
        elif len(self._replies) >= self._wanted and not waiter.done():
            waiter.set_result(None)

    def connection_lost(self, error: BaseException | None) -> None:
        """Tell whoever waits."""
        self._fail(RedisConnectionError(str(error) if error else "Redis closed the connection"))


def _connection(config: RedisConfig, address: Address, *, sentinel: bool) -> AbstractConnection:
    kind = SSLConnection if config.tls else Connection
    # What redis-py says after connecting is refused by a Sentinel that wants a password, and it wants to know none by itself.
    options: dict[str, Any] = {"redis_connect_func": _say_nothing}
    if not sentinel:
        options = {"db": config.db, "username": config.username or None, "password": config.password or None}
    return kind(
        host=address[0],
        port=address[1],
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


def _say_nothing(connection: AbstractConnection) -> None:
    connection._parser.on_connect(connection)  # type: ignore[no-untyped-call]


def _end(connection: AbstractConnection) -> None:
    with suppress(Exception):
        if connection._writer is not None:
            connection._writer.transport.abort()
        connection._close()  # type: ignore[no-untyped-call]  # or it complains of having been left open


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
