"""Run a broker whose event loop is watched from inside: how long it went without turning, by the clock and by its own CPU time. It
wraps uvloop's factory and knows nothing else of the broker, which is started as its command line would.

Usage: python bench/stall_watch.py FILE [arguments of sse-broker]. At SIGUSR2 it writes what it saw since the last one to FILE.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import uvloop

from sse_broker.cli import main

TICK_SECONDS = 0.001
LONG_SECONDS = 0.020


class StallWatch:
    """A timer that is due every millisecond: what it is late by, the loop was stalled.

    On a machine that others use too, the clock also shows the time when the process had no core; CPU time does not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop = loop
        self._path = path
        self._reset()
        loop.call_soon(self._start)

    def _reset(self) -> None:
        self._longest_wall = self._longest_cpu = 0.0
        self._ticks = self._long_ticks = 0
        self._last_wall, self._last_cpu = time.monotonic(), time.thread_time()

    def _start(self) -> None:
        # After the broker has set up its own signals; it has none for SIGUSR2.
        self._loop.add_signal_handler(signal.SIGUSR2, self._write)
        self._tick()

    def _tick(self) -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        stalled = wall - self._last_wall - TICK_SECONDS
        self._longest_wall = max(self._longest_wall, stalled)
        self._longest_cpu = max(self._longest_cpu, cpu - self._last_cpu)
        self._ticks += 1
        self._long_ticks += stalled > LONG_SECONDS
        self._last_wall, self._last_cpu = wall, cpu
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _write(self) -> None:
        seen = {
            "longest_wall_ms": 1e3 * self._longest_wall,
            "longest_cpu_ms": 1e3 * self._longest_cpu,
            "ticks": self._ticks,
            "over_20_ms": self._long_ticks,
        }
        self._path.with_suffix(".new").write_text(json.dumps(seen))
        self._path.with_suffix(".new").rename(self._path)
        self._reset()


if __name__ == "__main__":
    make_loop = uvloop.new_event_loop

    def watched_loop() -> asyncio.AbstractEventLoop:
        """Make a loop as uvloop does, with the watch on it."""
        loop = make_loop()
        StallWatch(loop, Path(sys.argv[1]))
        return loop

    uvloop.new_event_loop = watched_loop  # type: ignore[assignment]
    sys.exit(main(sys.argv[2:]))
