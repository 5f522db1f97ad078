"""This instance's place in the cluster: membership and heartbeat, the clearing of dead instances, and putting its own
presence right after it was cut off, cleared or forgotten. It decides when; how is the backend's matter, through
`Membership`.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sse_broker.errors import Unavailable
from sse_broker.presence import Device

log = logging.getLogger(__name__)

# Heartbeat intervals: an instance's heartbeat lives for the first, and is renewed and looked for every second; so one that
# dies is cleared within 2.4 of them.
BEAT_TTL_HEARTBEATS = 2.0
BEAT_HEARTBEATS = 1 / 3
MAX_BEAT_SECONDS = 1.0
# After trouble with Redis of its own an instance judges no other for this long: they had the same trouble.
GRACE_HEARTBEATS = 2.0
# Beats in a row with another number of devices in Redis than here, before the two are compared one by one.
ODD_BEATS = 3


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat found: whether the instance is a member, whether it was cleared by another, the first id of the data
    that is there (another than before when some was lost), how many devices the instance is said to hold, and which
    instances have no heartbeat.
    """

    known: bool
    cleared: bool
    epoch: int
    device_count: int
    dead: tuple[str, ...]


class Membership(Protocol):
    """What a backend must be able to do for a cluster. All may raise Unavailable."""

    async def beat(self, ttl_seconds: float) -> Beat:
        """Keep this instance's heartbeat for `ttl_seconds`; this makes it no member."""

    def leave_again(self) -> None:
        """Say of whom it could not be said before that they left: presence is right, as far as a heartbeat can tell."""

    async def clear(self, instance_id: str) -> int:
        """Remove a dead instance and announce its devices' going; each by exactly one caller. Return how many."""

    async def rejoin(self, *, announce: bool) -> None:
        """Become a member, make the devices here present whose presence was lost, and end those that moved on meanwhile.

        Repeated until it succeeds; harmless when it was not needed.
        """

    async def compare(self, devices: Sequence[Device]) -> None:
        """Remove what the cluster holds for this instance and is not there, and rejoin what is there and not held."""

    def local_devices(self) -> Sequence[Device]:
        """Return the devices that are present here, each once."""


def seconds_between_beats(heartbeat_seconds: float) -> float:
    """Return how often an instance beats, whose streams have this heartbeat interval."""
    return min(BEAT_HEARTBEATS * heartbeat_seconds, MAX_BEAT_SECONDS)


class Cluster:
    """Keeps one instance in the cluster. `start` and `close` own its task."""

    def __init__(self, membership: Membership, heartbeat_seconds: float) -> None:
        self._membership = membership
        self._heartbeat_seconds = heartbeat_seconds
        self._beat_seconds = seconds_between_beats(heartbeat_seconds)
        self._judges_from = 0.0
        self._odd_beats = 0
        self._epoch = 0
        self._rejoin = False
        self._announce = False
        self._now = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Become a member and stay one. Raises: Unavailable."""
        beat = await self._membership.beat(BEAT_TTL_HEARTBEATS * self._heartbeat_seconds)
        self._epoch = beat.epoch
        await self._membership.rejoin(announce=False)
        self._task = asyncio.create_task(self._run(), name="cluster")

    async def close(self) -> None:
        """End the task; leaving the cluster is the backend's."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def hurry(self) -> None:
        """Beat now: the connection is new, or the cluster does not know this instance."""
        self._judges_from = time.monotonic() + GRACE_HEARTBEATS * self._heartbeat_seconds
        self._now.set()

    async def round(self) -> None:
        """Return once a heartbeat has succeeded that begins from now on, and what it found was put right."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._now.set()
        await done

    async def _run(self) -> None:
        while True:
            # Not by `wait_for`, which in Python 3.11 may swallow a cancellation: then closing would never end.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._beat_seconds):
                    await self._now.wait()
            self._now.clear()
            waiting = len(self._waiting)
            try:
                await self._once()
                for done in self._waiting[:waiting]:
                    if not done.done():
                        done.set_result(None)
                del self._waiting[:waiting]
            except Unavailable:
                self._judges_from = time.monotonic() + GRACE_HEARTBEATS * self._heartbeat_seconds
            except Exception:
                log.exception("the heartbeat of this instance failed")

    async def _once(self) -> None:
        beat = await self._membership.beat(BEAT_TTL_HEARTBEATS * self._heartbeat_seconds)
        if beat.cleared or not beat.known or beat.epoch != self._epoch:
            what = "cleared" if beat.cleared else "lost something of" if beat.known else "forgotten"
            log.warning("the cluster has %s this instance; it joins again", what)
            # After a clearing the devices were announced as gone; data that was lost announced nothing.
            self._rejoin = True
            self._announce = self._announce or beat.cleared
            self._epoch = beat.epoch
        if self._rejoin:
            await self._membership.rejoin(announce=self._announce)
            self._rejoin = self._announce = False
            self._odd_beats = 0
            return
        self._membership.leave_again()
        devices = self._membership.local_devices()
        self._odd_beats = self._odd_beats + 1 if beat.device_count != len(devices) else 0
        if self._odd_beats >= ODD_BEATS:
            self._odd_beats = 0
            await self._membership.compare(devices)
        if time.monotonic() >= self._judges_from:
            for instance_id in beat.dead:
                count = await self._membership.clear(instance_id)
                log.warning("instance %s is dead; cleared %d devices of it", instance_id, count)
