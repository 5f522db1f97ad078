"""A broker without a fault, in a few lines: the judge must find nothing in what it does."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

from tests.history import (
    End,
    Heard,
    History,
    Online,
    Seen,
    Send,
    Session,
    Status,
    device_id_of,
)


class Ideal:
    """A perfect broker in a few lines, driven at random: streams lag, drop, move, are kicked, and resume."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.history = History(presence_seconds=1.0, heard=[], online_at_end={}, cache_frames=1000)
        self.log: list[tuple[int, Send]] = []
        self.live: dict[str, Session] = {}
        self.shown: dict[str, int] = {}
        self.last_id: dict[str, int | None] = {}

    def tick(self) -> float:
        """Let some time pass."""
        self.now += self.random.choice([0.01, 0.3, 2.0])
        return self.now

    def run(self, steps: int) -> History:
        """Do some random things, let everything settle, and return the history."""
        actions = [self.send] * 6 + [self.deliver] * 5 + [self.connect] * 3 + [self.drop] * 2 + [self.kick]
        for _ in range(steps):
            self.random.choice(actions)()
        for device in self.live:
            self.show(device)
        self.history.online_at_end = {name: Online(s.uid, s.node) for name, s in self.live.items()}
        self.now += 10
        self.history.settled_at = self.now
        return self.history

    def send(self) -> None:
        """Send to somebody; now and then without an answer, or refused."""
        names = self.random.choice([(), ("d0",), ("d1", "d2"), ("u0",), ("u1", "d0")])
        status = self.random.choice([Status.ACCEPTED] * 8 + [Status.REFUSED, Status.UNKNOWN])
        start = self.tick()
        send = Send(
            f"data {len(self.history.sends)}",
            frozenset(name for name in names if name.startswith("u")),
            frozenset(name for name in names if name.startswith("d")),
            self.random.choice(["message", "news"]),
            start,
            inf if status is Status.UNKNOWN else self.tick(),
            status,
        )
        online = sum(send.is_for(device, session.uid) for device, session in self.live.items())
        send = replace(send, addressed=online if status is Status.ACCEPTED else None)
        self.history.sends.append(send)
        if status is Status.ACCEPTED or (status is Status.UNKNOWN and self.random.random() < 0.5):
            self.log.append((1000 + 10 * len(self.log), send))

    def show(self, device: str) -> None:
        """Let a stream show what it has not yet."""
        session = self.live[device]
        for id_, send in self.log:
            if id_ > self.shown[device] and send.is_for(device, session.uid):
                session.frames.append(Seen(id_, send.data, send.event, self.now))
                self.last_id[device] = id_
        self.shown[device] = self.log[-1][0] if self.log else 0

    def deliver(self) -> None:
        """Let one stream catch up."""
        if self.live:
            self.tick()
            self.show(self.random.choice(sorted(self.live)))

    def connect(self) -> None:
        """Open a stream for a device, at first or again, with or without its last id."""
        device = f"d{self.random.randrange(4)}"
        uid = f"u{int(device[1:]) % 2}"
        others = any(session.uid == uid for name, session in self.live.items() if name != device)
        former = self.live.get(device)
        start, opened = self.tick(), self.tick()
        if former:
            self.end(device, End.EXTRUDE, "extrude_offline", user=False)
        asked = self.last_id.get(device) if self.random.random() < 0.7 else None
        node = f"n{self.random.randrange(3)}"
        self.live[device] = Session(device, uid, start, opened, node, asked)
        self.history.sessions.append(self.live[device])
        self.shown[device] = (self.log[-1][0] if self.log else 0) if asked is None else asked
        self.hear("device_online", device, uid, "connected", node)
        if not others and not former:
            self.hear("user_online", device, uid, "device_online", node)

    def drop(self) -> None:
        """Let a client go away."""
        if self.live:
            self.tick()
            self.end(self.random.choice(sorted(self.live)), End.DROPPED, "disconnect")

    def kick(self) -> None:
        """Kick a device; it has seen all before that."""
        if self.live:
            self.tick()
            device = self.random.choice(sorted(self.live))
            self.show(device)
            self.end(device, End.KICK, "kick_offline")

    def end(self, device: str, how: End, reason: str, *, user: bool = True) -> None:
        """End a stream and announce that."""
        session = self.live.pop(device)
        session.end, session.ended_at = how, self.now
        self.hear("device_offline", device, session.uid, reason)
        if user and not any(other.uid == session.uid for other in self.live.values()):
            self.hear("user_offline", device, session.uid, reason)

    def hear(self, channel: str, device: str, uid: str, reason: str, payload: str = "") -> None:
        """Note a presence message."""
        assert self.history.heard is not None
        self.history.heard.append(Heard(channel, uid, device, reason, payload, device_id_of(device), self.now))
