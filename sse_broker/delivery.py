"""From the bus to the streams of this instance. It owns the order: a frame for some devices is written at once, a
broadcast by one task in slices with a yield between, so that neither sends nor heartbeats wait for 15,000 writes; and
still no stream sees a lower id after a higher one.

How: broadcasts that are not yet written to every stream stand in `pending`. A frame for one device, arriving while they
do, is preceded on that stream by those of them that it lacks; the walk later finds that it has them and goes on. All
broadcasts that wait when a walk begins go out together, one write for each stream.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from sse_broker.frame import Block, Frame, join_frames
from sse_broker.registry import Registry
from sse_broker.stream import Stream
from sse_broker.traffic import Traffic

log = logging.getLogger(__name__)

# Streams written to between two yields: at about 10 µs each, other work waits for about a millisecond. With 250
# a send that takes several turns of the loop took 15 to 20 ms at p99.
SLICE_STREAMS = 100
# Broadcasts waiting for the walk, in bytes, before the bus is read no further.
MAX_PENDING_BYTES = 4 * 1024 * 1024
# What one walk joins into one write, in bytes: a stream's buffer may pass its bound by this much.
MAX_JOINED_BYTES = 256 * 1024


class Delivery:
    """Writes frames to the streams of one registry; `start` and `close` own its task."""

    def __init__(self, registry: Registry, traffic: Traffic | None = None) -> None:
        self._registry = registry
        self._pending: deque[Frame] = deque()
        self._pending_bytes = 0
        self._wanted = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task: asyncio.Task[None] | None = None
        self.traffic = Traffic() if traffic is None else traffic

    def start(self) -> None:
        """Start the task that writes broadcasts."""
        self._task = asyncio.create_task(self._run(), name="delivery")

    async def close(self) -> None:
        """Write what is pending, then end the task."""
        while self._pending and self._task is not None and not self._task.done():
            await asyncio.sleep(0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def to_devices(self, frame: Frame, device_ids: tuple[str, ...]) -> None:
        """Write a frame to these devices' streams, now."""
        pending = self._pending
        for stream in self._registry.of_devices(device_ids):
            if pending:
                self.finish(stream)
            if stream.write(frame):
                self.traffic.deliveries += 1
                self.traffic.delivered_bytes += len(frame.plain)

    def to_everyone(self, frame: Frame) -> None:
        """Have a frame written to every stream that is open now."""
        self._pending.append(frame)
        self._pending_bytes += len(frame.plain)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._room.clear()
        self._wanted.set()

    def done_up_to(self, after_id: int) -> int:
        """Return the greatest id up to `after_id` up to which nothing is pending."""
        return min(after_id, self._pending[0].id - 1) if self._pending else after_id

    def finish(self, stream: Stream) -> None:
        """Write to a stream what is pending for it, because its end comes next."""
        if self._pending:
            self.count([broadcast for broadcast in self._pending if stream.write(broadcast)])

    def count(self, written: Sequence[Frame]) -> None:
        """Count frames that came by the bus and were written to a stream."""
        self.traffic.deliveries += len(written)
        self.traffic.delivered_bytes += sum([len(frame.plain) for frame in written])

    async def room(self) -> None:
        """Wait until so few broadcasts are pending that the next may come."""
        await self._room.wait()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._pending:
                frames = self._next_frames()
                try:
                    await self._walk(frames, frames[0] if len(frames) == 1 else join_frames(frames))
                except Exception as error:
                    log.exception("broadcasts could not be written")
                    self._give_up(frames[-1].id, error)
                for frame in frames:
                    self._pending.popleft()
                    self._pending_bytes -= len(frame.plain)
                self._room.set()

    def _next_frames(self) -> tuple[Frame, ...]:
        frames: list[Frame] = []
        size = 0
        for frame in self._pending:
            size += len(frame.plain)
            if frames and size > MAX_JOINED_BYTES:
                break
            frames.append(frame)
        return tuple(frames)

    async def _walk(self, frames: tuple[Frame, ...], joined: Block | Frame) -> None:
        first_id, last_id = frames[0].id, frames[-1].id
        streams = tuple(self._registry)
        for start in range(0, len(streams), SLICE_STREAMS):
            whole = 0
            for stream in streams[start : start + SLICE_STREAMS]:
                if stream.write_joined(joined, first_id, last_id):
                    whole += 1
                else:
                    self.count([frame for frame in frames if stream.write(frame)])
            self.traffic.deliveries += whole * len(frames)
            self.traffic.delivered_bytes += whole * len(joined.plain)
            await asyncio.sleep(0)

    def _give_up(self, last_id: int, error: Exception) -> None:
        """End the streams that lack a broadcast: their clients come back and read it from the logs."""
        for stream in self._registry:
            if stream.last_id < last_id:
                stream.fail(error)
