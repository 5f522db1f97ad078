"""What a recorder writes down about a run: sends, sessions, presence messages, faults. Values only; all times are seconds
of one clock (`time.monotonic`), which every process of one machine shares.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf


class Status(StrEnum):
    """What the sender was told: accepted (200), refused for good (4xx: must never be seen), or no clear word."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class End(StrEnum):
    """How a session ended, as its client saw it; LOST: without a word; OPEN: it did not."""

    OPEN = "open"
    DROPPED = "dropped"
    VANISHED = "vanished"
    KICK = "kick"
    EXTRUDE = "extrude"
    INSTANCE_CLOSE = "instance_close"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Send:
    """One request to `/send`. `data` must be unique in its run: it is how a frame is known again.

    `users` and `devices` both empty: to everyone. `addressed` is the count in the answer.
    """

    data: str
    users: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    event: str = "message"
    sent_at: float = 0.0
    answered_at: float = inf
    status: Status = Status.ACCEPTED
    addressed: int | None = None

    @property
    def everyone(self) -> bool:
        """Whether it goes to all."""
        return not self.users and not self.devices

    def is_for(self, device: str, uid: str) -> bool:
        """Whether it is addressed to this device of this user."""
        return self.everyone or device in self.devices or uid in self.users


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame as a client saw it."""

    id: int
    data: str
    event: str = "message"
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Gap:
    """A notice that frames with ids between `requested` and `oldest` (both excluded) may be missing."""

    requested: int
    oldest: int
    at: float = 0.0


@dataclass(slots=True)
class Session:
    """One stream that its client saw open; `asked_id` is the last id that it came with, if any.

    `connecting_at` is when the request was made, `connected_at` when `sys_connected` was read.
    """

    device: str
    uid: str
    connecting_at: float
    connected_at: float
    node: str = ""
    asked_id: int | None = None
    frames: list[Seen] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    ended_at: float = inf
    end: End = End.OPEN


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request for a stream that was not seen to open; the broker may have registered it for a moment."""

    device: str
    uid: str
    at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A presence message, in the order in which one subscriber got them; `channel` without the common prefix."""

    channel: str
    uid: str
    device: str
    reason: str
    payload: str = ""
    device_id: str = ""
    at: float = 0.0

    @property
    def is_device(self) -> bool:
        """Whether it speaks of a device, not of a user."""
        return self.channel.startswith("device")

    @property
    def is_online(self) -> bool:
        """Whether it says that somebody came."""
        return self.channel.endswith("online")


@dataclass(frozen=True, slots=True)
class Fault:
    """A time in which something was broken on purpose, and what that excuses.

    `data`: acknowledged frames may be lost (a failover, a flush). `messages`: presence messages may be lost (pub/sub is at
    most once). `presence`: devices may be taken for gone, be announced again and be miscounted.
    """

    start: float
    end: float
    data: bool = False
    messages: bool = False
    presence: bool = True

    def touches(self, start: float, end: float) -> bool:
        """Whether it overlaps a span of time."""
        return self.start <= end and start <= self.end


@dataclass(frozen=True, slots=True)
class Online:
    """A device that `/info` gave as online."""

    uid: str
    node: str = ""


@dataclass(slots=True)
class History:
    """A whole run. What is None was not recorded and is not judged.

    `settled_at`: what was accepted before it had reached every open stream when the recording ended. `delivery_seconds`: how
    long a frame may take to a stream that stays open. `cache_frames`, `expire_seconds`: the retention. `clock_offset`: Unix
    time minus recorder time, needed to judge gaps by age. `presence_seconds`: how long presence may take to follow.
    `late_seconds`: how long a frame may take that is seen, faults aside.
    """

    sends: list[Send] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    heard: list[Heard] | None = None
    online_at_end: dict[str, Online] | None = None
    faults: list[Fault] = field(default_factory=list)
    settled_at: float = inf
    delivery_seconds: float | None = None
    cache_frames: int | None = None
    expire_seconds: float = inf
    clock_offset: float | None = None
    presence_seconds: float = 45.0
    late_seconds: float | None = None

    def faulty(self, start: float, end: float, kind: str) -> bool:
        """Whether a fault that excuses `kind` (a field of Fault) overlaps a span of time."""
        return any(getattr(fault, kind) and fault.touches(start, end) for fault in self.faults)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not happen. `kind` is one word or two joined by a line: see `history`."""

    kind: str
    what: str
    device: str = ""
    id: int | None = None


def device_id_of(name: str) -> str:
    """Return the id of a device name as the contract gives it."""
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
