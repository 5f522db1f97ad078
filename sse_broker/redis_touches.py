"""What changes while devices are online: last touch and last frame id, in a hash for each, renewed in batches with its TTL.
Nobody waits for a renewal, and one that fails is made up for by the next.
"""

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import RedisError

from sse_broker.backend import Presence
from sse_broker.errors import Unavailable
from sse_broker.frame import MAX_ID
from sse_broker.presence import Device, Touch
from sse_broker.redis_client import FAILURES, RedisClient
from sse_broker.redis_entries import check_time
from sse_broker.redis_keys import touch

log = logging.getLogger(__name__)

TTL_HEARTBEATS = 3.5
BATCH_DEVICES = 250
# Renewals that wait while Redis is away; older ones are of no use then.
MAX_WAITING = 50_000


class Touches:
    """Reads and writes the hashes of touches. `start` and `close` own its task."""

    def __init__(self, client: RedisClient, heartbeat_seconds: float) -> None:
        self._client = client
        self._ttl_ms = int(TTL_HEARTBEATS * heartbeat_seconds * 1000)
        self._waiting: dict[str, Presence] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="touches")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

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
            pipe = self._client.spread().pipeline(transaction=False)
            for presence in batch:
                key = touch(presence.device.device_id, presence.device.connection_id)
                touched = presence.touch
                pipe.hset(key, items=["time", repr(touched.time), "last_frame_id", touched.last_frame_id])
                pipe.pexpire(key, self._ttl_ms)
            try:
                await pipe.execute(raise_on_error=False)
            except FAILURES as error:
                log.debug("presence is not renewed: %s", error)
                await asyncio.sleep(1)
            except Exception:
                log.exception("presence is not renewed")
                await asyncio.sleep(1)


def _touch(device: Device, row: Sequence[bytes | None] | Exception) -> Touch:
    try:
        if isinstance(row, Exception):
            raise row
        return Touch(check_time(float(row[0] or device.login_time)), min(max(int(row[1] or 0), 0), MAX_ID))
    except (ValueError, RedisError):
        return Touch(device.login_time, 0)
