"""What changes while devices are online: last touch and last frame id, in a hash for each, renewed in batches with its TTL.
Nobody waits for a renewal, and one that fails is made up for by the next.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sse_broker.backend import Presence
from sse_broker.errors import Unavailable
from sse_broker.frame import MAX_ID
from sse_broker.presence import Device, Touch
from sse_broker.redis_client import FAILURES, REPLY_SECONDS, RedisClient, call, disconnect
from sse_broker.redis_entries import check_time
from sse_broker.redis_keys import touch

log = logging.getLogger(__name__)

TTL_HEARTBEATS = 3.5
# In one command, so that Redis is not held up for more than a millisecond.
BATCH_DEVICES = 250
# Renewals that wait while Redis is away; older ones are of no use then.
MAX_WAITING = 50_000


# KEYS: the hashes. ARGV: their TTL in ms, then time and last frame id for each. A key that someone put there with another
# type is left alone; any other error is the server's, and the answer.
RENEW = """
local trouble
for i, key in ipairs(KEYS) do
  local reply = redis.pcall('HSET', key, 'time', ARGV[2 * i], 'last_frame_id', ARGV[2 * i + 1])
  if type(reply) ~= 'table' then redis.call('PEXPIRE', key, ARGV[1])
  elseif not string.find(reply.err, 'WRONGTYPE') then trouble = reply end
end
return trouble or #KEYS
"""


class Touches:
    """Reads and writes the hashes of touches. `start` and `close` own its task."""

    def __init__(self, client: RedisClient, heartbeat_seconds: float) -> None:
        self._client = client
        self._ttl_ms = int(TTL_HEARTBEATS * heartbeat_seconds * 1000)
        self._waiting: dict[str, Presence] = {}
        self._wanted = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="touches")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._disconnect()

    def renew(self, presences: Sequence[Presence]) -> None:
        """Have these written soon."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.update({presence.device.connection_id: presence for presence in presences})
            self._wanted.set()

    async def presences(self, devices: Sequence[Device]) -> list[Presence]:
        """Return devices with their touches; one that was not renewed yet was touched at its login. Raises: Unavailable."""
        pipe = self._client.spread().pipeline(transaction=False)
        for device in devices:
            pipe.hmget(touch(device.device_id, device.connection_id), "time", "last_frame_id")
        try:
            rows = await pipe.execute(raise_on_error=False) if devices else []
        except FAILURES:
            raise Unavailable("Redis is out of reach; try again") from None
        return [Presence(device, _touch(device, row)) for device, row in zip(devices, rows, strict=True)]

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            batch = [self._waiting.pop(key) for key in list(self._waiting)[:BATCH_DEVICES]]
            if not self._waiting:
                self._wanted.clear()
            try:
                await (self._write_spread(batch) if self._client.is_cluster else self._write(batch))
            except FAILURES as error:
                log.debug("presence is not renewed: %s", error)
                await self._disconnect()
                await asyncio.sleep(1)
            except Exception:
                log.exception("presence is not renewed")
                await self._disconnect()
                await asyncio.sleep(1)

    async def _write(self, batch: Sequence[Presence]) -> None:
        """Renew on a single server, with one command for all; a pipeline of redis-py took 110 µs a device."""
        if self._connection is None:
            self._connection = await self._client.connect()
        keys: list[str] = []
        values: list[Any] = []
        for presence in batch:
            keys.append(touch(presence.device.device_id, presence.device.connection_id))
            values += [repr(presence.touch.time), presence.touch.last_frame_id]
        command = ("EVAL", RENEW, len(keys), *keys, self._ttl_ms, *values)
        (reply,) = await call(self._connection, [command], REPLY_SECONDS)
        if isinstance(reply, RedisError):
            raise reply

    async def _write_spread(self, batch: Sequence[Presence]) -> None:
        """Renew on a cluster, where each key may have another server."""
        pipe = self._client.spread().pipeline(transaction=False)
        for presence in batch:
            key = touch(presence.device.device_id, presence.device.connection_id)
            touched = presence.touch
            pipe.hset(key, items=["time", repr(touched.time), "last_frame_id", touched.last_frame_id])
            pipe.pexpire(key, self._ttl_ms)
        await pipe.execute(raise_on_error=False)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)


def _touch(device: Device, row: Sequence[bytes | None] | Exception) -> Touch:
    try:
        if isinstance(row, Exception):
            raise row
        return Touch(check_time(float(row[0] or device.login_time)), min(max(int(row[1] or 0), 0), MAX_ID))
    except (ValueError, RedisError):
        return Touch(device.login_time, 0)
