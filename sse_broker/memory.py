"""The embedded backend: a whole broker in one process, with no server beside it. It keeps logs and presence in memory, so
every change is atomic by being synchronous. It knows no sockets and no HTTP.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sse_broker.backend import PAGE_FRAMES, Health, Joined, Page, Presence, Receiver
from sse_broker.clock import local_text
from sse_broker.envelope import EndEnvelope, FrameEnvelope
from sse_broker.errors import Unauthorized
from sse_broker.frame import MAX_ID, Frame
from sse_broker.presence import (
    DEVICE_OFFLINE,
    DEVICE_ONLINE,
    USER_OFFLINE,
    USER_ONLINE,
    Device,
    Instance,
    PresenceMessage,
    Reason,
    Touch,
)
from sse_broker.retention import MICROSECONDS, Logs
from sse_broker.target import Message, Sent, Target

EVERYONE = "everyone"
# Frames for a device that was not here yet are for whoever comes with it.
NO_USER = ""


class MemoryBackend:
    """The `Backend` of a single instance; `listeners` hear every presence message, in order."""

    name = "embedded"

    def __init__(self, *, max_frames: int, expire_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._expire_seconds = expire_seconds
        self._logs = Logs(max_frames, expire_seconds)
        self._instance: Instance | None = None
        self._receiver: Receiver | None = None
        self._presences: dict[str, Presence] = {}
        self._user_devices: dict[str, dict[str, None]] = {}
        self._owners: dict[str, tuple[str, float]] = {}
        self._revoked: dict[str, float] = {}
        self.listeners: list[Callable[[PresenceMessage], None]] = []
        self._last_id = 0
        # Frames of an earlier run are gone with it: a client that asks for them is told so.
        self._epoch_id = self._next_id()
        self._swept_at = clock()

    # --- life ---

    async def start(self, instance: Instance, receiver: Receiver) -> None:
        """See `Backend.start`."""
        self._instance = instance
        self._receiver = receiver

    async def close(self) -> None:
        """See `Backend.close`: there is nothing to wait for."""

    # --- frames ---

    async def publish(self, messages: Sequence[Message]) -> list[Sent]:
        """See `Backend.publish`."""
        self._sweep()
        sent = [self._publish(message) for message in messages]
        if self._receiver is not None:
            await self._receiver.room()
        return sent

    def _publish(self, message: Message) -> Sent:
        target = message.target
        frame = Frame(self._next_id(), message.event, message.data)
        if target.everyone:
            self._logs.append(EVERYONE, frame)
            self._give(FrameEnvelope(frame, None))
            return Sent(frame.id, len(self._presences))
        for uid in target.users:
            self._logs.append(("user", uid), frame)
        for device_id in target.devices:
            self._logs.append(("device", device_id, self._owner(device_id)), frame)
        device_ids = self._online(target)
        if device_ids:
            self._give(FrameEnvelope(frame, device_ids))
        return Sent(frame.id, len(device_ids))

    async def replay(self, device: Device, after_id: int) -> Page:
        """See `Backend.replay`."""
        return self._page(device, after_id)

    def _page(self, device: Device, after_id: int) -> Page:
        keys = _log_keys(device)
        now_id = int(self._clock() * MICROSECONDS)
        gap_id = self._logs.gap_id(keys, after_id, now_id)
        if after_id < self._epoch_id:
            gap_id = max(gap_id, self._epoch_id - 1)
        frames = self._logs.read(keys, after_id, PAGE_FRAMES + 1)
        return Page(tuple(frames[:PAGE_FRAMES]), more=len(frames) > PAGE_FRAMES, gap_id=gap_id)

    def _next_id(self) -> int:
        self._last_id = min(max(self._last_id + 1, int(self._clock() * MICROSECONDS)), MAX_ID)
        return self._last_id

    # --- presence ---

    async def join(self, device: Device, last_id: int | None) -> Joined:
        """See `Backend.join`."""
        self._sweep()
        if device.token_digest in self._revoked:
            raise Unauthorized("the token was revoked when its device was kicked")
        former = self._presences.get(device.device_id)
        if former is None or former.device.connection_id != device.connection_id:
            self._replace(former.device if former else None, device)
        if last_id is None:
            return Joined(self._last_id)
        return Joined(self._last_id, self._page(device, last_id))

    def _replace(self, former: Device | None, device: Device) -> None:
        self._owners.pop(device.device_id, None)
        self._logs.rename(("device", device.device_id, NO_USER), ("device", device.device_id, device.uid))
        same_user = former is not None and former.uid == device.uid
        if former is not None:
            self._remove(former, Reason.EXTRUDE, device.device_address, keep_user=same_user)
            payload = device.device_address
            self._give(EndEnvelope(former.device_id, former.connection_id, Reason.EXTRUDE, payload))
        self._presences[device.device_id] = Presence(device, Touch(device.login_time, 0))
        devices = self._user_devices.setdefault(device.uid, {})
        first = not devices and not same_user
        devices[device.device_id] = None
        self._announce(DEVICE_ONLINE, device, Reason.CONNECTED, device.instance_address)
        if first:
            self._announce(USER_ONLINE, device, Reason.DEVICE_ONLINE, device.instance_address)

    def leave(self, device: Device, reason: Reason, payload: str = "") -> None:
        """See `Backend.leave`."""
        present = self._presences.get(device.device_id)
        if present is not None and present.device.connection_id == device.connection_id:
            self._remove(present.device, reason, payload)

    def _remove(self, device: Device, reason: Reason, payload: str, *, keep_user: bool = False) -> None:
        del self._presences[device.device_id]
        self._own(device.device_id, device.uid)
        devices = self._user_devices[device.uid]
        del devices[device.device_id]
        if not devices:
            del self._user_devices[device.uid]
        self._announce(DEVICE_OFFLINE, device, reason, payload)
        if not devices and not keep_user:
            self._announce(USER_OFFLINE, device, reason, payload)

    def _owner(self, device_id: str) -> str:
        """Return the user for whom frames for a device are kept: under whom it is here or was last."""
        present = self._presences.get(device_id)
        if present is not None:
            return present.device.uid
        uid, _ = self._owners.get(device_id, (NO_USER, 0))
        if uid:
            self._own(device_id, uid)
        return uid

    def _own(self, device_id: str, uid: str) -> None:
        self._owners.pop(device_id, None)  # so that the oldest stands in front
        self._owners[device_id] = (uid, self._clock())

    def renew(self, presences: Sequence[Presence]) -> None:
        """See `Backend.renew`."""
        for presence in presences:
            present = self._presences.get(presence.device.device_id)
            if present is not None and present.device.connection_id == presence.device.connection_id:
                self._presences[presence.device.device_id] = replace(present, touch=presence.touch)

    async def kick(self, target: Target, data: str) -> int:
        """See `Backend.kick`."""
        devices = [self._presences[device_id].device for device_id in self._online(target)]
        for device in devices:
            if device.token_digest:
                self._revoked[device.token_digest] = device.token_expires_at
            self._remove(device, Reason.KICK, data)
            self._give(EndEnvelope(device.device_id, device.connection_id, Reason.KICK, data))
        return len(devices)

    def _online(self, target: Target) -> tuple[str, ...]:
        """Choose the ids of a target's online devices, each once."""
        if not target.devices and len(target.users) == 1:  # as most are
            return tuple(self._user_devices.get(target.users[0], ()))
        named = tuple([device_id for device_id in target.devices if device_id in self._presences])
        if not target.users:
            return named
        found: dict[str, None] = {}
        for uid in target.users:
            found.update(self._user_devices.get(uid, {}))
        return tuple(found | dict.fromkeys(named))

    # --- what is known ---

    async def device(self, device_id: str) -> Presence | None:
        """See `Backend.device`."""
        return self._presences.get(device_id)

    async def user(self, uid: str) -> list[Presence]:
        """See `Backend.user`."""
        return [self._presences[device_id] for device_id in self._user_devices.get(uid, ())]

    async def instances(self) -> list[Instance]:
        """See `Backend.instances`."""
        return [replace(self._instance, device_count=len(self._presences))] if self._instance else []

    async def counts(self) -> tuple[int, int]:
        """See `Backend.counts`."""
        return len(self._user_devices), len(self._presences)

    def health(self) -> Health:
        """See `Backend.health`: it always answers."""
        return Health()

    # --- help ---

    def _give(self, envelope: FrameEnvelope | EndEnvelope) -> None:
        if self._receiver is not None:
            self._receiver.receive(envelope)

    def _announce(self, channel: str, device: Device, reason: Reason, payload: str) -> None:
        if not self.listeners:
            return
        message = PresenceMessage(
            channel, device.uid, device.device_id, device.device_name, local_text(self._clock()), reason, payload
        )
        for listener in self.listeners:
            listener(message)

    def _sweep(self) -> None:
        """Forget, at most once a second, what has expired: logs, former owners of devices, revoked tokens."""
        now = self._clock()
        if now - self._swept_at < 1:
            return
        self._swept_at = now
        self._logs.expire(int(now * MICROSECONDS))
        while self._owners and next(iter(self._owners.values()))[1] < now - self._expire_seconds:
            del self._owners[next(iter(self._owners))]
        for digest in [digest for digest, expires_at in self._revoked.items() if expires_at < now]:
            del self._revoked[digest]


def _log_keys(device: Device) -> tuple[object, ...]:
    return EVERYONE, ("user", device.uid), ("device", device.device_id, device.uid)
