"""The one timer of an instance: it walks the streams, writes the heartbeat to silent ones, has presence renewed in
batches, and drops the connection of a client that did not take the end of its stream. No timer per stream.

The streams stand in the slots of a wheel that turns once in a heartbeat interval. Each is looked at twice a turn: one that
wrote nothing since the last look gets a heartbeat, so a silence lasts at most one interval and a heartbeat follows the
last one after a whole interval. Once a turn its presence is renewed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from sse_broker.presence import Reason
from sse_broker.stream import Stream

log = logging.getLogger(__name__)

SLOTS = 16
SLICE_STREAMS = 64
# For how long a delay of the loop is told. Several may ask, each at his own pace, and none takes it from another.
LAG_WINDOW_SECONDS = 60.0


class Heartbeats:
    """A wheel of streams; `renew` is given those whose presence is due. `start` and `close` own its task."""

    def __init__(self, interval_seconds: float, renew: Callable[[Sequence[Stream]], None]) -> None:
        self._tick_seconds = interval_seconds / SLOTS
        self._renew = renew
        self._slots: list[list[Stream]] = [[] for _ in range(SLOTS)]
        self._next_slot = 0
        self._task: asyncio.Task[None] | None = None
        # The greatest of this half of the window and of the one before, and when this one began.
        self._lags = (0.0, 0.0)
        self._half_began = 0.0

    def start(self) -> None:
        """Start turning."""
        self._task = asyncio.create_task(self._run(), name="heartbeats")

    async def close(self) -> None:
        """Stop turning."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def lag_seconds(self) -> float:
        """By how many seconds the loop was late at most in the last 30 to 60 s."""
        return max(self._lags)

    def add(self, stream: Stream) -> None:
        """Take a stream in; it falls out by itself some time after its end. Slots fill evenly, also in a storm."""
        self._next_slot = (self._next_slot + 1) % SLOTS
        self._slots[self._next_slot].append(stream)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        turn = 0
        while True:
            due = max(due + self._tick_seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            self._note_lag(loop.time() - due, loop.time())
            turn = (turn + 1) % SLOTS
            try:
                await self._visit(turn, renew=True)
                await self._visit((turn + SLOTS // 2) % SLOTS, renew=False)
            except Exception:
                log.exception("heartbeats could not be written")

    def _note_lag(self, seconds: float, now: float) -> None:
        before, lately = self._lags
        age = now - self._half_began
        if age > LAG_WINDOW_SECONDS / 2:
            before, lately = lately if age < LAG_WINDOW_SECONDS else 0.0, 0.0
            self._half_began = now
        self._lags = before, max(lately, seconds)

    async def _visit(self, slot: int, *, renew: bool) -> None:
        streams = [stream for stream in self._slots[slot] if not stream.gone]
        self._slots[slot] = streams
        for start in range(0, len(streams), SLICE_STREAMS):
            some = streams[start : start + SLICE_STREAMS]
            for stream in some:
                self._look_at(stream)
            if renew:
                self._renew([stream for stream in some if not stream.ended])
            await asyncio.sleep(0)

    @staticmethod
    def _look_at(stream: Stream) -> None:
        if stream.ended and not stream.active:
            stream.abort(Reason.HEARTBEAT_FAIL)
        elif stream.active:
            stream.active = False
        elif not stream.ended:
            stream.heartbeat()
