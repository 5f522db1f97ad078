"""What changes while devices are online: last touch and last frame id, in a hash for each, renewed in batches with its TTL.
Nobody waits for a renewal, and one that fails is made up for by the next.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from sse_broker.backend import Presence
from sse_broker.errors import Unavailable
from sse_broker.frame import MAX_ID
from sse_broker.presence import Device, Touch
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES
from sse_broker.redis_entries import check_time
from sse_broker.redis_keys import touch
from sse_broker.redis_spread import Spread

log = logging.getLogger(__name__)

TTL_HEARTBEATS = 3.5
# In one command, so that Redis is not held up for more than a millisecond.
BATCH_DEVICES = 250
# Renewals that wait while Redis is away; older ones are of no use then.
MAX_WAITING = 50_000


# For a batch nobody waits, for an answer somebody does.
WRITE_SECONDS, READ_SECONDS = 5.0, 2.0
READ_CONNECTIONS = 4
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
# The same for one key, where each may have another server.
RENEW_ONE = """redis.call('HSET', KEYS[1], 'time', ARGV[2], 'last_frame_id', ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[1])"""


class Touches:
    """Reads and writes the hashes of touches. `start` and `close` own its task."""

    def __init__(self, client: RedisClient, heartbeat_seconds: float) -> None:
        self._client = client
        self._ttl_ms = int(TTL_HEARTBEATS * heartbeat_seconds * 1000)
        self._waiting: dict[str, Presence] = {}
        self._wanted = asyncio.Event()
        self._reads = Spread(client, connections=client.pool_size or READ_CONNECTIONS, seconds=READ_SECONDS)
        self._writes = Spread(client, connections=1, seconds=WRITE_SECONDS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="touches")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._reads.close()
        self._writes.close()

    def renew(self, presences: Sequence[Presence]) -> None:
        """Have these written soon."""
        if presences and len(self._waiting) < MAX_WAITING:
            self._waiting.update({presence.device.connection_id: presence for presence in presences})
            self._wanted.set()

    async def presences(self, devices: Sequence[Device]) -> list[Presence]:
        """Return devices with their touches; one that was not renewed yet was touched at its login. Raises: Unavailable."""
        keys = [touch(device.device_id, device.connection_id) for device in devices]
        commands = [("HMGET", key, "time", "last_frame_id") for key in keys]
        try:
            rows = await self._read(keys, commands)
        except FAILURES:
            raise Unavailable("Redis is out of reach; try again") from None
        return [Presence(device, _touch(device, row)) for device, row in zip(devices, rows, strict=True)]

    async def _read(self, keys: Sequence[str], commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Ask, and once more where a server has gone or sent us on. Raises: one of FAILURES when that did not help."""
        rows = await self._reads.run(keys, commands) if keys else []
        again = [place for place, row in enumerate(rows) if isinstance(row, Exception) and not _is_answer(row)]
        if again:
            second = await self._reads.run([keys[place] for place in again], [commands[place] for place in again])
            for place, row in zip(again, second, strict=True):
                if isinstance(row, FAILURES) and not _is_answer(row):
                    raise row
                rows[place] = row
        return rows

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
                await asyncio.sleep(1)
            except Exception:
                log.exception("presence is not renewed")
                await asyncio.sleep(1)

    async def _write(self, batch: Sequence[Presence]) -> None:
        """Renew on a single server, with one command: 12 µs for a device."""
        keys: list[str] = []
        values: list[Any] = []
        for presence in batch:
            keys.append(touch(presence.device.device_id, presence.device.connection_id))
            values += [repr(presence.touch.time), presence.touch.last_frame_id]
        (reply,) = await self._writes.run(keys[:1], [("EVAL", RENEW, len(keys), *keys, self._ttl_ms, *values)])
        if isinstance(reply, Exception):
            raise reply

    async def _write_spread(self, batch: Sequence[Presence]) -> None:
        """Renew on a Cluster: one command for each device. What a server does not take is made up for by the next renewal."""
        keys = [touch(presence.device.device_id, presence.device.connection_id) for presence in batch]
        commands = [
            ("EVAL", RENEW_ONE, 1, key, self._ttl_ms, repr(presence.touch.time), presence.touch.last_frame_id)
            for key, presence in zip(keys, batch, strict=True)
        ]
        for reply in await self._writes.run(keys, commands):
            if isinstance(reply, Exception):
                log.debug("presence is not renewed: %s", reply)


def _is_answer(error: Exception) -> bool:
    """Tell whether an error is about the key, and would come again."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def _touch(device: Device, row: Sequence[bytes | None] | Exception) -> Touch:
    try:
        if isinstance(row, Exception):
            raise row
        return Touch(check_time(float(row[0] or device.login_time)), min(max(int(row[1] or 0), 0), MAX_ID))
    except (ValueError, RedisError):
        return Touch(device.login_time, 0)
