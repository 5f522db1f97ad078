"""Histories written by hand, in a word for each thing that happened: what tests of the judge feed it."""

from __future__ import annotations

from math import inf
from typing import Any

from tests.history import (
    End,
    Gap,
    Heard,
    History,
    Seen,
    Send,
    Session,
    decide,
    device_id_of,
)


class Story:
    """Writes a history by hand: sends take a tenth of a second and get the ids 1, 2, 3, ... in order."""

    def __init__(self, **settings: Any) -> None:
        self.history = History(presence_seconds=1.0, **settings)

    def send(self, data: str, at: float, *, to: str = "", answered: float = 0.1, **more: Any) -> Story:
        """Send at a time; `to` is user, device (begins with d) or empty for everyone."""
        who: dict[str, Any] = {}
        if to:
            who["devices" if to.startswith("d") else "users"] = frozenset([to])
        self.history.sends.append(Send(data, sent_at=at, answered_at=at + answered, **who, **more))
        return self

    def id(self, data: str) -> int:
        """Return the id of a send."""
        return [send.data for send in self.history.sends].index(data) + 1

    def seen(self, data: str) -> Seen:
        """Return the frame of a send, as a client sees it soon after."""
        send = self.history.sends[self.id(data) - 1]
        return Seen(self.id(data), data, send.event, send.sent_at + 0.05)

    def stream(
        self, at: float, *data: str, device: str = "d", uid: str = "u", asked: int | None = None, until: float = inf,
        end: End | None = None, gaps: tuple[Gap, ...] = (), node: str = "n",
    ) -> Story:  # fmt: skip
        """Add a stream that was asked for at a time, opened a tenth of a second later and showed some frames."""
        frames = [self.seen(one) for one in data]
        end = end or (End.OPEN if until == inf else End.DROPPED)
        self.history.sessions.append(
            Session(device, uid, at, at + 0.1, node, asked, frames, list(gaps), until, end)
        )  # fmt: skip
        return self

    def kinds(self) -> list[str]:
        """Return the kinds of what is found."""
        return [finding.kind for finding in decide(self.history)]


def three() -> Story:
    """Begin with three sends to everyone."""
    return Story().send("a", 1).send("b", 2).send("c", 3)


def heard(text: str, device: str = "d", uid: str = "u", payload: str = "") -> list[Heard]:
    """Return messages for a line such as `+d@0 +u@0 -d@5:disconnect`: + or -, device or user, time, reason."""
    messages = []
    for word in text.split():
        what, _, reason = word.partition(":")
        whose, _, at = what[1:].partition("@")
        online, is_user = what[0] == "+", whose.startswith(("u", "v"))
        channel = ("user_" if is_user else "device_") + ("online" if online else "offline")
        if online:
            reason = "device_online" if is_user else "connected"
        where = "n" if online or reason.startswith("instance") else ""
        name = whose if not is_user else device
        messages.append(Heard(channel, whose if is_user else uid, name, reason, where, device_id_of(name), float(at)))
    return messages


def presence(text: str, *, end: End = End.DROPPED, until: float = 5, uid: str = "u", **settings: Any) -> list[str]:
    """Return what is found for one stream from 0 to 5 and these messages."""
    story = Story(heard=heard(text, uid=uid), **settings)
    story.stream(0, until=inf if end is End.OPEN else until, end=end)
    return story.kinds()
