"""The backend of a cluster: frames, presence and membership in Redis. It turns each promise of `Backend` into one script
call (`redis_scripts`) over the lane, and what comes by the bus into envelopes. It knows no sockets and no HTTP.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sse_broker.backend import PAGE_FRAMES, Joined, Page, Presence, Receiver
from sse_broker.clock import local_text
from sse_broker.cluster import Beat, Cluster
from sse_broker.config import Config
from sse_broker.envelope import EndEnvelope
from sse_broker.errors import StartError, Unauthorized, Unavailable
from sse_broker.presence import Device, Instance, Reason
from sse_broker.redis_bus import Bus
from sse_broker.redis_client import FAILURES, REFUSALS, RedisClient
from sse_broker.redis_entries import DamagedEntry, device_json, device_of, page_of
from sse_broker.redis_lane import CALL_SECONDS, Lane
from sse_broker.redis_scripts import (
    BEAT,
    CLEAR,
    HELD,
    JOIN,
    KICK,
    LEAVE,
    OVERVIEW,
    PUBLISH,
    REJOIN,
    REPLAY,
    RETIRE,
    ROUTES,
)
from sse_broker.redis_touches import Touches
from sse_broker.target import Message, Sent, Target

log = logging.getLogger(__name__)

# How long an answer is kept for a repeated call: longer than any call is repeated.
KEEP_MS = int(4 * CALL_SECONDS * 1000)
CLEAR_DEVICES = 200
REJOIN_DEVICES = 200
CLOSE_SECONDS = 3.0
REGISTER_SECONDS = 0.1


class RedisBackend:
    """The `Backend` of one instance in a cluster, and the `Membership` of its `Cluster`."""

    def __init__(self, config: Config) -> None:
        self._client = RedisClient(config.redis)
        self._lane = Lane(self._client, self._connected)
        self._touches = Touches(self._client, config.sse.heartbeat_interval)
        self._cluster = Cluster(self, config.sse.heartbeat_interval)
        self._max_frames = config.sse.device_frame_cache_size
        self._expire_ms = int(config.sse.device_frame_cache_expire * 1000)
        self._guard = int(config.redis.is_cluster)
        self._known_id = 0
        self._instance: Instance | None = None
        self._receiver: Receiver | None = None
        self._bus: Bus | None = None
        self.damaged = 0

    # --- life ---

    async def start(self, instance: Instance, receiver: Receiver) -> None:
        """See `Backend.start`."""
        self._instance = instance
        self._receiver = receiver
        try:
            await self._lane.start()
            await self._cluster.start()
        except REFUSALS as error:
            raise StartError(f"Redis refuses the connection: {error}") from None
        except Unavailable as error:
            raise StartError(error.message) from None
        except FAILURES as error:
            raise StartError(f"Redis is out of reach: {str(error) or 'no answer'}") from None
        self._bus = Bus(self._client, instance.id, receiver)
        self._bus.start()
        self._touches.start()

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._cluster.close()
        await self._touches.close()
        if self._bus is not None:
            await self._bus.close()
            self._lane.post(RETIRE, self._me.id)
            await self._lane.flush(CLOSE_SECONDS)
        await self._lane.close()
        await self._client.close()

    @property
    def _me(self) -> Instance:
        assert self._instance is not None
        return self._instance

    def _connected(self) -> None:
        self._cluster.hurry()

    # --- frames ---

    async def publish(self, messages: Sequence[Message]) -> list[Sent]:
        """See `Backend.publish`."""
        arguments: list[Any] = [_nonce(), KEEP_MS, self._known_id, self._max_frames, self._expire_ms, self._guard]
        arguments.append(len(messages))
        for message in messages:
            arguments += [message.event, message.data, *_target_arguments(message.target)]
        numbers = [int(text) for text in (await self._lane.call(PUBLISH, *arguments)).split()]
        self._known_id = max([self._known_id, *numbers[::2]])
        return [Sent(number, count) for number, count in zip(numbers[::2], numbers[1::2], strict=True)]

    async def replay(self, device: Device, after_id: int) -> Page:
        """See `Backend.replay`."""
        gap = False
        while True:
            _, gap_here, logs = await self._lane.call(
                REPLAY, device.device_id, device.uid, after_id, PAGE_FRAMES, self._expire_ms
            )
            page, after_id = self._page(gap_here, logs)
            gap = gap or page.gap
            if page.frames or not page.more:
                return replace(page, gap=gap)

    def _page(self, gap: int, logs: Sequence[Sequence[Any]]) -> tuple[Page, int]:
        """Return a page and the id up to which it has read; it is empty where all that was read is damaged."""
        page, end_id, damaged = page_of(gap, logs, PAGE_FRAMES)
        if damaged:
            self.damaged += damaged
            log.warning("%d entries of a log are damaged and skipped", damaged)
        return page, end_id

    # --- presence ---

    async def join(self, device: Device, last_id: int | None) -> Joined:
        """See `Backend.join`."""
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            reply = await self._lane.call(
                JOIN,
                device.device_id,
                device.uid,
                device.connection_id,
                device.instance_id,
                device_json(device),
                device.device_address,
                device.instance_address,
                device.token_digest,
                _now(),
                self._expire_ms,
                "" if last_id is None else last_id,
                PAGE_FRAMES,
                KEEP_MS,
            )
            if reply[0] == b"joined":
                page, end_id = self._page(reply[2], reply[3])
                if page.more and not page.frames:
                    page = replace(await self.replay(device, end_id), gap=page.gap)
                return Joined(int(reply[1]), page)
            if reply[0] == b"revoked":
                raise Unauthorized("the token was revoked when its device was kicked")
            self._cluster.hurry()
            if time.monotonic() > deadline:
                raise Unavailable("this instance is just joining the cluster; try again")
            await asyncio.sleep(REGISTER_SECONDS)

    def leave(self, device: Device, reason: Reason, payload: str = "") -> None:
        """See `Backend.leave`."""
        self._lane.post(LEAVE, _now(), self._expire_ms, device.device_id, device.connection_id, reason, payload)

    def renew(self, presences: Sequence[Presence]) -> None:
        """See `Backend.renew`."""
        self._touches.renew(presences)

    async def kick(self, target: Target, data: str) -> int:
        """See `Backend.kick`."""
        count = await self._lane.call(
            KICK, _nonce(), KEEP_MS, _now(), self._expire_ms, data, *_target_arguments(target)
        )
        return int(count)

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
        routes = await self._lane.call(ROUTES, *_target_arguments(target))
        return await self._touches.presences(self._devices(routes))

    def _devices(self, routes: Sequence[bytes]) -> list[Device]:
        devices = []
        for route in routes:
            try:
                devices.append(device_of(route))
            except DamagedEntry as error:
                self.damaged += 1
                log.warning("a route is damaged and skipped: %s", error)
        return devices

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

    # --- membership (see `cluster.Membership`) ---

    async def beat(self, ttl_seconds: float) -> Beat:
        """See `Membership.beat`."""
        me = self._me
        known_id = max(self._known_id, self._bus.last_id if self._bus else 0)
        known, cleared, epoch, count, dead = await self._lane.call(
            BEAT, me.id, me.address, me.version, repr(me.start_time), int(ttl_seconds * 1000), known_id
        )
        return Beat(bool(known), bool(cleared), int(epoch), int(count), tuple(one.decode() for one in dead))

    async def clear(self, instance_id: str) -> int:
        """See `Membership.clear`."""
        cleared, left = 0, 1
        while left:
            removed, left = await self._lane.call(CLEAR, instance_id, CLEAR_DEVICES, _now(), self._expire_ms)
            cleared += removed
        return cleared

    async def rejoin(self, devices: Sequence[Device], *, announce: bool) -> None:
        """See `Membership.rejoin`."""
        assert self._receiver is not None
        for start in range(0, len(devices), REJOIN_DEVICES):
            arguments: list[Any] = [self._me.id, int(announce), _now()]
            for device in devices[start : start + REJOIN_DEVICES]:
                arguments += [device.device_id, device.uid, device.connection_id, device_json(device)]
            gone = [text.decode() for text in await self._lane.call(REJOIN, *arguments)]
            for at in range(0, len(gone), 4):
                device_id, connection_id, reason, payload = gone[at : at + 4]
                self._receiver.receive(EndEnvelope(device_id, connection_id, Reason(reason), payload))
        # What was sent while the cluster had no route to these devices is in the logs alone.
        self._receiver.missed(self._bus.last_id if self._bus else 0)

    async def compare(self, devices: Sequence[Device]) -> None:
        """See `Membership.compare`."""
        flat = await self._lane.call(HELD, self._me.id)
        held = {device.connection_id: device for device in self._devices(flat[1::2])}
        here = {device.connection_id for device in self.local_devices()}
        ghosts = [device for connection_id, device in held.items() if connection_id not in here]
        missing = [device for device in devices if device.connection_id not in held and device.connection_id in here]
        if ghosts or missing:
            log.warning("presence put right: %d devices removed, %d added", len(ghosts), len(missing))
        for device in ghosts:
            self.leave(device, Reason.DISCONNECT)
        if missing:
            await self.rejoin(missing, announce=True)

    def local_devices(self) -> Sequence[Device]:
        """See `Membership.local_devices`."""
        return self._receiver.devices() if self._receiver is not None else ()


def _target_arguments(target: Target) -> list[Any]:
    return [len(target.users), *target.users, len(target.devices), *target.devices]


def _nonce() -> str:
    return uuid.uuid4().hex


def _now() -> str:
    return local_text(time.time())
