"""The interface between the broker and what carries its frames and presence: `memory` within one process, `redis_backend`
across many. Small on purpose; its promises are the ones that the rest of the broker is built on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sse_broker.envelope import Envelope
from sse_broker.frame import Frame
from sse_broker.presence import Device, Instance, Reason, Touch
from sse_broker.target import Message, Sent, Target

# Frames of one replay page, for each of the logs that it is merged from.
PAGE_FRAMES = 25
# What should be published together: more messages, names or characters would hold up the loop and Redis, which does nothing
# else while a script runs; fewer cost round trips.
GROUP_MESSAGES = 128
GROUP_NAMES = 1_000
GROUP_CHARS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """Retained frames for one device, ids rising; `more` when others with greater ids may follow; `gap_id` is the id up to
    which frames after the one that was asked for may already have been dropped from retention, 0 when none were.
    """

    frames: tuple[Frame, ...] = ()
    more: bool = False
    gap_id: int = 0

    @property
    def gap(self) -> bool:
        """Whether frames may be missing."""
        return self.gap_id > 0


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join found: the id in force at that moment, and the first page of the replay."""

    id: int
    page: Page = Page()


@dataclass(frozen=True, slots=True)
class Presence:
    """An online device and what changes about it."""

    device: Device
    touch: Touch


@dataclass(frozen=True, slots=True)
class Health:
    """How a backend is doing: whether it answers, and what it counted since the start of the process."""

    answers: bool = True
    reconnects: int = 0
    damaged: int = 0
    bus_lag_seconds: float = 0
    round_trips: int = 0
    round_trip_seconds: float = 0


class Receiver(Protocol):
    """The instance's side of the bus."""

    def receive(self, envelope: Envelope) -> None:
        """Take the next envelope; ids of frames only rise. Never blocks."""

    def devices(self) -> Sequence[Device]:
        """Return the devices whose streams are open on this instance or about to be."""

    async def room(self) -> None:
        """Return when the next envelopes may come: the reader of the bus waits here, so nothing piles up."""

    def missed(self, after_id: int) -> None:
        """Envelopes with ids greater than `after_id` may be missing: every stream must catch up from the logs, and hold
        what comes next.
        """


class Backend(Protocol):
    """Logs, bus and presence of the cluster, as seen by one instance.

    Promises:
    1. Ids strictly rise over the whole cluster, and over restarts of everything.
    2. `publish` returns when a message has its id and is in the logs and on the bus: each instance with a matching device
       receives it once, in order of ids, also after a disconnection, or is told `missed`.
    3. `join` and every other change of presence are atomic and in one order with `publish`: a frame with an id up to
       `Joined.id` is found by the replay, one with a greater id comes by the bus. Nothing falls between.
    4. Each change of presence is announced once, after it is made, in order for each device.
    5. `leave` compares the connection id, so the end of an old stream never removes its successor.
    6. A call that can not be carried out raises `Unavailable` within seconds; what it was to change is then unknown for
       `publish` and `kick`, taken back by itself for `join`, and made up for by itself for `leave`.
    """

    name: str

    async def start(self, instance: Instance, receiver: Receiver) -> None:
        """Connect, register the instance and begin to receive. Raises: StartError."""

    async def close(self) -> None:
        """Carry out pending leaves, take the instance out of the cluster, end every task."""

    async def publish(self, messages: Sequence[Message]) -> list[Sent]:
        """Give each message its id, keep it for replays and send it on its way. Raises: Unavailable."""

    async def join(self, device: Device, last_id: int | None) -> Joined:
        """Make a device present; a former stream of it, wherever it is, ends as extruded.

        `last_id`: the last frame id that the client has; None for no replay. A device that comes under another user
        gets nothing that was kept for it under the former one; that waits for the former's return. Calling it again for
        the same connection only reads again.
        Raises: Unauthorized when the device's token was revoked by a kick, Unavailable.
        """

    async def replay(self, device: Device, after_id: int) -> Page:
        """Return retained frames for the device, its user or everyone, with ids greater than `after_id`. Raises: Unavailable."""

    def leave(self, device: Device, reason: Reason, payload: str = "") -> None:
        """Remove a device, if it is still there by this connection. Never fails: it is carried out as soon as possible,
        before any later join, and again until it has succeeded.
        """

    def renew(self, presences: Sequence[Presence]) -> None:
        """Keep these devices present and store what changed. Never fails: a later renewal makes up for it."""

    async def kick(self, target: Target, data: str) -> int:
        """Remove devices, revoke the tokens that they came with until these expire, and end their streams.

        Return how many were online. Raises: Unavailable.
        """

    async def device(self, device_id: str) -> Presence | None:
        """Return a device if it is online. Raises: Unavailable."""

    async def user(self, uid: str) -> list[Presence]:
        """Return a user's online devices, oldest login first. Raises: Unavailable."""

    async def instances(self) -> list[Instance]:
        """Return the live instances of the cluster, oldest first. Raises: Unavailable."""

    async def counts(self) -> tuple[int, int]:
        """Return how many users and how many devices are online, cluster-wide. Raises: Unavailable."""

    def health(self) -> Health:
        """Return how it is doing, from what is known here."""
