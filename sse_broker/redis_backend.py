"""The backend of a cluster: frames, presence and membership in Redis. It turns each promise of `Backend` into one script
call (`redis_scripts`) over the lane, and what comes by the bus into envelopes. It knows no sockets and no HTTP.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sse_broker.backend import PAGE_FRAMES, Health, Joined, Page, Presence, Receiver
from sse_broker.clock import local_now
from sse_broker.cluster import Cluster, seconds_between_beats
from sse_broker.config import Config
from sse_broker.errors import StartError, Unauthorized, Unavailable
from sse_broker.presence import Device, Instance, Reason
from sse_broker.redis_bus import Bus
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, REFUSALS
from sse_broker.redis_entries import device_json, devices_of, page_of
from sse_broker.redis_group import Group, target_arguments
from sse_broker.redis_lane import CALL_SECONDS, Lane
from sse_broker.redis_member_scripts import OVERVIEW
from sse_broker.redis_membership import Joining, RedisMembership
from sse_broker.redis_scripts import JOIN, KICK, PUBLISH, REPLAY, ROUTES
from sse_broker.redis_touches import Touches
from sse_broker.target import Message, Sent, Target

log = logging.getLogger(__name__)

# How long an answer is kept for a repeated call: longer than any call is repeated.
KEEP_MS = int(4 * CALL_SECONDS * 1000)
CLOSE_SECONDS = 3.0
REGISTER_SECONDS = 0.1
LOSS_BEATS = 2.0
JOIN_SECONDS = 4.0


class RedisBackend:
    """The `Backend` of one instance in a cluster."""

    name = "redis"

    def __init__(self, config: Config) -> None:
        self._client = RedisClient(config.redis)
        self._lane = Lane(self._client, lambda: self._cluster.hurry(), lambda: self.membership.probe())
        self._touches = Touches(self._client, config.sse.heartbeat_interval)
        self._max_frames = config.sse.device_frame_cache_size
        self._expire_ms = int(config.sse.device_frame_cache_expire * 1000)
        beat_seconds = seconds_between_beats(config.sse.heartbeat_interval)
        self.membership = RedisMembership(self._lane, expire_ms=self._expire_ms, loss_seconds=LOSS_BEATS * beat_seconds)
        self._cluster = Cluster(self.membership, config.sse.heartbeat_interval)
        self._group: Group | None = None
        self._instance_id = ""
        self._bus: Bus | None = None
        self._started = False
        self.damaged = 0

    # --- life ---

    async def start(self, instance: Instance, receiver: Receiver) -> None:
        """See `Backend.start`."""
        self._instance_id = instance.id
        self._bus = Bus(self._client, instance.id, receiver, self._cluster.round)
        self.membership.begin(instance, receiver, self._bus)
        try:
            await self._lane.start()
            await self._cluster.start()
        except REFUSALS as error:
            raise StartError(f"Redis refuses the connection: {error}") from None
        except Unavailable as error:
            raise StartError(error.message) from None
        except FAILURES as error:
            raise StartError(f"Redis is out of reach: {str(error) or 'no answer'}") from None
        self._bus.start()
        self._touches.start()
        self._client.start()
        self._started = True

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._cluster.close()
        await self._touches.close()
        if self._bus is not None and self._started:
            await self._bus.close()
            self.membership.end()
            await self._lane.flush(CLOSE_SECONDS)
        await self._lane.close()
        await self._client.close()

    # --- frames ---

    async def publish(self, messages: Sequence[Message]) -> list[Sent]:
        """See `Backend.publish`: calls that wait for a round trip share one call of the script."""
        group = self._group
        if group is None or group.is_full:
            group = Group()
            answer = self._lane.begin(PUBLISH, partial(self._sealed, group), ahead=True)
            self._group = group
            answer.add_done_callback(partial(self._published, group))
        return await group.add(messages)

    def _sealed(self, group: Group) -> list[Any]:
        """Return the arguments of a group that is about to be sent: nothing can join it any more."""
        if self._group is group:
            self._group = None
        start = [_nonce(), KEEP_MS, self.membership.highest_id, self._max_frames, self._expire_ms]
        start += [self._instance_id, group.count]
        return start + group.arguments

    def _published(self, group: Group, answer: "asyncio.Future[Any]") -> None:
        if self._group is group:  # it was given up before it was sent
            self._group = None
        self.membership.acknowledge(group.settle(answer))

    async def replay(self, device: Device, after_id: int) -> Page:
        """See `Backend.replay`."""
        await self.membership.whole(CALL_SECONDS)
        gap_id = 0
        while True:
            _, gap_here, logs = await self._lane.call(
                REPLAY, device.device_id, device.uid, after_id, PAGE_FRAMES, self._expire_ms
            )
            page, after_id = self._page(gap_here, logs)
            gap_id = max(gap_id, page.gap_id)
            if page.frames or not page.more:
                return replace(page, gap_id=gap_id)

    def _page(self, gap_id: bytes | int, logs: Sequence[Sequence[Any]]) -> tuple[Page, int]:
        """Return a page and the id up to which it has read; it is empty where all that was read is damaged."""
        page, end_id, damaged = page_of(int(gap_id), logs, PAGE_FRAMES)
        if damaged:
            self.damaged += damaged
            log.warning("%d entries of a log are damaged and skipped", damaged)
        return page, end_id

    # --- presence ---

    async def join(self, device: Device, last_id: int | None) -> Joined:
        """See `Backend.join`."""
        with self.membership.joining(device) as joining:
            return await self._join(device, last_id, joining)

    async def _join(self, device: Device, last_id: int | None, joining: Joining) -> Joined:
        def arguments() -> tuple[Any, ...]:
            joining.sent = True
            return (
                device.device_id,
                device.uid,
                device.connection_id,
                device.instance_id,
                device_json(device),
                device.device_address,
                device.instance_address,
                device.token_digest,
                local_now(),
                self._expire_ms,
                "" if last_id is None else last_id,
                PAGE_FRAMES,
                KEEP_MS,
            )

        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            await self.membership.settled(deadline)
            reply = await self._lane.begin(JOIN, arguments)
            joining.sent = joining.done = reply[0] == b"joined"
            if joining.done:
                page, end_id = self._page(reply[2], reply[3])
                if page.more and not page.frames:
                    gap_id, page = page.gap_id, await self.replay(device, end_id)
                    page = replace(page, gap_id=max(gap_id, page.gap_id))
                self.membership.acknowledge(int(reply[1]))
                return Joined(int(reply[1]), page)
            if reply[0] == b"revoked":
                raise Unauthorized("the token was revoked when its device was kicked")
            self._cluster.hurry()
            await asyncio.sleep(REGISTER_SECONDS)

    def leave(self, device: Device, reason: Reason, payload: str = "") -> None:
        """See `Backend.leave`."""
        self.membership.leave(device, reason, payload)

    def renew(self, presences: Sequence[Presence]) -> None:
        """See `Backend.renew`."""
        self._touches.renew(presences)

    async def kick(self, target: Target, data: str) -> int:
        """See `Backend.kick`."""
        answer = await self._lane.call(
            KICK, _nonce(), KEEP_MS, self._instance_id, local_now(), self._expire_ms, data, *target_arguments(target)
        )
        number, count = map(int, answer.split())
        self.membership.acknowledge(number)
        return count

    # --- what is known ---

    async def device(self, device_id: str) -> Presence | None:
        """See `Backend.device`."""
        presences = await self._presences(Target(devices=(device_id,)))
        return presences[0] if presences else None

    async def user(self, uid: str) -> list[Presence]:
        """See `Backend.user`."""
        presences = await self._presences(Target(users=(uid,)))
        return sorted(presences, key=lambda presence: presence.device.login_time)

    async def _presences(self, target: Target) -> list[Presence]:
        routes = await self._lane.call(ROUTES, *target_arguments(target))
        devices, damaged = devices_of(routes)
        self.damaged += damaged
        return await self._touches.presences(devices)

    async def instances(self) -> list[Instance]:
        """See `Backend.instances`."""
        _, _, rows = await self._lane.call(OVERVIEW)
        instances = [
            Instance(row[0].decode(), row[1].decode(), row[2].decode(), float(row[3]), int(row[4])) for row in rows
        ]
        return sorted(instances, key=lambda instance: (instance.start_time, instance.id))

    async def counts(self) -> tuple[int, int]:
        """See `Backend.counts`."""
        users, devices, _ = await self._lane.call(OVERVIEW)
        return int(users), int(devices)

    def health(self) -> Health:
        """See `Backend.health`."""
        bus = self._bus
        return Health(
            answers=self._lane.answers,
            reconnects=self._lane.reconnects,
            damaged=self.damaged + self.membership.damaged + (bus.damaged if bus else 0),
            bus_lag_seconds=bus.lag_seconds if bus else 0,
            round_trips=self._lane.round_trips,
            round_trip_seconds=self._lane.round_trip_seconds,
        )


def _nonce() -> str:
    return os.urandom(16).hex()
