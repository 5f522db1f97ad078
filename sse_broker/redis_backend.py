"""The backend of a cluster: frames, presence and membership in Redis. It turns each promise of `Backend` into one script
call (`redis_scripts`) over the lane, and what comes by the bus into envelopes. It knows no sockets and no HTTP.
"""

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sse_broker.backend import PAGE_FRAMES, Health, Joined, Page, Presence, Receiver
from sse_broker.clock import local_text
from sse_broker.cluster import Beat, Cluster
from sse_broker.config import Config
from sse_broker.envelope import EndEnvelope
from sse_broker.errors import StartError, Unauthorized, Unavailable
from sse_broker.presence import Device, Instance, Reason
from sse_broker.redis_bus import Bus
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, REFUSALS
from sse_broker.redis_entries import DamagedEntry, device_json, device_of, page_of
from sse_broker.redis_group import Group, target_arguments
from sse_broker.redis_lane import CALL_SECONDS, Lane
from sse_broker.redis_member_scripts import BEAT, CLEAR, HELD, OVERVIEW, REGISTER, REJOIN, RETIRE
from sse_broker.redis_scripts import JOIN, KICK, LEAVE, PUBLISH, REPLAY, ROUTES
from sse_broker.redis_touches import Touches
from sse_broker.target import Message, Sent, Target

log = logging.getLogger(__name__)

# How long an answer is kept for a repeated call: longer than any call is repeated.
KEEP_MS = int(4 * CALL_SECONDS * 1000)
CLEAR_DEVICES = 200
KEPT_CLEARINGS = 20
REJOIN_DEVICES = 200
CLOSE_SECONDS = 3.0
REGISTER_SECONDS = 0.1
LOSS_BEATS = 2.0
JOIN_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class _Leave:
    device: Device
    reason: Reason
    payload: str


class RedisBackend:
    """The `Backend` of one instance in a cluster, and the `Membership` of its `Cluster`."""

    name = "redis"

    def __init__(self, config: Config) -> None:
        self._client = RedisClient(config.redis)
        self._lane = Lane(self._client, self._connected, self._probe)
        self._touches = Touches(self._client, config.sse.heartbeat_interval)
        self._cluster = Cluster(self, config.sse.heartbeat_interval)
        self._max_frames = config.sse.device_frame_cache_size
        self._expire_ms = int(config.sse.device_frame_cache_expire * 1000)
        self._known_id = 0
        self._group: Group | None = None
        self._joining: set[str] = set()
        # Set while this instance is a member and its routes are in force: only then do logs and bus make a whole.
        self._whole = asyncio.Event()
        # After a loss of data, until the other instances have put back what they hold, too: nobody comes anew, and who left
        # is kept here, so that moves and users are announced right.
        self._settles_at = 0.0
        self._forgotten: list[_Leave] = []
        # Instances that this one has cleared and announced: should a server forget it, that is done again without a word.
        self._cleared: deque[str] = deque(maxlen=KEPT_CLEARINGS)
        self._instance: Instance | None = None
        self._receiver: Receiver | None = None
        self._bus: Bus | None = None
        self._started = False
        self.damaged = 0

    # --- life ---

    async def start(self, instance: Instance, receiver: Receiver) -> None:
        """See `Backend.start`."""
        self._instance = instance
        self._receiver = receiver
        self._bus = Bus(self._client, instance.id, receiver, self._cluster.round)
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
            self._settles_at = 0.0
            self._leave_again()
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

    def _probe(self) -> tuple[str, int]:
        """Return what a server is told on a new connection: an acknowledged id that it lacks proves that it lost something."""
        return self._me.id, self._known_id

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
        start = [_nonce(), KEEP_MS, self._highest_id, self._max_frames, self._expire_ms]
        start += [self._me.id, group.count]
        return start + group.arguments

    def _published(self, group: Group, answer: "asyncio.Future[Any]") -> None:
        if self._group is group:  # it was given up before it was sent
            self._group = None
        self._known_id = max(self._known_id, group.settle(answer))

    @property
    def _highest_id(self) -> int:
        return max(self._known_id, self._bus.last_id if self._bus else 0)

    async def replay(self, device: Device, after_id: int) -> Page:
        """See `Backend.replay`."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._whole.wait()
        except TimeoutError:
            raise Unavailable("this instance is just joining the cluster; try again") from None
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
        # It announces its device itself, so putting presence right must pass it over.
        self._joining.add(device.connection_id)
        try:
            return await self._join(device, last_id)
        finally:
            self._joining.discard(device.connection_id)

    async def _join(self, device: Device, last_id: int | None) -> Joined:
        deadline = time.monotonic() + JOIN_SECONDS
        while True:
            while time.monotonic() < min(self._settles_at, deadline):
                await asyncio.sleep(REGISTER_SECONDS)
            if time.monotonic() > deadline:
                raise Unavailable("this instance is just joining the cluster; try again")
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
                    gap_id, page = page.gap_id, await self.replay(device, end_id)
                    page = replace(page, gap_id=max(gap_id, page.gap_id))
                self._known_id = max(self._known_id, int(reply[1]))
                return Joined(int(reply[1]), page)
            if reply[0] == b"revoked":
                raise Unauthorized("the token was revoked when its device was kicked")
            self._cluster.hurry()
            await asyncio.sleep(REGISTER_SECONDS)

    def leave(self, device: Device, reason: Reason, payload: str = "") -> None:
        """See `Backend.leave`."""

        def left(known: bytes | int) -> None:
            self._known_id = max(self._known_id, int(known))
            if not int(known):
                self._forgotten.append(_Leave(device, reason, payload))

        if time.monotonic() < self._settles_at:
            left(0)
            return
        self._lane.post(
            LEAVE,
            _now(),
            self._expire_ms,
            device.instance_id,
            device.device_id,
            device.connection_id,
            reason,
            payload,
            then=left,
        )

    def renew(self, presences: Sequence[Presence]) -> None:
        """See `Backend.renew`."""
        self._touches.renew(presences)

    async def kick(self, target: Target, data: str) -> int:
        """See `Backend.kick`."""
        answer = await self._lane.call(
            KICK, _nonce(), KEEP_MS, self._me.id, _now(), self._expire_ms, data, *target_arguments(target)
        )
        number, count = map(int, answer.split())
        self._known_id = max(self._known_id, number)
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

    def health(self) -> Health:
        """See `Backend.health`."""
        bus = self._bus
        return Health(
            answers=self._lane.answers,
            reconnects=self._lane.reconnects,
            damaged=self.damaged + (bus.damaged if bus else 0),
            bus_lag_seconds=bus.lag_seconds if bus else 0,
            round_trips=self._lane.round_trips,
            round_trip_seconds=self._lane.round_trip_seconds,
        )

    # --- membership (see `cluster.Membership`) ---

    async def beat(self, ttl_seconds: float) -> Beat:
        """See `Membership.beat`."""
        if time.monotonic() > self._settles_at:
            self._leave_again()
        me = self._me
        known, cleared, epoch, count, dead = await self._lane.call(
            BEAT, me.id, me.address, me.version, repr(me.start_time), int(ttl_seconds * 1000), self._highest_id
        )
        return Beat(bool(known), bool(cleared), int(epoch), int(count), tuple(one.decode() for one in dead))

    async def clear(self, instance_id: str) -> int:
        """See `Membership.clear`."""
        return await self._clear(instance_id, Reason.INSTANCE_CLEAR)

    async def _clear(self, instance_id: str, reason: str) -> int:
        cleared, left = 0, 1
        while left:
            removed, left, number = await self._lane.call(
                CLEAR, instance_id, CLEAR_DEVICES, _now(), self._expire_ms, self._me.id, reason
            )
            cleared += removed
            self._known_id = max(self._known_id, int(number))
        if instance_id not in self._cleared:
            self._cleared.append(instance_id)
        return cleared

    async def rejoin(self, *, announce: bool) -> None:
        """See `Membership.rejoin`."""
        assert self._receiver is not None
        assert self._bus is not None
        # From when routes were lost until this is a member again, frames are in the logs alone. So the bus stops, and all
        # streams read from the logs what follows its last envelope, once routes and membership are in force.
        lost = self._started and not announce
        if lost:
            self._settles_at = math.inf
        self._whole.clear()
        self._bus.pause()
        if self._started:
            self._receiver.missed(self._bus.last_id)
        self._end_outdated()
        await self._rejoin(self.local_devices(), announce=announce)
        # Devices that left while the cluster did not know them come back for a moment, so that their going is announced.
        # Now, as until here answers to leaves have come that say so.
        await self._rejoin([leave.device for leave in self._forgotten], announce=announce)
        if lost:
            for instance_id in tuple(self._cleared):
                await self._clear(instance_id, "")
            await self._forget_ghosts()
        registered = await self._lane.call(REGISTER, self._me.id, self._me.address)
        self._known_id = max(self._known_id, int(registered))
        if lost:
            self._settles_at = time.monotonic() + LOSS_BEATS * self._cluster.beat_seconds
        self._bus.resume()
        self._whole.set()

    async def _rejoin(self, devices: Iterable[Device], *, announce: bool) -> None:
        assert self._receiver is not None
        waiting = list(devices)
        while waiting:
            # Who left since the last batch must not come back behind its leave.
            here = {device.connection_id for device in self._receiver.devices()}
            here.update(leave.device.connection_id for leave in self._forgotten)
            batch = [device for device in waiting[:REJOIN_DEVICES] if device.connection_id in here]
            del waiting[:REJOIN_DEVICES]
            arguments: list[Any] = [self._me.id, self._me.address, int(announce), _now(), self._expire_ms]
            for device in batch:
                arguments += [device.device_id, device.uid, device.connection_id, device_json(device)]
            gone = [text.decode() for text in await self._lane.call(REJOIN, *arguments)]
            for at in range(0, len(gone), 4):
                device_id, connection_id, reason, payload = gone[at : at + 4]
                self._receiver.receive(EndEnvelope(device_id, connection_id, Reason(reason), payload))

    async def _forget_ghosts(self) -> None:
        """Remove, without a word, the routes of devices that left here before data was lost: their going was announced.

        A leave that Redis has not acknowledged is ahead of this in the lane, and announces.
        """
        for device in await self._ghosts():
            self._lane.post(LEAVE, _now(), self._expire_ms, self._me.id, device.device_id, device.connection_id, "", "")

    async def _ghosts(self) -> list[Device]:
        """Return the devices that the cluster holds for this instance, and that are not here."""
        assert self._receiver is not None
        flat = await self._lane.call(HELD, self._me.id)
        here = {device.connection_id for device in self._receiver.devices()}
        here.update(leave.device.connection_id for leave in self._forgotten)
        return [device for device in self._devices(flat[1::2]) if device.connection_id not in here]

    def _end_outdated(self) -> None:
        """End the streams of devices that have a newer one here: the word of it may be lost."""
        assert self._receiver is not None
        newest = {device.device_id: device for device in self._joined()}
        for device in self._joined():
            successor = newest[device.device_id]
            if successor is not device:
                self._receiver.receive(
                    EndEnvelope(device.device_id, device.connection_id, Reason.EXTRUDE, successor.device_address)
                )

    def _leave_again(self) -> None:
        leaves, self._forgotten = self._forgotten, []
        for leave in leaves:
            self.leave(leave.device, leave.reason, leave.payload)

    async def compare(self, devices: Sequence[Device]) -> None:
        """See `Membership.compare`."""
        assert self._receiver is not None
        flat = await self._lane.call(HELD, self._me.id)
        held = {device.connection_id: device for device in self._devices(flat[1::2])}
        here = {device.connection_id for device in self._receiver.devices()}
        here.update(leave.device.connection_id for leave in self._forgotten)
        ghosts = [device for connection_id, device in held.items() if connection_id not in here]
        missing = [device for device in devices if device.connection_id not in held and device.connection_id in here]
        if ghosts or missing:
            log.warning("presence put right: %d devices removed, %d added", len(ghosts), len(missing))
        for device in ghosts:
            self.leave(device, Reason.DISCONNECT)
        if missing:
            await self._rejoin(missing, announce=True)
            # What was sent while the cluster had no route to these devices is in the logs alone.
            self._receiver.missed(0)

    def local_devices(self) -> Sequence[Device]:
        """See `Membership.local_devices`."""
        return tuple({device.device_id: device for device in self._joined()}.values())

    def _joined(self) -> list[Device]:
        devices = self._receiver.devices() if self._receiver is not None else ()
        return [device for device in devices if device.connection_id not in self._joining]


def _nonce() -> str:
    return os.urandom(16).hex()


def _now() -> str:
    return local_text(time.time())
