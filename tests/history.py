"""The judge of a recorded run: a pure function from a history to what is wrong with it. Knows the contract, not the broker.

Kinds of findings about frames: `lost`, `doubled`, `reordered`, `altered`, `forged` (no send made it), `refused` (its sender
was told no), `foreign` (not for this device or user), `id-shared` (one id for two frames), `gap` (a notice without cause),
`miscounted` (the number in the answer of `/send`), `late`.
About presence: `ghost` (online at the end, and gone), `absent` (the reverse), `presence-missing`, `presence-doubled`,
`presence-wrong` (reason, payload or id), `presence-late`, `twin` (two open streams of one device).

What races allow is allowed: see `history_frames`, `history_presence` and `history_matching`.
"""

from __future__ import annotations

from tests.history_frames import judge_frames
from tests.history_lateness import judge_lateness
from tests.history_presence import judge_counts, judge_end, judge_messages
from tests.history_records import (
    Attempt,
    End,
    Fault,
    Finding,
    Gap,
    Heard,
    History,
    Online,
    Seen,
    Send,
    Session,
    Status,
    device_id_of,
)

__all__ = [
    "Attempt",
    "End",
    "Fault",
    "Finding",
    "Gap",
    "Heard",
    "History",
    "Online",
    "Seen",
    "Send",
    "Session",
    "Status",
    "decide",
    "device_id_of",
]


def decide(history: History) -> list[Finding]:
    """Return everything that is wrong with a history; an empty list is the verdict that nothing is."""
    findings = judge_frames(history)
    if history.late_seconds is not None:
        findings += judge_lateness(history, history.late_seconds)
    findings += judge_counts(history)
    if history.heard is not None:
        findings += judge_messages(history, history.heard)
    if history.online_at_end is not None:
        findings += judge_end(history, history.online_at_end)
    return findings
