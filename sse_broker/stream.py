"""One open event stream over a transport. It owns the order of what its client reads (hold, replay, live, end) and the
bound on what its client has not read yet. It knows its transport by duck typing, and nothing of HTTP, backends or tasks.

A stream begins as *holding*: live frames collect while its presence is joined and its replay is read. `go_live` lets them
out. From then on `write` puts bytes that are already encoded straight on the transport: no task, no queue, no await.

The transport's protocol is the stream itself once its HTTP response has begun: that costs one small object for a stream
instead of a parked request handler, and tells it at once when its client is gone (see docs/design.md, "Hand-over").
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from sse_broker.frame import END_OF_CHUNKS, HEARTBEAT, Block, Frame
from sse_broker.presence import Device, Reason

# For how many heartbeats' looks, two in an interval, a client that is taking a frame beyond the bound may seem to take nothing: a
# kernel takes more only once a third of its own buffer is free.
GREAT_FRAME_LOOKS = 4


class Transport(Protocol):
    """What a stream needs of an asyncio transport."""

    def write(self, data: bytes, /) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...


class Stream:
    """One client's open event stream.

    `live` while frames go straight to the transport; `ended` from its last block on; neither while it holds. `last_id` is
    the last frame id written, or the id up to which the client needs nothing. `asked_id` is the last id that the client
    came with (0 without), `floor_id` the id in force when it joined.
    `active` is set by each write and cleared by the heartbeat's walk. `overflowed` when more came than it may hold.
    A transport that fails ends its stream, with the error as `failure`, and raises nothing: it must stop no other stream.
    """

    __slots__ = (
        "_chunked",
        "_held",
        "_held_bytes",
        "_last_block",
        "_max_buffer_bytes",
        "_on_lost",
        "_on_writable",
        "_over",
        "_paused",
        "_transport",
        "active",
        "asked_id",
        "device",
        "end_reason",
        "ended",
        "failure",
        "floor_id",
        "last_id",
        "live",
        "overflowed",
    )

    def __init__(self, device: Device, *, chunked: bool, max_buffer_bytes: int) -> None:
        self.device = device
        self.live = False
        self.ended = False
        # What waited when it was last less, and for how many looks that may stay so; only while it is more than the bound.
        self._over: tuple[int, int] | None = None
        self.last_id = 0
        self.asked_id = 0
        self.floor_id = 0
        self.active = False
        self.overflowed = False
        self.end_reason: Reason | None = None
        self.failure: Exception | None = None
        self._chunked = chunked
        self._max_buffer_bytes = max_buffer_bytes
        self._held: list[Frame] | None = []
        self._held_bytes = 0
        self._last_block: Block | None = None
        self._paused = False
        self._transport: Transport | None = None
        self._on_lost: Callable[[Stream], None] | None = None
        self._on_writable: Callable[[], None] | None = None

    # --- life ---

    def attach(
        self, transport: Transport, opening: Block, on_lost: Callable[["Stream"], None], head: bytes = b""
    ) -> None:
        """Take the transport and write the opening, behind the response's `head` in one write; `on_lost` is called once, when it is gone, however it went.

        A stream that was ended while it had no transport yet says so now.
        """
        self._transport = transport
        self._on_lost = on_lost
        self._put(transport, head + (opening.chunk if self._chunked else opening.plain))
        if self._last_block is not None:
            self._close_with(self._last_block)

    def begin(self, last_id: int | None, floor_id: int) -> None:
        """Say what the client has already: the last id that it came with, or without one everything up to `floor_id`."""
        self.asked_id = last_id or 0
        self.last_id = floor_id if last_id is None else last_id
        self.floor_id = floor_id

    def go_live(self) -> Sequence[Frame]:
        """Write what was held with greater ids and let live frames through from now on. Return what was written."""
        if self.live or self.ended:
            return ()
        held, self._held = self._held, None
        self.live = True
        return [frame for frame in held if self.write(frame)] if held else ()

    def hold(self, after_id: int) -> bool:
        """Collect live frames again, because those after `after_id` must be read from the logs first.

        Return whether the stream was live; one that is holding already will read on by itself.
        """
        if self.ended:
            return False
        was_live, self.live = self.live, False
        if was_live:
            self.last_id = max(self.last_id, after_id)
        self.drop_held()
        self.overflowed = True
        return was_live

    def drop_held(self) -> None:
        """Forget what is held and hold anew: the logs have it."""
        self.overflowed = False
        self._held = []
        self._held_bytes = 0

    def end(self, block: Block, reason: Reason) -> None:
        """Write the last block, end the response and close once the client has read it."""
        if self.ended:
            return
        self._finish(reason)
        if self._transport is None:
            self._last_block = block
        else:
            self._close_with(block)

    def abort(self, reason: Reason) -> None:
        """Drop the connection at once; a close would wait for the slow reader."""
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Drop the connection because of an error, so that its client comes back."""
        self.failure = error
        self.abort(Reason.DISCONNECT)

    # --- writing ---

    def write(self, frame: Frame) -> bool:
        """Write a frame, unless the client has it; hold it while the stream is holding. Return whether it was written.

        This is the hot path: it runs once for each delivery.
        """
        if frame.id <= self.last_id:
            return False
        if not self.live:
            self._hold(frame)
            return False
        transport = self._transport
        try:
            # The bound is on what waited before: one frame may pass it, so that a frame near the bound can be delivered.
            if transport.get_write_buffer_size() > self._max_buffer_bytes:  # type: ignore[union-attr]
                self.abort(Reason.HEARTBEAT_FAIL)
                return False
            self.last_id = frame.id
            self.active = True
            transport.write(frame.chunk if self._chunked else frame.plain)  # type: ignore[union-attr]
        except Exception as error:
            self.fail(error)
            return False
        return True

    def write_joined(self, block: Block | Frame, first_id: int, last_id: int) -> bool:
        """Write several frames as one block, if the stream is live and has none of them. Return whether they were written."""
        if self.last_id >= first_id or not self.live:
            return False
        transport = self._transport
        try:  # as `write_block`, without the calls: it runs once for each stream of a broadcast
            if transport.get_write_buffer_size() > self._max_buffer_bytes:  # type: ignore[union-attr]
                self.abort(Reason.HEARTBEAT_FAIL)
                return False
            self.last_id = last_id
            self.active = True
            transport.write(block.chunk if self._chunked else block.plain)  # type: ignore[union-attr]
        except Exception as error:
            self.fail(error)
            return False
        return True

    def replay(self, frame: Frame) -> bool:
        """Write a retained frame ahead of the held ones, unless the client has it. Return whether it was written."""
        if frame.id <= self.last_id:
            return False
        self.last_id = frame.id
        return self.write_block(frame)

    def write_block(self, block: Block | Frame) -> bool:
        """Write a system event or the heartbeat, whatever the state before the end. Return whether it was written."""
        transport = self._transport
        if transport is None or self.ended:
            return False
        try:
            if transport.get_write_buffer_size() > self._max_buffer_bytes:
                self.abort(Reason.HEARTBEAT_FAIL)
                return False
            self.active = True
            transport.write(block.chunk if self._chunked else block.plain)
        except Exception as error:
            self.fail(error)
            return False
        return True

    def heartbeat(self) -> None:
        """Write the comment line that keeps a silent stream open; not to one that is busy taking a frame beyond the bound."""
        if not self._takes_a_great_frame():
            self.write_block(HEARTBEAT)

    def _takes_a_great_frame(self) -> bool:
        """Whether more than the bound waits, and less than some looks ago. One frame may pass the bound, by seven times if it is all
        line breaks: a slow client that is given up on its way would never get beyond it.
        """
        before, self._over = self._over, None
        with suppress(Exception):  # of a transport that fails; so will the write
            backlog = self.backlog_bytes
            if backlog > self._max_buffer_bytes:
                if before is None or backlog < before[0]:
                    self._over = backlog, GREAT_FRAME_LOOKS
                elif before[1] > 1:
                    self._over = before[0], before[1] - 1
        return self._over is not None

    @property
    def gone(self) -> bool:
        """Whether it has ended and its transport is gone."""
        return self.ended and self._transport is None

    @property
    def backlog_bytes(self) -> int:
        """What the client has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def paused(self) -> bool:
        """Whether the transport's buffer is full, so that a replay should wait."""
        return self._paused and not self.ended

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call back once, when the transport's buffer has drained or the stream is over."""
        self._on_writable = callback

    def _hold(self, frame: Frame) -> None:
        if self._held is None or self.overflowed:
            return  # it has ended, or will read this frame from the logs
        self._held_bytes += len(frame.plain)
        if self._held_bytes > self._max_buffer_bytes:
            # Not an end: the replay reads on from the logs, which have every frame that comes by the bus.
            self.overflowed = True
            self._held = []
            return
        self._held.append(frame)

    # --- asyncio.Protocol, by duck typing ---

    def connection_made(self, transport: Transport) -> None:
        """Nothing to do: the connection was made before it was a stream."""

    def data_received(self, data: bytes) -> None:
        """Ignore what a client says after its request: an event stream has one direction."""

    def eof_received(self) -> bool:
        """Let the transport close: a client that will send nothing more has left."""
        return False

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full, for a replay: live frames look at the bound at each write."""
        self._paused = True

    def resume_writing(self) -> None:
        """Tell the replay that there is room again."""
        self._paused = False
        self._writable()

    def connection_lost(self, error: BaseException | None) -> None:
        """Note that the client is gone, and tell the owner once.

        The kernel gives up with ETIMEDOUT on a peer that acknowledges nothing or takes nothing any more (listener).
        """
        self._finish(Reason.HEARTBEAT_FAIL if isinstance(error, TimeoutError) else Reason.DISCONNECT)
        self._transport = None
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self)

    def _finish(self, reason: Reason) -> None:
        self.live = False
        self._held = None
        if not self.ended:
            self.ended = True
            self.end_reason = reason
            self._writable()

    def _close_with(self, block: Block) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            # It is active now, so the heartbeat's walk gives the client some time to take it.
            self._put(transport, block.chunk + END_OF_CHUNKS if self._chunked else block.plain)
            transport.close()

    def _put(self, transport: Transport, data: bytes) -> None:
        self.active = True
        try:
            transport.write(data)
        except Exception as error:
            self.fail(error)

    def _writable(self) -> None:
        callback, self._on_writable = self._on_writable, None
        if callback is not None:
            callback()
