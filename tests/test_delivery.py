"""From the bus to the streams: order, one write for each stream and nothing else, and one bad peer harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from sse_broker.delivery import MAX_JOINED_BYTES, MAX_PENDING_BYTES, SLICE_STREAMS, Delivery
from sse_broker.frame import MAX_ID, Frame
from sse_broker.presence import Reason
from sse_broker.registry import Registry
from sse_broker.stream import Stream
from sse_broker.system_events import end
from tests.event_parser import EventParser
from tests.recording import OpenStream, frames, make_device
from tests.waiting import until


class Hall:
    """A delivery that runs, over a registry of recorded streams."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = Registry() if registry is None else registry
        self.delivery = Delivery(self.registry)
        self.open: list[OpenStream] = []

    def fill(self, count: int, **options: bool) -> list[OpenStream]:
        """Add streams, each of a device of its own, and return them."""
        added = [OpenStream(make_device(f"d{len(self.open) + at}"), **options) for at in range(count)]
        for one in added:
            self.registry.add(one.stream)
        self.open += added
        return added

    @staticmethod
    def ids(*streams: OpenStream) -> tuple[str, ...]:
        """Return the device ids of streams, as an envelope names them."""
        return tuple(one.stream.device.device_id for one in streams)

    async def settled(self) -> None:
        """Wait until no broadcast is pending: then a device's frame passes nothing."""
        await until(lambda: self.delivery.done_up_to(MAX_ID) == MAX_ID, what="no pending broadcast")


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    """A hall whose delivery runs; at the end it is closed."""
    hall = Hall()
    hall.delivery.start()
    yield hall
    await hall.delivery.close()


async def test_a_frame_for_some_devices_is_written_at_once(hall: Hall) -> None:
    a, b, c = hall.fill(3)
    hall.delivery.to_devices(Frame(1, "", "x"), (*hall.ids(a, c), "of another instance"))
    assert [one.ids for one in (a, b, c)] == [[1], [], [1]], "before this coroutine gave way"


async def test_a_broadcast_reaches_every_stream(hall: Hall) -> None:
    streams = hall.fill(3 * SLICE_STREAMS + 7)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    await hall.settled()
    assert all(one.ids == [1] for one in streams)


async def test_both_streams_of_a_device_that_is_being_extruded_get_the_frame(hall: Hall) -> None:
    (old,) = hall.fill(1)
    new = OpenStream(make_device("d0"))
    hall.registry.add(new.stream)
    hall.delivery.to_devices(Frame(1, "", "x"), hall.ids(old))
    assert (old.ids, new.ids) == ([1], [1])


# The cost: a deterministic stand-in for speed


@pytest.mark.parametrize("everyone", [True, False])
async def test_n_streams_make_n_writes_of_one_object_and_no_task(hall: Hall, everyone: bool) -> None:
    streams = hall.fill(1000)
    frame = Frame(1, "", "x")
    tasks = asyncio.all_tasks()
    if everyone:
        hall.delivery.to_everyone(frame)
    else:
        hall.delivery.to_devices(frame, hall.ids(*streams))
    seen: set[asyncio.Task[object]] = set()

    def done() -> bool:
        seen.update(asyncio.all_tasks())
        return bool(streams[-1].transport.writes)

    await until(done, pause_seconds=0, what="the last stream's write")
    assert [len(one.transport.writes) for one in streams] == [1] * 1000
    assert {id(one.transport.writes[0]) for one in streams} == {id(frame.plain)}, "encoded once"
    assert seen == tasks, "no task was made"


async def test_a_broadcast_gives_way_between_slices_and_not_for_each_stream(hall: Hall) -> None:
    streams = hall.fill(8 * SLICE_STREAMS)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    turns: list[bool] = []
    await until(lambda: turns.append(True) or streams[-1].ids, pause_seconds=0, what="the end of the walk")
    assert 8 <= len(turns) <= 8 + 4


async def test_a_burst_of_broadcasts_is_one_write_for_each_stream(hall: Hall) -> None:
    streams = hall.fill(3)
    chunked = OpenStream(make_device("chunked"), chunked=True)
    hall.registry.add(chunked.stream)
    burst = frames(1, 2, 3)
    for frame in burst:
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert [one.transport.writes for one in streams] == [[b"".join(frame.plain for frame in burst)]] * 3
    assert len({id(one.transport.writes[0]) for one in streams}) == 1, "joined once"
    assert chunked.transport.writes == [b"".join(frame.chunk for frame in burst)]
    assert hall.delivery.traffic.deliveries == 4 * 3


async def test_a_stream_that_has_part_of_a_burst_gets_the_rest(hall: Hall) -> None:
    ahead, other = hall.fill(2)
    ahead.stream.write(Frame(2, "", "x"))
    for frame in frames(1, 2, 3):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert ahead.ids == [2, 3]
    assert other.ids == [1, 2, 3]


async def test_one_write_of_a_burst_stays_bounded(hall: Hall) -> None:
    """A stream's buffer may pass its bound by one write."""
    (one,) = hall.fill(1, max_buffer_bytes=2**30)
    size = MAX_JOINED_BYTES // 4
    for frame in frames(*range(1, 20), data="x" * size):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert one.ids == list(range(1, 20))
    assert max(map(len, one.transport.writes)) <= MAX_JOINED_BYTES
    assert len(one.transport.writes) <= 19 // 3 + 1


async def test_a_frame_greater_than_a_burst_may_be_goes_out_alone(hall: Hall) -> None:
    (one,) = hall.fill(1, max_buffer_bytes=2**30)
    small, huge, last = Frame(1, "", "x"), Frame(2, "", "x" * 2 * MAX_JOINED_BYTES), Frame(3, "", "x")
    for frame in (small, huge, last):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert one.transport.writes == [small.plain, huge.plain, last.plain]


# Order


async def test_a_frame_for_a_device_during_a_walk_comes_after_the_broadcast_on_every_stream(hall: Hall) -> None:
    streams = hall.fill(4 * SLICE_STREAMS)
    hall.delivery.to_everyone(Frame(1, "", "all"))
    await until(lambda: streams[0].ids, pause_seconds=0, what="the beginning of the walk")
    first, last = streams[0], streams[-1]
    assert last.ids == [], "the walk is not there yet"
    hall.delivery.to_devices(Frame(2, "", "one"), hall.ids(first, last))
    assert (first.ids, last.ids) == ([1, 2], [1, 2])
    hall.delivery.to_everyone(Frame(3, "", "all"))
    await hall.settled()
    assert (first.ids, last.ids) == ([1, 2, 3], [1, 2, 3])
    assert all(one.ids == [1, 3] for one in streams[1:-1])


async def test_ids_rise_on_every_stream_however_frames_and_broadcasts_are_mixed(hall: Hall) -> None:
    streams = hall.fill(SLICE_STREAMS + 50)
    expected: dict[int, list[int]] = {at: [] for at in range(len(streams))}
    for number in range(1, 120):
        frame = Frame(number, "", "x")
        if number % 3:
            chosen = {number * 7 % len(streams), number * 11 % len(streams)}
            hall.delivery.to_devices(frame, hall.ids(*(streams[at] for at in chosen)))
        else:
            chosen = set(expected)
            hall.delivery.to_everyone(frame)
        for at in chosen:
            expected[at].append(number)
        if number % 5 == 0:
            await asyncio.sleep(0)
    await hall.settled()
    assert {at: one.ids for at, one in enumerate(streams)} == expected


async def test_what_is_pending_is_written_before_an_end(hall: Hall) -> None:
    (one,) = hall.fill(1)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    hall.delivery.finish(one.stream)
    bye = end(Reason.KICK, "bye")
    one.stream.end(bye, Reason.KICK)
    await hall.settled()
    assert one.written == Frame(1, "", "x").plain + bye.plain


async def test_a_stream_that_joins_during_a_walk_is_left_to_its_replay(hall: Hall) -> None:
    """Its join came after the broadcast was published, so the logs have it; both ways would be harmless, neither not."""
    streams = hall.fill(2 * SLICE_STREAMS)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    await until(lambda: streams[0].ids, pause_seconds=0, what="the beginning of the walk")
    (late,) = hall.fill(1, live=False)
    late.stream.replay(Frame(1, "", "x"))
    late.stream.go_live()
    hall.delivery.to_everyone(Frame(2, "", "x"))
    await hall.settled()
    assert late.ids == [1, 2]


async def test_a_holding_stream_has_its_broadcasts_after_its_replay(hall: Hall) -> None:
    (one,) = hall.fill(1, live=False)
    for frame in frames(4, 5):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert one.ids == []
    one.stream.replay(Frame(3, "", "x"))
    one.stream.go_live()
    assert one.ids == [3, 4, 5]


async def test_a_stream_that_ended_during_a_walk_is_passed_over(hall: Hall) -> None:
    streams = hall.fill(2 * SLICE_STREAMS)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    await until(lambda: streams[0].ids, pause_seconds=0, what="the beginning of the walk")
    gone = streams[-1]
    hall.registry.remove(gone.stream)
    gone.stream.connection_lost(None)
    await hall.settled()
    assert gone.ids == []
    assert all(one.ids == [1] for one in streams[:-1])


# Bad peers


@pytest.mark.parametrize("fails", ["error", "broken"])
@pytest.mark.parametrize("count", [1, 3], ids=["one frame", "a burst"])
async def test_a_transport_that_fails_in_a_broadcast_does_not_stop_the_rest(hall: Hall, count: int, fails: str) -> None:
    streams = hall.fill(5)
    setattr(streams[2].transport, fails, RuntimeError("the handler is closed"))
    for frame in frames(*range(1, count + 1)):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert [len(one.ids) for one in streams] == [count, count, 0, count, count]
    assert streams[2].transport.calls == ["abort"]


async def test_a_transport_that_fails_for_one_device_does_not_stop_the_rest(hall: Hall) -> None:
    streams = hall.fill(3)
    streams[0].transport.error = RuntimeError("the handler is closed")
    hall.delivery.to_devices(Frame(1, "", "x"), hall.ids(*streams))
    assert [one.ids for one in streams] == [[], [1], [1]]
    assert streams[0].transport.calls == ["abort"]


async def test_a_transport_that_fails_in_what_is_pending_does_not_stop_the_rest(hall: Hall) -> None:
    streams = hall.fill(3)
    streams[0].transport.error = RuntimeError("the handler is closed")
    hall.delivery.to_everyone(Frame(1, "", "x"))
    hall.delivery.to_devices(Frame(2, "", "x"), hall.ids(*streams))
    await hall.settled()
    assert [one.ids for one in streams] == [[], [1, 2], [1, 2]]


async def test_a_client_that_does_not_read_is_dropped_and_nobody_else_waits(hall: Hall) -> None:
    streams = hall.fill(3)
    streams[1].transport.buffered = 10**9
    hall.delivery.to_everyone(Frame(1, "", "x"))
    await hall.settled()
    assert [one.ids for one in streams] == [[1], [], [1]]
    assert streams[1].stream.end_reason is Reason.HEARTBEAT_FAIL


async def test_after_an_unknown_error_broadcasts_go_on_and_who_lacks_one_is_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its client comes back and reads it from the logs; a stream that went on would have a hole."""

    class Failing(Registry):
        def __iter__(self) -> Iterator[Stream]:
            if not caplog.records:
                raise RuntimeError("unforeseen")
            return super().__iter__()

    hall = Hall(Failing())
    hall.delivery.start()
    ahead, behind = hall.fill(2)
    ahead.stream.write(Frame(2, "", "x"))
    for frame in frames(1, 2, data="x" * MAX_PENDING_BYTES):
        hall.delivery.to_everyone(frame)
    await asyncio.wait_for(hall.delivery.room(), 10)
    await hall.settled()
    (new,) = hall.fill(1)
    hall.delivery.to_everyone(Frame(3, "", "x"))
    await hall.settled()
    await hall.delivery.close()
    assert [one.ids for one in (ahead, behind, new)] == [[2, 3], [], [3]]
    assert behind.stream.end_reason is Reason.DISCONNECT
    assert [record.exc_text is not None for record in caplog.records] == [True]


# What is counted: frames that were written


async def test_what_is_written_ahead_of_a_device_s_frame_or_an_end_is_counted(hall: Hall) -> None:
    one, other = hall.fill(2)
    broadcast, targeted = Frame(1, "", "all"), Frame(2, "", "one")
    hall.delivery.to_everyone(broadcast)
    hall.delivery.to_devices(targeted, hall.ids(one))
    assert hall.delivery.traffic.deliveries == 2
    hall.delivery.finish(other.stream)
    await hall.settled()
    assert hall.delivery.traffic.deliveries == 3 == len(one.ids) + len(other.ids)
    assert hall.delivery.traffic.delivered_bytes == len(one.written) + len(other.written)


@pytest.mark.parametrize("count", [1, 3], ids=["one frame", "a burst"])
async def test_what_could_not_be_written_is_not_counted(hall: Hall, count: int) -> None:
    good, slow, bad = hall.fill(3)
    slow.transport.buffered = 10**9
    bad.transport.error = RuntimeError("the handler is closed")
    for frame in frames(*range(1, count + 1)):
        hall.delivery.to_everyone(frame)
    await hall.settled()
    assert hall.delivery.traffic.deliveries == len(good.ids) == count
    assert hall.delivery.traffic.delivered_bytes == len(good.written)


async def test_what_a_stream_holds_is_counted_when_it_is_written(hall: Hall) -> None:
    kept, dropped = hall.fill(2, live=False)
    hall.delivery.to_everyone(Frame(1, "", "x"))
    hall.delivery.to_devices(Frame(2, "", "x"), hall.ids(kept, dropped))
    await hall.settled()
    assert hall.delivery.traffic.deliveries == 0
    dropped.stream.drop_held()
    for one in (kept, dropped):
        hall.delivery.count(one.stream.go_live())
    assert hall.delivery.traffic.deliveries == len(kept.ids) == 2
    assert hall.delivery.traffic.delivered_bytes == len(kept.written)


# The bound on what waits


async def test_the_bus_waits_while_too_much_is_pending(hall: Hall) -> None:
    (one,) = hall.fill(1, max_buffer_bytes=2**40)
    await hall.delivery.room()
    frame_bytes = 512 * 1024
    numbers = range(1, MAX_PENDING_BYTES // frame_bytes + 2)
    for frame in frames(*numbers, data="x" * frame_bytes):
        hall.delivery.to_everyone(frame)
    waiting = asyncio.create_task(hall.delivery.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.wait_for(waiting, 10)
    await hall.settled()
    assert one.ids == list(numbers)


async def test_closing_writes_what_is_pending_first() -> None:
    hall = Hall()
    hall.delivery.start()
    streams = hall.fill(2 * SLICE_STREAMS)
    for frame in frames(1, 2):
        hall.delivery.to_everyone(frame)
    await hall.delivery.close()
    assert all(one.ids == [1, 2] for one in streams)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "delivery"]


async def test_closing_what_never_started_is_no_error() -> None:
    await Delivery(Registry()).close()


async def test_what_a_client_reads_of_a_joined_burst_is_each_frame(hall: Hall) -> None:
    (one,) = hall.fill(1)
    for number in range(1, 4):
        hall.delivery.to_everyone(Frame(number, f"e{number}", "two\nlines"))
    await hall.settled()
    assert [(event.id, event.event, event.data) for event in EventParser().feed(one.written)] == [
        (number, f"e{number}", "two\nlines") for number in range(1, 4)
    ]
