"""An instance among the others, in Redis: its membership, and the routes of its devices, which it puts right after it was cut
off, cleared or forgotten. It does what `cluster` decides, and knows of frames only from which id on they may be missing.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sse_broker.backend import Receiver
from sse_broker.clock import local_now
from sse_broker.cluster import Beat
from sse_broker.envelope import EndEnvelope
from sse_broker.errors import Unavailable
from sse_broker.presence import Device, Instance, Reason
from sse_broker.redis_bus import Bus
from sse_broker.redis_entries import device_json, devices_of
from sse_broker.redis_lane import Lane
from sse_broker.redis_member_scripts import BEAT, CLEAR, HELD, REGISTER, REJOIN, RETIRE
from sse_broker.redis_scripts import LEAVE

log = logging.getLogger(__name__)

CLEAR_DEVICES = 200
KEPT_CLEARINGS = 20
# How old a clearing may be that a failover takes along. One that was cleared long before may live again.
CLEARING_SECONDS = 120.0
REJOIN_DEVICES = 200
SETTLE_SECONDS = 0.1
JOINING = "this instance is just joining the cluster; try again"


@dataclass(frozen=True, slots=True)
class _Leave:
    device: Device
    reason: Reason
    payload: str


@dataclass(slots=True)
class Joining:
    """How far a join has come: no more must be taken back than may have been done."""

    sent: bool = False
    done: bool = False


class RedisMembership:
    """The `Membership` of one instance, from `begin` to `end`.

    `loss_seconds`: how long after a loss of data all other instances have noticed it.
    """

    _me: Instance
    _receiver: Receiver
    _bus: Bus

    def __init__(self, lane: Lane, *, expire_ms: int, loss_seconds: float) -> None:
        self._lane = lane
        self._expire_ms = expire_ms
        self._loss_seconds = loss_seconds
        self._acknowledged_id = 0
        self._was_member = False
        self._joining: set[str] = set()
        # Set while this instance is a member and its routes are in force: only then do logs and bus make a whole.
        self._whole = asyncio.Event()
        # After a loss of data, until the other instances have put back what they hold, too: nobody comes anew, and who left
        # is kept here, so that moves and users are announced right.
        self._settles_at = 0.0
        self._forgotten: list[_Leave] = []
        # When this one has cleared and announced which instances: should a server forget it, that is done again without a word.
        self._cleared: deque[tuple[float, str]] = deque(maxlen=KEPT_CLEARINGS)
        self.damaged = 0

    def begin(self, instance: Instance, receiver: Receiver, bus: Bus) -> None:
        """Take what is known once the backend starts."""
        self._me, self._receiver, self._bus = instance, receiver, bus

    def end(self) -> None:
        """Take the instance out of the cluster, behind all leaves."""
        self._settles_at = 0.0
        self.leave_again()
        self._lane.post(RETIRE, self._me.id)

    # --- ids ---

    def acknowledge(self, number: int) -> None:
        """Note the id of a change that Redis has acknowledged to this instance."""
        self._acknowledged_id = max(self._acknowledged_id, number)

    @property
    def highest_id(self) -> int:
        """The greatest id that was acknowledged, or came by the bus."""
        return max(self._acknowledged_id, self._bus.last_id)

    def probe(self) -> tuple[str, int]:
        """Return what a server is told on a new connection: an acknowledged id that it lacks proves that it lost something."""
        return self._me.id, self._acknowledged_id

    # --- coming and going ---

    @contextmanager
    def joining(self, device: Device) -> Iterator[Joining]:
        """Pass a device over when presence is put right, as it announces itself; and take back a join that fails.

        One that was never sent leaves nothing behind, here or in Redis: while that is away, there are many.
        """
        joining = Joining()
        self._joining.add(device.connection_id)
        try:
            yield joining
        except BaseException:
            if joining.sent:
                self._leave(device, Reason.DISCONNECT, "", is_known=joining.done)
            raise
        finally:
            self._joining.discard(device.connection_id)

    async def settled(self, deadline: float) -> None:
        """Return when devices may come. Raises: Unavailable, at the deadline."""
        while time.monotonic() < min(self._settles_at, deadline):
            await asyncio.sleep(SETTLE_SECONDS)
        if time.monotonic() > deadline:
            raise Unavailable(JOINING)

    async def whole(self, seconds: float) -> None:
        """Return when what is not in the logs comes by the bus. Raises: Unavailable, after this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._whole.wait()
        except TimeoutError:
            raise Unavailable(JOINING) from None

    def leave(self, device: Device, reason: Reason, payload: str) -> None:
        """See `Backend.leave`."""
        self._leave(device, reason, payload, is_known=device.connection_id not in self._joining)

    def _leave(self, device: Device, reason: Reason, payload: str, *, is_known: bool) -> None:
        """Remove a device. Should the cluster have forgotten this instance, that waits until presence is right again; but for
        one of whom it was never said that it came (`is_known`).
        """

        def left(number: bytes | int) -> None:
            self.acknowledge(int(number))
            if is_known and not int(number):
                self._forgotten.append(_Leave(device, reason, payload))

        if time.monotonic() < self._settles_at:
            left(0)
            return
        self._lane.post(
            LEAVE,
            local_now(),
            self._expire_ms,
            device.instance_id,
            device.device_id,
            device.connection_id,
            reason,
            payload,
            then=left,
        )

    # --- see `cluster.Membership` ---

    async def beat(self, ttl_seconds: float) -> Beat:
        """See `Membership.beat`."""
        me = self._me
        arguments = (me.id, me.address, me.version, repr(me.start_time), int(ttl_seconds * 1000), self.highest_id)
        known, cleared, epoch, count, dead = await self._lane.begin(BEAT, lambda: arguments, ahead=True)
        return Beat(bool(known), bool(cleared), int(epoch), int(count), tuple(one.decode() for one in dead))

    def leave_again(self) -> None:
        """See `Membership.leave_again`."""
        if time.monotonic() > self._settles_at:
            leaves, self._forgotten = self._forgotten, []
            for leave in leaves:
                self.leave(leave.device, leave.reason, leave.payload)

    async def clear(self, instance_id: str) -> int:
        """See `Membership.clear`."""
        cleared = await self._clear(instance_id, Reason.INSTANCE_CLEAR)
        self._cleared.append((time.monotonic(), instance_id))
        return cleared

    async def _clear(self, instance_id: str, reason: str) -> int:
        cleared, left = 0, 1
        while left:
            removed, left, number = await self._lane.call(
                CLEAR, instance_id, CLEAR_DEVICES, local_now(), self._expire_ms, self._me.id, reason
            )
            cleared += removed
            self.acknowledge(int(number))
        return cleared

    async def rejoin(self, *, announce: bool) -> None:
        """See `Membership.rejoin`."""
        # From when routes were lost until this is a member again, frames are in the logs alone. So the bus stops, and all
        # streams read from the logs what follows its last envelope, once routes and membership are in force.
        lost = self._was_member and not announce
        if lost:
            self._settles_at = math.inf
        self._whole.clear()
        self._bus.pause()
        if self._was_member:
            self._receiver.missed(self._bus.last_id)
        self._end_outdated()
        await self._put_back(self.local_devices(), announce=announce)
        # Devices that left while the cluster did not know them come back for a moment, so that their going is announced.
        # Now, as until here answers to leaves have come that say so.
        await self._put_back([leave.device for leave in self._forgotten], announce=announce)
        if lost:
            for cleared_at, instance_id in tuple(self._cleared):
                if time.monotonic() - cleared_at < CLEARING_SECONDS:
                    await self._clear(instance_id, "")
            await self._forget_ghosts()
        self.acknowledge(int(await self._lane.call(REGISTER, self._me.id, self._me.address)))
        if lost:
            self._settles_at = time.monotonic() + self._loss_seconds
        self._was_member = True
        self._bus.resume()
        self._whole.set()

    async def compare(self, devices: Sequence[Device]) -> None:
        """See `Membership.compare`."""
        held, here = await self._held(), self._here()
        ghosts = [device for device in held if device.connection_id not in here]
        there = {device.connection_id for device in held}
        missing = [device for device in devices if device.connection_id in here - there]
        if ghosts or missing:
            log.warning("presence put right: %d devices removed, %d added", len(ghosts), len(missing))
        for device in ghosts:
            self.leave(device, Reason.DISCONNECT, "")
        if missing:
            await self._put_back(missing, announce=True)
            # What was sent while the cluster had no route to these devices is in the logs alone.
            self._receiver.missed(0)

    def local_devices(self) -> Sequence[Device]:
        """See `Membership.local_devices`."""
        return tuple({device.device_id: device for device in self._joined()}.values())

    # --- putting right ---

    async def _put_back(self, devices: Iterable[Device], *, announce: bool) -> None:
        waiting = list(devices)
        while waiting:
            # Who left since the last batch must not come back behind its leave.
            here = self._here()
            batch = [device for device in waiting[:REJOIN_DEVICES] if device.connection_id in here]
            del waiting[:REJOIN_DEVICES]
            arguments: list[Any] = [self._me.id, self._me.address, int(announce), local_now(), self._expire_ms]
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
        held, here = await self._held(), self._here()
        for device in held:
            if device.connection_id not in here:
                self._lane.post(
                    LEAVE, local_now(), self._expire_ms, self._me.id, device.device_id, device.connection_id, "", ""
                )

    def _end_outdated(self) -> None:
        """End the streams of devices that have a newer one here: the word of it may be lost."""
        newest = {device.device_id: device for device in self._joined()}
        for device in self._joined():
            successor = newest[device.device_id]
            if successor is not device:
                self._receiver.receive(
                    EndEnvelope(device.device_id, device.connection_id, Reason.EXTRUDE, successor.device_address)
                )

    async def _held(self) -> list[Device]:
        """Return the devices that the cluster holds for this instance."""
        flat = await self._lane.call(HELD, self._me.id)
        devices, damaged = devices_of(flat[1::2])
        self.damaged += damaged
        return devices

    def _here(self) -> set[str]:
        """Return the connections that are here, or were and have to be put back for a moment."""
        here = {device.connection_id for device in self._receiver.devices()}
        return here | {leave.device.connection_id for leave in self._forgotten}

    def _joined(self) -> list[Device]:
        return [device for device in self._receiver.devices() if device.connection_id not in self._joining]
