"""The bus: this instance's inbox, a stream in Redis, read by one task in the order in which the scripts wrote it. After any
disconnection it reads on from the last entry that it has, so nothing is lost and nothing comes twice.

Why one inbox with everything in it, broadcasts too, and not a shared stream of broadcasts beside it: a blocking XREAD that
watches two streams may answer with the one that was written first and leave out the other, so an id could overtake a lower
one. One stream has one order, for the price of one copy of a broadcast for each instance, trimmed as soon as it is read.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from sse_broker.backend import Receiver
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, RedisConnection
from sse_broker.redis_entries import DamagedEntry, entry_id, envelope_of
from sse_broker.redis_keys import inbox
from sse_broker.redis_script import INBOX_MAX

log = logging.getLogger(__name__)

BATCH_ENTRIES = 256
# Redis trims by whole nodes of so many: asking more often changes nothing.
TRIM_ENTRIES = 100
BLOCK_SECONDS = 2.0
# Without an answer for this long beyond the block, Redis is frozen or the network is half dead.
GRACE_SECONDS = 2.0
RECONNECT_SECONDS = (0.05, 1.0)


class Bus:
    """Reads one instance's inbox and hands its envelopes to a receiver. `start` and `close` own its task."""

    def __init__(
        self,
        client: RedisClient,
        instance_id: str,
        receiver: Receiver,
        put_right: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._put_right = put_right
        self._key = inbox(instance_id)
        self._receiver = receiver
        self._untrimmed = 0
        # As Redis wrote it, since an entry that is none of ours must not be read again and again either.
        self._last_entry = b"0-0"
        self._pause = RECONNECT_SECONDS[0]
        self._open = asyncio.Event()
        self._open.set()
        self._task: asyncio.Task[None] | None = None
        # Whether it is connected and hands on what comes.
        self.following = False
        self.last_id = 0
        self.damaged = 0
        # How old the last entry was when it was handed on, as far as the clocks of Redis and of this machine agree; 0 when
        # nothing waits.
        self.lag_seconds = 0.0

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name="redis bus")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def pause(self) -> None:
        """Hand nothing on until `resume`; what comes meanwhile stays in the inbox."""
        self._open.clear()

    def resume(self) -> None:
        """Go on behind the last envelope that was handed on."""
        self._open.set()

    async def _run(self) -> None:
        while True:
            trouble: Exception | None = None
            try:
                await self._follow()
            except FAILURES as error:
                log.debug("the bus is interrupted: %s", error)
                trouble = error
            except Exception:
                log.exception("the bus is interrupted")
            self._client.moved(trouble)
            await asyncio.sleep(self._pause * random.uniform(0.5, 1))
            self._pause = min(2 * self._pause, RECONNECT_SECONDS[1])

    async def _follow(self) -> None:
        """Connect, and read until the connection breaks. Raises: one of FAILURES."""
        connection = await self._client.connect()
        try:
            # A write, which a replica refuses; also where there may be nothing to trim.
            await self._do(connection, [("XTRIM", self._key, "MINID", "~", self.last_id)], GRACE_SECONDS)
            self._client.rely_on(connection)
            # If this server has lost routes of devices here, their frames are in the logs alone until the routes are back. A
            # broadcast that is handed on before would have a greater id, and the streams had to do without those frames.
            if self._put_right is not None:
                await self._put_right()
            self.following = True
            while True:
                await self._open.wait()
                await self._read(connection)
                self._pause = RECONNECT_SECONDS[0]
        finally:
            self.following = False
            connection.drop()

    async def _read(self, connection: RedisConnection) -> None:
        """Read a batch of entries, waiting for the first, and hand them on. What was read before is trimmed on the way."""
        commands: list[tuple[Any, ...]] = []
        if self._untrimmed >= TRIM_ENTRIES:
            commands.append(("XTRIM", self._key, "MINID", "~", self.last_id))
            self._untrimmed = 0
        block_ms = int(BLOCK_SECONDS * 1000)
        commands.append(("XREAD", "COUNT", BATCH_ENTRIES, "BLOCK", block_ms, "STREAMS", self._key, self._last_entry))
        reply = await self._do(connection, commands, BLOCK_SECONDS + GRACE_SECONDS)
        if not reply:
            self.lag_seconds = 0.0
            return
        entries = reply[0][1]
        self._untrimmed += len(entries)
        behind = len(entries) >= BATCH_ENTRIES and await self._fell_behind(connection)
        if not self._open.is_set():
            return
        if behind:
            log.warning("more frames came than an inbox holds; every stream reads on from the logs")
            self._receiver.missed(self.last_id)
        for entry in entries:
            self._hand_on(entry)
        self.lag_seconds = max(0.0, time.time() - self.last_id / 1e6)
        await self._receiver.room()

    @staticmethod
    async def _do(connection: RedisConnection, commands: Sequence[Sequence[Any]], seconds: float) -> Any:
        """Return the last reply. Raises: one of FAILURES, also for a command that Redis refused."""
        replies = await connection.call(commands, seconds)
        for reply in replies:
            if isinstance(reply, RedisError):
                raise reply
        return replies[-1]

    async def _fell_behind(self, connection: RedisConnection) -> bool:
        length = (await connection.call([("XLEN", self._key)], GRACE_SECONDS))[0]
        return isinstance(length, int) and length >= INBOX_MAX

    def _hand_on(self, entry: Any) -> None:
        self._last_entry = entry[0]
        try:
            self.last_id = max(self.last_id, entry_id(entry))
            self._receiver.receive(envelope_of(entry))
        except DamagedEntry as error:
            self.damaged += 1
            log.warning("an entry of the inbox is damaged and skipped: %s", error)
        except Exception:
            log.exception("an envelope could not be handed on")
