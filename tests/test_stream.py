"""One open stream over a transport: the order of what its client reads, and the bound on what it has not read."""

from __future__ import annotations

import pytest

from sse_broker.frame import HEARTBEAT, Frame
from sse_broker.presence import Reason
from sse_broker.system_events import connected, end, replay_gap
from tests.recording import ADDRESS, OpenStream, RecordingTransport, frames, make_stream

BYE = end(Reason.KICK, "bye")


# Writing


def test_a_live_stream_writes_the_very_bytes_of_the_frame() -> None:
    """No copy and nothing encoded for a delivery: 15,000 streams write one object."""
    one = OpenStream()
    frame = Frame(1, "e", "x")
    assert one.stream.write(frame)
    assert one.transport.writes[0] is frame.plain


def test_a_chunked_stream_writes_the_frame_as_one_chunk() -> None:
    one = OpenStream(chunked=True)
    frame = Frame(1, "e", "x")
    one.stream.write(frame)
    assert one.transport.writes[0] is frame.chunk


@pytest.mark.parametrize("id_", [4, 5])
def test_an_id_not_greater_than_the_last_is_dropped(id_: int) -> None:
    one = OpenStream()
    one.stream.write(Frame(5, "", "x"))
    assert not one.stream.write(Frame(id_, "", "again"))
    assert one.ids == [5]


def test_a_client_that_came_with_an_id_gets_greater_ones_only() -> None:
    one = OpenStream(last_id=10)
    assert not one.stream.write(Frame(10, "", "x"))
    assert one.stream.write(Frame(11, "", "x"))
    assert one.ids == [11]


def test_a_client_without_an_id_gets_what_came_after_it_joined() -> None:
    stream = make_stream()
    stream.begin(None, 20)
    assert (stream.last_id, stream.asked_id, stream.floor_id) == (20, 0, 20)
    stream.begin(7, 20)
    assert (stream.last_id, stream.asked_id, stream.floor_id) == (7, 7, 20)


def test_several_frames_go_out_in_one_write_if_the_client_has_none_of_them() -> None:
    one = OpenStream()
    assert one.stream.write_joined(BYE, 3, 5)
    assert one.transport.writes == [BYE.plain]
    assert one.stream.last_id == 5
    assert not one.stream.write_joined(BYE, 5, 6), "it has the first of these"
    assert one.transport.writes == [BYE.plain]


def test_several_frames_are_not_joined_while_the_stream_holds() -> None:
    one = OpenStream(live=False)
    assert not one.stream.write_joined(BYE, 3, 5)
    assert one.transport.writes == []


def test_a_block_without_id_is_written_also_while_the_stream_holds() -> None:
    one = OpenStream(live=False)
    one.stream.heartbeat()
    one.stream.write_block(replay_gap(1, 2))
    assert one.transport.writes[0] is HEARTBEAT.plain
    assert one.stream.last_id == 0


# Opening: hold, replay, live


def test_the_opening_comes_first_in_the_form_of_the_response() -> None:
    for chunked in (False, True):
        stream, transport = make_stream(chunked=chunked), RecordingTransport()
        opening = connected(ADDRESS)
        stream.attach(transport, opening, lambda stream: None)
        assert transport.writes == [opening.chunk if chunked else opening.plain]


def test_what_comes_while_the_stream_holds_follows_the_replay() -> None:
    one = OpenStream(live=False, last_id=1)
    held = frames(4, 5)
    for frame in held:
        assert not one.stream.write(frame), "it is held, and may still be dropped"
    assert one.ids == []
    for frame in frames(2, 3):
        assert one.stream.replay(frame)
    assert one.stream.go_live() == held
    one.stream.write(Frame(6, "", "x"))
    assert one.ids == [2, 3, 4, 5, 6]


def test_what_the_replay_has_written_already_is_not_written_again_from_the_held() -> None:
    one = OpenStream(live=False, last_id=1)
    for frame in frames(2, 3, 4):
        one.stream.write(frame)
    for frame in frames(2, 3):
        assert one.stream.replay(frame)
        assert not one.stream.replay(frame)
    assert [frame.id for frame in one.stream.go_live()] == [4]
    assert one.ids == [2, 3, 4]


def test_a_frame_that_comes_twice_in_the_replay_is_written_once() -> None:
    one = OpenStream(live=False, last_id=1)
    for frame in frames(2, 3, 3, 2, 4):
        one.stream.replay(frame)
    assert one.ids == [2, 3, 4]


def test_frames_are_held_also_before_there_is_a_transport() -> None:
    stream, transport = make_stream(), RecordingTransport()
    stream.write(Frame(7, "", "x"))
    stream.begin(None, 5)
    stream.attach(transport, connected(ADDRESS), lambda stream: None)
    stream.go_live()
    assert transport.writes[1:] == [Frame(7, "", "x").plain]


def test_held_frames_up_to_the_joining_are_not_for_a_client_without_id() -> None:
    stream, transport = make_stream(), RecordingTransport()
    for frame in frames(4, 5, 6):
        stream.write(frame)
    stream.begin(None, 5)
    stream.attach(transport, connected(ADDRESS), lambda stream: None)
    stream.go_live()
    assert transport.writes[1:] == [Frame(6, "", "x").plain]


def test_going_live_twice_changes_nothing() -> None:
    one = OpenStream(live=False)
    one.stream.write(Frame(1, "", "x"))
    one.stream.go_live()
    one.stream.go_live()
    assert one.ids == [1]


# The bound


def test_more_than_may_be_held_is_left_to_the_logs_and_the_stream_lives() -> None:
    one = OpenStream(live=False, max_buffer_bytes=100)
    one.stream.write(Frame(1, "", "x" * 20))
    assert not one.stream.overflowed
    for number in range(2, 20):
        one.stream.write(Frame(number, "", "x" * 20))
    assert one.stream.overflowed
    assert not one.stream.ended
    one.stream.drop_held()
    assert not one.stream.overflowed
    one.stream.replay(Frame(19, "", "from the logs"))
    one.stream.write(Frame(20, "", "x"))
    one.stream.go_live()
    assert one.ids == [19, 20]


def test_after_an_overflow_nothing_is_held_until_the_logs_were_read() -> None:
    """Else frames held later would go out ahead of those that were let go."""
    one = OpenStream(live=False, max_buffer_bytes=30)
    one.stream.write(Frame(1, "", "x" * 100))
    assert one.stream.overflowed
    assert not one.stream.write(Frame(2, "", ""))
    one.stream.go_live()
    assert one.ids == []


@pytest.mark.parametrize("write", ["write", "write_joined", "write_block", "replay"])
def test_a_client_that_does_not_read_is_aborted_at_the_bound(write: str) -> None:
    one = OpenStream(max_buffer_bytes=1000)
    calls = {
        "write": lambda: one.stream.write(Frame(9, "", "x")),
        "write_joined": lambda: one.stream.write_joined(BYE, 8, 9),
        "write_block": lambda: one.stream.write_block(HEARTBEAT),
        "replay": lambda: one.stream.replay(Frame(9, "", "x")),
    }
    one.transport.buffered = 1001
    calls[write]()
    assert one.transport.calls == ["abort"], "a close would wait for the slow reader"
    assert one.transport.writes == []
    assert one.stream.end_reason is Reason.HEARTBEAT_FAIL


def test_one_frame_may_pass_the_bound_and_the_next_may_not() -> None:
    """So a frame near the bound can be delivered at all to a client that reads."""
    one = OpenStream(max_buffer_bytes=1000)
    one.transport.buffered = 1000
    assert one.stream.write(Frame(1, "", "x" * 999))
    one.transport.buffered = 2010
    assert not one.stream.write(Frame(2, "", "x"))
    assert one.stream.ended


def test_the_frame_that_was_not_written_does_not_count_as_had() -> None:
    one = OpenStream(max_buffer_bytes=1000)
    one.stream.write(Frame(1, "", "x"))
    one.transport.buffered = 1001
    one.stream.write(Frame(2, "", "x"))
    assert one.stream.last_id == 1, "the client resumes by this id"


def test_the_backlog_is_what_the_transport_says() -> None:
    one = OpenStream()
    one.transport.buffered = 77
    assert one.stream.backlog_bytes == 77
    one.stream.connection_lost(None)
    assert one.stream.backlog_bytes == 0


# Catching up after the bus lost something


def test_a_live_stream_holds_again_and_goes_on_behind_what_it_missed() -> None:
    one = OpenStream()
    one.stream.write(Frame(3, "", "x"))
    assert one.stream.hold(5)
    assert one.stream.last_id == 5
    assert not one.stream.live
    assert one.stream.overflowed, "so that its replay reads on until nothing is left"
    one.stream.drop_held()
    one.stream.replay(Frame(6, "", "x"))
    one.stream.write(Frame(7, "", "x"))
    one.stream.go_live()
    assert one.ids == [3, 6, 7]


def test_a_stream_that_has_more_already_stays_where_it_is() -> None:
    one = OpenStream()
    one.stream.write(Frame(9, "", "x"))
    one.stream.hold(5)
    assert one.stream.last_id == 9


def test_a_holding_stream_lets_go_of_what_it_held_and_reads_on_by_itself() -> None:
    one = OpenStream(live=False, last_id=1)
    one.stream.write(Frame(9, "", "x"))
    assert not one.stream.hold(5)
    assert one.stream.last_id == 1, "its replay is not that far yet"
    assert one.stream.overflowed
    one.stream.drop_held()
    one.stream.go_live()
    assert one.ids == []


def test_an_ended_stream_holds_nothing() -> None:
    one = OpenStream()
    one.stream.end(BYE, Reason.KICK)
    assert not one.stream.hold(5)
    assert not one.stream.write(Frame(6, "", "x"))


# Being looked at by the heartbeat


def test_each_write_marks_the_stream_as_active() -> None:
    one = OpenStream()

    def active(write: object) -> bool:
        one.stream.active = False
        assert callable(write)
        write()
        return one.stream.active

    assert active(lambda: one.stream.write(Frame(1, "", "x")))
    assert active(lambda: one.stream.write_joined(BYE, 2, 3))
    assert active(one.stream.heartbeat)
    assert active(lambda: one.stream.end(BYE, Reason.KICK))


def test_a_frame_that_is_dropped_or_held_is_no_activity() -> None:
    one = OpenStream(live=False)
    one.stream.active = False
    one.stream.write(Frame(1, "", "x"))
    assert not one.stream.active


def test_a_stream_is_a_small_object() -> None:
    """Slots, no dictionary: one for each of very many clients."""
    assert not hasattr(make_stream(), "__dict__")
