"""Calls of scripts, in order, over one connection: those that are waiting share a round trip. It owns deadlines and
repeats, and knows nothing of what the scripts do, but that repeating one is harmless.

A call that was sent and not answered before the connection broke is sent again on the next, ahead of later ones. While
Redis is out of reach calls wait a moment for it, then fail; once it has been away for that moment they fail at once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from sse_broker.errors import Unavailable
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, RedisConnection
from sse_broker.redis_keys import shard_key
from sse_broker.redis_member_scripts import PROBE
from sse_broker.redis_script import Script
from sse_broker.redis_scripts import ALL

log = logging.getLogger(__name__)

BATCH_CALLS = 128
REPLY_SECONDS = 2.0
CALL_SECONDS = 2.0
PATIENCE_SECONDS = 1.0
MAX_WAITING = 20_000
RECONNECT_SECONDS = (0.05, 0.5)
CLOSING = "the broker is closing"


@dataclass(slots=True)
class _Call:
    """A call that waits; `sent` are its arguments once it was sent, the same at each repetition."""

    script: Script
    arguments: Callable[[], Sequence[Any]]
    answer: "asyncio.Future[Any] | None"
    then: Callable[[Any], None] = lambda answer: None
    sent: Sequence[Any] | None = None
    ahead: bool = False


class Lane:
    """One ordered way to Redis. `start` and `close` own its task.

    How many calls wait is bounded for `call` and `begin`; who uses `post` keeps its own bound.
    """

    def __init__(
        self,
        client: RedisClient,
        on_connect: Callable[[], None] = lambda: None,
        probe: Callable[[], Sequence[Any]] = lambda: ("", 0),
    ) -> None:
        self._client = client
        self._on_connect = on_connect
        self._probe = probe
        self._waiting: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: RedisConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._posted = 0
        self._away_since: float | None = None
        self._answered_at = 0.0
        self._closed = False
        self.reconnects = 0
        self.round_trips = 0
        self.round_trip_seconds = 0.0

    async def start(self) -> None:
        """Connect and begin to carry out calls. Raises: one of FAILURES."""
        await self._connect()
        self._task = asyncio.create_task(self._run(), name="redis lane")

    async def flush(self, seconds: float) -> None:
        """Return when nothing waits, or after this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d changes did not reach Redis", len(self._waiting))

    async def close(self) -> None:
        """End the task; calls that wait fail, and so do later ones."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.drop()
        for one in self._waiting:
            _fail(one, CLOSING)

    @property
    def answers(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._connection is not None and self._away_since is None

    async def call(self, script: Script, *arguments: Any) -> Any:
        """Carry out a script and return its answer. Raises: Unavailable within seconds."""
        return await self.begin(script, lambda: arguments)

    def begin(
        self, script: Script, arguments: Callable[[], Sequence[Any]], *, ahead: bool = False
    ) -> "asyncio.Future[Any]":
        """Like `call`, with arguments that are asked for when they are first sent, so that what comes until then can go with
        them. With `ahead` it passes, when more waits than one batch, what was not sent yet: in a storm of joins a send took
        5 s, and a heartbeat that is as late looks like death. Raises: Unavailable, here or from the future.
        """
        if self._closed:
            raise Unavailable(CLOSING)
        away = self._away_since is not None and time.monotonic() - self._away_since > PATIENCE_SECONDS
        if away:
            raise Unavailable("Redis is out of reach; try again")
        if len(self._waiting) - self._posted > MAX_WAITING:
            raise Unavailable("more is asked of Redis than it does; try again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        one = _Call(script, arguments, answer, ahead=ahead and len(self._waiting) > BATCH_CALLS)
        self._add(one)
        deadline = loop.call_later(CALL_SECONDS, self._overdue, one)
        answer.add_done_callback(lambda _: deadline.cancel())
        return answer

    def post(self, script: Script, *arguments: Any, then: Callable[[Any], None] = lambda answer: None) -> None:
        """Carry out a script some time, in order, however long it takes; then give its answer to `then`."""
        self._posted += 1
        self._add(_Call(script, lambda: arguments, None, then))

    def _add(self, one: _Call) -> None:
        if one.ahead:
            unsent = (at for at, other in enumerate(self._waiting) if other.sent is None and not other.ahead)
            self._waiting.insert(next(unsent, len(self._waiting)), one)
        else:
            self._waiting.append(one)
        self._idle.clear()
        self._wanted.set()

    async def _run(self) -> None:
        pause = RECONNECT_SECONDS[0]
        while True:
            try:
                if self._connection is None:
                    await self._connect()
                await self._wanted.wait()
                await self._round(self._connection)
                pause = RECONNECT_SECONDS[0]
                continue
            except FAILURES as error:
                self._lost(error)
            except Exception:
                log.exception("a batch of calls failed")
                self._lost(RedisError("unexpected"))
                for one in self._waiting:
                    _fail(one, "something went wrong between broker and Redis")
                self._waiting.clear()
                self._posted = 0
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_SECONDS[1])

    async def _round(self, connection: RedisConnection | None) -> None:
        """Carry out what waits, as one batch."""
        assert connection is not None
        batch = self._next_batch()
        if batch:
            sent_at = time.monotonic()
            replies = await connection.call([_command(one) for one in batch], REPLY_SECONDS)
            self._answered_at = time.monotonic()
            self.round_trips += 1
            self.round_trip_seconds += time.monotonic() - sent_at
            for one, reply in zip(batch, replies, strict=True):
                if isinstance(reply, NoScriptError):
                    # Someone emptied the script cache. What follows in the batch may have been carried out, and is again,
                    # behind this one: the order is part of what was promised, and repeating is harmless.
                    await _load_scripts(connection, {one.script, *ALL})
                    return
                if _means_elsewhere(reply):
                    raise reply
                self._waiting.popleft()
                self._posted -= one.answer is None
                _settle(one, reply)
        if not self._waiting:
            self._wanted.clear()
            self._idle.set()

    def _next_batch(self) -> list[_Call]:
        """Return the first calls that somebody waits for still, or that were posted; they stay where they are."""
        batch: list[_Call] = []
        while self._waiting and len(batch) < BATCH_CALLS:
            one = self._waiting.popleft()
            if not _is_given_up(one):
                batch.append(one)
        self._waiting.extendleft(reversed(batch))
        return batch

    async def _connect(self) -> None:
        connection = await self._client.connect()
        try:
            await _load_scripts(connection, ALL)
            # Ahead of everything else. A replica, or a server whose slot is just moving, lets us in and then refuses all.
            (reply,) = await connection.call([_command(_Call(PROBE, self._probe, None))], REPLY_SECONDS)
            if isinstance(reply, RedisError):
                raise reply
        except BaseException:
            connection.drop()
            raise
        self._client.rely_on(connection)
        self._connection = connection
        if self._away_since is not None:
            log.info("Redis is back after %.1f s", time.monotonic() - self._away_since)
            self.reconnects += 1
        self._away_since = None
        self._on_connect()

    def _lost(self, error: BaseException) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("Redis is out of reach: %s", str(error) or type(error).__name__)
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        self._client.moved(error)
        self._drop_given_up()

    def _overdue(self, one: _Call) -> None:
        """Fail a call that has waited too long; while others are answered before it, its turn will come: 15,000 joins at
        once take longer than the answer to one may.
        """
        busy = self._away_since is None and time.monotonic() - self._answered_at < PATIENCE_SECONDS
        if busy and not _is_given_up(one):
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._overdue, one)
        else:
            _fail(one, "Redis does not answer; try again")

    def _drop_given_up(self) -> None:
        """Forget calls that nobody waits for any more; posted ones keep their places."""
        kept = [one for one in self._waiting if not _is_given_up(one)]
        if len(kept) < len(self._waiting):
            self._waiting = deque(kept)


def _command(one: _Call) -> tuple[Any, ...]:
    if one.sent is None:
        one.sent = one.arguments()
    return ("EVALSHA", one.script.sha, 1, shard_key("id"), *one.sent)


async def _load_scripts(connection: RedisConnection, scripts: Iterable[Script]) -> None:
    for reply in await connection.call([("SCRIPT", "LOAD", script.text) for script in scripts], REPLY_SECONDS):
        if isinstance(reply, RedisError):
            raise reply


def _means_elsewhere(reply: object) -> bool:
    """Tell whether an error says that this server can not answer now and another, or the same later, will."""
    if isinstance(reply, MovedError | ReadOnlyError | ClusterDownError | MasterDownError | RedisConnectionError):
        return True
    # Within a script a key that is being moved to another server, and errors wrapped by the script engine.
    words = (
        "READONLY",
        "NOREPLICAS",
        "MISCONF",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "MOVED",
        "TRYAGAIN",
        "ASK ",
        "non local key",
        "UNBLOCKED",
    )
    return isinstance(reply, ResponseError) and any(word in str(reply) for word in words)


def _is_given_up(one: _Call) -> bool:
    return one.answer is not None and one.answer.done()


def _settle(one: _Call, reply: Any) -> None:
    if isinstance(reply, RedisError):
        log.error("Redis refused %s: %s", one.script.name, reply)
        _fail(one, "Redis refused; the log says why")
    elif one.answer is None:
        one.then(reply)
    elif not one.answer.done():
        one.answer.set_result(reply)


def _fail(one: _Call, message: str) -> None:
    if one.answer is not None and not one.answer.done():
        one.answer.set_exception(Unavailable(message))
