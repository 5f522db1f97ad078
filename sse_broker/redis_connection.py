"""A connection to one Redis server: dialled, used for several commands at once, dropped. It knows how to get in (user, password,
TLS) and how replies and failures look, and nothing of which server to ask or what is said.

redis-py gives the meaning of errors and, in C, the reader of replies; its connections are not used. They send again by
themselves what may have been carried out, which is harmless only to whoever knows that it is (`redis_lane` does); and a round
trip through their streams and readers, each a coroutine, takes 60 µs more.
"""

import asyncio
import socket
import ssl
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.connection import DefaultParser
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

from sse_broker.client_address import join_host_port
from sse_broker.config import RedisConfig

Address = tuple[str, int]

CONNECT_SECONDS = 1.0
LEAVE_SECONDS = 0.1
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

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._replies: list[Any] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._seconds = 0.0
        self._heard_at = 0.0
        self._lost: BaseException | None = None
        self._leaving = False

    @property
    def is_open(self) -> bool:
        """Whether it can be used, as far as is known here."""
        if self._lost is not None or self._leaving:
            return False
        return self._transport is not None and not self._transport.is_closing()

    def drop(self) -> None:
        """Close at once; what was not sent yet never will be, and whoever waits sees it fail.

        A close would go on sending, and the kernel after it: a call could be carried out long after it was given up.
        """
        self._fail(RedisConnectionError("the connection was dropped"))

    def leave(self) -> None:
        """Send nothing more, and drop once what was sent is answered, or will not be within `LEAVE_SECONDS`.

        For a server that works and is only to be used no longer: what it has carried out already would be done again elsewhere.
        """
        if self._waiter is None:
            self.drop()
        else:
            self._leaving = True
            self._loop.call_later(LEAVE_SECONDS, self.drop)

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
        if self._transport is None or not self.is_open:  # to a closing one uvloop would write with a RuntimeError
            raise RedisConnectionError("the connection is lost") from self._lost
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
            if self._transport is not None:
                self._transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have the kernel drop what is unsent when the connection is dropped."""
        self._transport = transport  # type: ignore[assignment]  # that of a connection is a Transport
        with suppress(OSError, ValueError):  # closed by now
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

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


class Dialer:
    """Makes connections with what the configuration says of getting in. The certificates that are trusted (`SSL_CERT_FILE`, or
    the system's) are read once, here: that takes 50 ms, in which the loop would stand still.
    """

    def __init__(self, config: RedisConfig) -> None:
        self.config = config
        self._tls = ssl.create_default_context() if config.tls else None

    async def dial(self, address: Address, *, sentinel: bool = False) -> RedisConnection:
        """Return a new connection to a server; the caller drops it. Raises: one of FAILURES.

        `sentinel`: it is one, which may or may not want the same user and password as the servers: they are offered, and it
        is no failure when it wants none.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(RedisConnection, *address, ssl=self._tls)
                try:
                    replies = await connection.call(_login(self.config, database=not sentinel), CONNECT_SECONDS)
                except BaseException:
                    connection.drop()
                    raise
        except OSError as error:  # a timeout is one
            reason = error.strerror or str(error) or f"no answer within {CONNECT_SECONDS:g} s"
            raise RedisConnectionError(f"{join_host_port(*address)}: {reason}") from error
        for reply in replies:
            if isinstance(reply, RedisError) and not sentinel:
                connection.drop()
                raise reply
        return connection


def _login(config: RedisConfig, *, database: bool) -> list[tuple[str | int, ...]]:
    """Return what is said first on a connection."""
    commands: list[tuple[str | int, ...]] = []
    if config.username:
        commands.append(("AUTH", config.username, config.password))
    elif config.password:
        commands.append(("AUTH", config.password))
    if database and config.db:
        commands.append(("SELECT", config.db))
    return commands


def _is_reply(error: RedisError) -> bool:
    # Some come as connection errors, although the connection is well.
    return isinstance(error, ResponseError | AuthenticationError) or (
        isinstance(error, RedisConnectionError) and "LOADING" in str(error)
    )
