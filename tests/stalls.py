"""Notices that the machine kept a process waiting, so that what a test must excuse is measured and not guessed.

Of this process it is seen in its own event loop, of others in what Linux counts: how long each was ready to run and did not.
A process that blocks or sleeps by itself is not stalled. Knows nothing of brokers and of what is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

# A stall is as much waiting with hardly any work between. One that shares its processor with two or three others, as when
# several programs start at once, goes on and is not stalled.
STALL_SECONDS = 1.0
WITHIN_SECONDS = 1.25
LOOK_SECONDS = 0.1

Note = Callable[[float, float], None]


@contextlib.asynccontextmanager
async def stalls_noted(note: Note, pids: Callable[[], Iterable[int]] = tuple) -> AsyncIterator[None]:
    """Call `note` with start and end (`time.monotonic`) of each stall of this process, or of one with these ids."""
    task = asyncio.create_task(_watch(note, pids), name="stall watch")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def _watch(note: Note, pids: Callable[[], Iterable[int]]) -> None:
    waits: dict[int, _Waits] = {}
    before = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if now - before > STALL_SECONDS:
            _found("this process", note, before, now)
        before = now
        here = set(pids())
        waits = {pid: waits.get(pid) or _Waits() for pid in here}
        for pid in here:
            if start := waits[pid].look(pid, now):
                _found(f"process {pid}", note, start, now)


def _found(who: str, note: Note, start: float, end: float) -> None:
    print(f"{who} was kept waiting for some of {end - start:.1f} s")
    note(start, end)


class _Waits:
    """How long one process has waited for a processor, at the looks of the last seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque()

    def look(self, pid: int, now: float) -> float | None:
        """Return since when, if it was stalled until now."""
        self._looks.append((now, waited_seconds(pid)))
        while now - self._looks[0][0] > WITHIN_SECONDS and len(self._looks) > 2:
            self._looks.popleft()
        start, waited = self._looks[0]
        stalled = self._looks[-1][1] - waited
        # What it waited is counted when it runs again, so that may have begun before the first of these looks.
        if stalled <= STALL_SECONDS:
            return None
        self._looks.clear()
        return min(start, now - stalled)


def waited_seconds(pid: int) -> float:
    """Return how long a process was ready to run and did not, since it began; 0 if it is over."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
