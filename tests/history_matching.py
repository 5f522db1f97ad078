"""Explains what was said of a device by its streams: which stream each coming and going was of. The judge of presence uses it.

Messages name no stream. So of all explanations that keep the order, the cheapest is taken: the one that leaves least wrong,
missing or too many. What it leaves is found; a race that can be read in two ways is read in the better.
- A stream explains a coming that was heard after it was asked for, and the going behind that. In a fault its device may be
  taken for gone and be announced again: then it explains some of both.
- An attempt that was not seen to open explains a coming soon after it, or none.
- A fault excuses what was said or not said around it, and nothing long before or after.
- Two streams that were asked for at once may have been registered in either order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from tests.history_lateness import merged, overlap
from tests.history_records import Attempt, End, Finding, Heard, History, Session

REASONS = {
    End.DROPPED: {"disconnect", "extrude_offline", "kick_offline", "instance_close"},
    End.VANISHED: {"heartbeat_fail", "disconnect", "extrude_offline", "kick_offline", "instance_close"},
    End.KICK: {"kick_offline"},
    End.EXTRUDE: {"extrude_offline"},
    End.INSTANCE_CLOSE: {"instance_close", "extrude_offline"},
    End.LOST: {"instance_clear", "extrude_offline", "heartbeat_fail", "disconnect", "instance_close"},
}
# A message too many or too few is no cheaper than two streams whose messages fit badly.
WEIGHTS = {"presence-missing": 3, "presence-doubled": 3}

Step = tuple[int, int, tuple[Finding, ...]]
Trail = tuple[tuple[Finding, ...], "Trail"] | None


@dataclass(frozen=True, slots=True)
class Visit:
    """A coming and the going behind it, if there was one."""

    came: Heard
    went: Heard | None = None


def judge_device(history: History, device: str, messages: Sequence[Heard]) -> list[Finding]:
    """Return what is wrong with the messages about a device, in the explanation that leaves least."""
    return _Explanation(history, device, messages).findings()


class _Explanation:
    """The search for the cheapest way from before the first stream and message to behind the last of both."""

    def __init__(self, history: History, device: str, messages: Sequence[Heard]) -> None:
        self._history, self._device, self._patience = history, device, history.presence_seconds
        streams: list[Session | Attempt] = [one for one in history.sessions if one.device == device]
        streams += [one for one in history.attempts if one.device == device]
        self._streams = sorted(streams, key=_opened_at)
        self._visits = _visits(messages)
        self._faults = merged((fault.start, fault.end + self._patience) for fault in history.faults if fault.presence)

    def findings(self) -> list[Finding]:
        """Search."""
        number = itertools.count()
        # Cost, how far it is (less is further), a number, so that no more is compared; then where it stands, and its findings.
        ways: list[tuple[int, int, int, int, int, Trail]] = [(0, 0, next(number), 0, 0, None)]
        known = set[tuple[int, int]]()
        while True:
            cost, _, _, stream, visit, trail = heapq.heappop(ways)
            if (stream, visit) in known:
                continue
            known.add((stream, visit))
            if stream == len(self._streams) and visit == len(self._visits):
                return _unrolled(trail)
            for streams, visits, findings in self._steps(stream, visit):
                further = cost + sum(WEIGHTS.get(finding.kind, 1) for finding in findings)
                to = stream + streams, visit + visits
                heapq.heappush(ways, (further, -sum(to), next(number), *to, (findings, trail)))

    def _steps(self, stream: int, visit: int) -> Iterator[Step]:
        """Give the ways on: how many streams and visits each takes, and what it leaves."""
        streams, visits = self._streams[stream : stream + 2], self._visits[visit : visit + 2]
        if streams:
            yield 1, 0, tuple(self._unannounced(streams[0]))
        if visits:
            yield 0, 1, tuple(self._of_nobody(visits[0]))
        if streams and visits:
            yield from self._explained(streams[0], visit)
        if len(streams) == len(visits) == 2 and self._at_once(streams[0], streams[1]):
            for _, _, first in self._explained(streams[1], visit, most=1):
                for _, _, second in self._explained(streams[0], visit + 1, most=1):
                    yield 2, 2, first + second

    def _at_once(self, first: Session | Attempt, second: Session | Attempt) -> bool:
        """Whether the second was asked for before the first was surely registered."""
        until = first.connected_at if isinstance(first, Session) else first.at + self._patience
        return _asked_at(second) < until

    def _explained(self, stream: Session | Attempt, visit: int, most: int = 10**9) -> Iterator[Step]:
        """Let a stream explain a visit, and those behind it in which its device was announced again."""
        came = self._visits[visit].came
        if came.at < _asked_at(stream):
            return
        if isinstance(stream, Attempt):
            if came.uid == stream.uid and came.at <= stream.at + self._patience:
                yield 1, 1, ()
            return
        coming, again = [*self._coming(stream, came)], list[Finding]()
        for place in range(visit, min(visit + most, len(self._visits))):
            one = self._visits[place]
            if place > visit:
                again += self._again(one)
                if len(again) > 1 or one.came.at > stream.ended_at + self._patience:
                    return
            yield 1, place - visit + 1, (*coming, *again, *self._going(stream, one.went))

    # What each leaves

    def _faulty(self, start: float, end: float, kind: str = "presence") -> bool:
        return self._history.faulty(start, end, kind)

    def _unannounced(self, stream: Session | Attempt) -> Iterator[Finding]:
        if isinstance(stream, Session) and not self._faulty(
            stream.connecting_at, stream.connected_at + self._patience, "messages"
        ):
            yield self._finding("missing", f"a stream of {stream.uid} at {stream.node!r} was never announced")

    def _again(self, visit: Visit) -> Iterator[Finding]:
        at = visit.came.at
        if not self._faulty(at - self._patience, at):
            yield self._finding("doubled", f"online as {visit.came.uid} at {visit.came.payload!r}, and no stream of it")

    def _of_nobody(self, visit: Visit) -> list[Finding]:
        """Let a visit be of no stream, as in a fault; what was said in it falsely is put right soon after it."""
        at = visit.went.at if visit.went else visit.came.at
        if self._faulty(at - self._patience, at):
            return [*self._again(visit)]
        return [self._finding("doubled", f"online as {visit.came.uid} until {visit.went}, and no stream of it")]

    def _late(self, what: str, due: float, heard: Heard) -> Iterator[Finding]:
        """Look how long it took, faults and the time to follow them aside."""
        if heard.at - due - overlap(self._faults, due, heard.at) > self._patience:
            yield self._finding("late", f"{what} after {heard.at - due:.1f} s")

    def _coming(self, session: Session, came: Heard) -> Iterator[Finding]:
        yield from self._late("online", session.connected_at, came)
        if self._faulty(session.connecting_at - self._patience, session.connected_at + self._patience):
            return
        if came.uid != session.uid or (session.node and came.payload != session.node):
            what = f"online as {came.uid} at {came.payload!r}, not {session.uid} at {session.node!r}"
            yield self._finding("wrong", what)

    def _going(self, session: Session, went: Heard | None) -> Iterator[Finding]:
        start, end = session.ended_at - self._patience, session.ended_at + self._patience
        if went is None:
            # The end of one that ended just now may be announced after the recording.
            if end <= self._history.settled_at and end < inf and not self._faulty(start, end, "messages"):
                yield self._finding("missing", f"offline after {session.end}: never said")
        elif went.at < start:
            # It may have been announced again, unheard.
            again = self._faulty(went.at - self._patience, went.at + self._patience, "messages")
            if not again and not self._cleared_before_its_end(session, went):
                yield self._finding("wrong", f"offline by {went.reason!r}, and the stream was open")
        elif not self._faulty(start, end):
            yield from self._ending(session, went)
        elif not self._faulty(start, end, "messages"):  # else what was heard may be another's
            yield from self._late("offline", session.ended_at, went)

    def _cleared_before_its_end(self, session: Session, went: Heard) -> bool:
        """Whether an instance that stood still was cleared, and was ended only later in the same fault: the others see it dead at
        once, its clients when its connections break.
        """
        within = any(start <= went.at and session.ended_at <= end for start, end in self._faults)
        return within and went.reason == "instance_clear" and session.end is End.LOST

    def _ending(self, session: Session, went: Heard) -> Iterator[Finding]:
        if went.reason not in REASONS[session.end]:
            yield self._finding("wrong", f"offline by {went.reason!r} after {session.end}")
        if went.uid != session.uid:
            yield self._finding("wrong", f"offline as {went.uid}, not {session.uid}")
        if went.reason in ("instance_close", "instance_clear") and session.node and went.payload != session.node:
            yield self._finding("wrong", f"payload {went.payload!r} at {went.reason}, not {session.node!r}")
        if went.reason in ("disconnect", "heartbeat_fail") and went.payload:
            yield self._finding("wrong", f"payload {went.payload!r} at {went.reason}")
        yield from self._late("offline", session.ended_at, went)

    def _finding(self, kind: str, what: str) -> Finding:
        return Finding(f"presence-{kind}", what, self._device)


def _asked_at(stream: Session | Attempt) -> float:
    return stream.connecting_at if isinstance(stream, Session) else stream.at


def _opened_at(stream: Session | Attempt) -> float:
    return stream.connected_at if isinstance(stream, Session) else stream.at


def _visits(messages: Sequence[Heard]) -> list[Visit]:
    """Return comings with the goings behind them; a going without a coming is found by who judges how they alternate."""
    visits: list[Visit] = []
    for message in messages:
        if message.is_online:
            visits.append(Visit(message))
        elif visits and visits[-1].went is None:
            visits[-1] = Visit(visits[-1].came, message)
    return visits


def _unrolled(trail: Trail) -> list[Finding]:
    findings: list[Finding] = []
    while trail:
        found, trail = trail
        findings[:0] = found
    return findings
