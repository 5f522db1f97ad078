"""Judges how soon frames were seen. The rule: an accepted frame is on a stream `late_seconds` after its answer, or after the
stream opened if that was later, not counting the time of faults.

So a stream that is open and silent, while everybody else goes on, is found even if it gets everything in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.history_records import Finding, History, Status


def judge_lateness(history: History, late_seconds: float) -> Iterator[Finding]:
    """Return the frames that came too late, one for each stream."""
    answered = {send.data: send.answered_at for send in history.sends if send.status is Status.ACCEPTED}
    faults = merged((fault.start, fault.end) for fault in history.faults)
    for session in history.sessions:
        worst, finding = late_seconds, None
        for frame in session.frames:
            due = max(answered.get(frame.data, frame.at), session.connected_at)
            if frame.at - due <= worst:
                continue
            clear = frame.at - due - overlap(faults, due, frame.at)
            if clear > worst:
                what = f"{frame.data[:80]!r} came {frame.at - due:.1f} s late, {clear:.1f} s of them without a fault"
                worst, finding = clear, Finding("late", what, session.device, frame.id)
        if finding:
            yield finding


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return spans of time sorted and without overlaps."""
    apart: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    return apart


def overlap(spans: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return how much of a span of time lies within the others."""
    return sum(max(0.0, min(end, one_end) - max(start, one_start)) for one_start, one_end in spans)
