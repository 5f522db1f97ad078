"""How one open stream ends: by its last block, by its client, by its transport."""

from __future__ import annotations

import errno

import pytest

from sse_broker.frame import END_OF_CHUNKS, HEARTBEAT, Frame
from sse_broker.presence import Reason
from sse_broker.stream import GREAT_FRAME_LOOKS
from sse_broker.system_events import connected, end
from tests.recording import ADDRESS, OpenStream, RecordingTransport, make_stream

BYE = end(Reason.KICK, "bye")


# The end


def test_the_end_is_the_last_block_then_a_close() -> None:
    one = OpenStream()
    one.stream.end(BYE, Reason.KICK)
    assert one.transport.writes == [BYE.plain]
    assert one.transport.calls == ["close"]
    assert one.stream.end_reason is Reason.KICK


def test_a_chunked_response_ends_as_http_wants_it() -> None:
    one = OpenStream(chunked=True)
    one.stream.end(BYE, Reason.KICK)
    assert one.written == BYE.chunk + END_OF_CHUNKS


def test_nothing_follows_the_end() -> None:
    one = OpenStream()
    one.stream.end(BYE, Reason.KICK)
    assert not one.stream.write(Frame(9, "", "x"))
    assert not one.stream.write_joined(BYE, 8, 9)
    one.stream.replay(Frame(9, "", "x"))
    one.stream.heartbeat()
    one.stream.go_live()
    one.stream.end(end(Reason.EXTRUDE, "a"), Reason.EXTRUDE)
    assert one.transport.writes == [BYE.plain]
    assert one.transport.calls == ["close"]
    assert one.stream.end_reason is Reason.KICK, "the first reason counts"


def test_a_holding_stream_ends_without_what_it_held() -> None:
    """Its replay is not complete, so a later id would hide the ids before it from the client's next request."""
    one = OpenStream(live=False)
    one.stream.write(Frame(5, "", "x"))
    one.stream.end(BYE, Reason.KICK)
    assert one.written == BYE.plain


def test_a_stream_that_ended_before_it_had_a_transport_says_so_when_it_has_one() -> None:
    stream, transport = make_stream(), RecordingTransport()
    stream.end(BYE, Reason.EXTRUDE)
    assert stream.ended
    opening = connected(ADDRESS)
    stream.attach(transport, opening, lambda stream: None)
    assert transport.writes == [opening.plain, BYE.plain]
    assert transport.calls == ["close"]


def test_an_end_is_not_written_to_a_transport_that_is_closing() -> None:
    one = OpenStream()
    one.transport.calls.append("close")
    one.stream.end(BYE, Reason.KICK)
    assert one.transport.writes == []
    assert one.transport.calls == ["close"]


def test_an_abort_drops_the_connection_also_after_an_end() -> None:
    one = OpenStream()
    one.stream.end(BYE, Reason.INSTANCE_CLOSE)
    one.stream.abort(Reason.HEARTBEAT_FAIL)
    assert one.transport.calls == ["close", "abort"]
    assert one.stream.end_reason is Reason.INSTANCE_CLOSE


def test_a_stream_without_transport_can_be_aborted() -> None:
    stream = make_stream()
    stream.abort(Reason.DISCONNECT)
    assert stream.gone


# The connection


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
def test_the_owner_is_told_once_when_the_client_is_gone(error: Exception | None) -> None:
    one = OpenStream()
    one.stream.connection_lost(error)
    one.stream.connection_lost(error)
    assert one.lost == [Reason.DISCONNECT]
    assert one.stream.gone


def test_a_client_on_which_the_kernel_gave_up_has_failed_the_heartbeat() -> None:
    one = OpenStream()
    one.stream.connection_lost(OSError(errno.ETIMEDOUT, "connection timed out"))
    assert one.lost == [Reason.HEARTBEAT_FAIL]


@pytest.mark.parametrize("reason", [Reason.KICK, Reason.HEARTBEAT_FAIL])
def test_the_owner_is_told_the_reason_that_came_first(reason: Reason) -> None:
    one = OpenStream()
    if reason is Reason.KICK:
        one.stream.end(BYE, reason)
    else:
        one.stream.abort(reason)
    assert not one.stream.gone, "the transport is still there"
    one.stream.connection_lost(None)
    assert one.lost == [reason]


def test_a_client_that_takes_a_frame_beyond_the_bound_is_given_up_when_it_takes_no_more_of_it() -> None:
    one = OpenStream()
    for backlog in (5000, 4000, 4000, 4000, 4000, 1001, *[1001] * (GREAT_FRAME_LOOKS - 1)):
        one.transport.buffered = backlog
        one.stream.heartbeat()
        assert one.transport.calls == [], "it takes some, now and then"
    assert one.transport.writes == [], "it is not silent"
    one.stream.heartbeat()
    assert one.transport.calls == ["abort"]
    assert one.stream.end_reason is Reason.HEARTBEAT_FAIL


def test_after_a_frame_beyond_the_bound_heartbeats_go_on() -> None:
    one = OpenStream()
    for backlog in (5000, 900, 5000, 0):
        one.transport.buffered = backlog
        one.stream.heartbeat()
    assert one.transport.writes == [HEARTBEAT.plain] * 2
    assert one.transport.calls == []


def test_nothing_is_written_once_the_connection_is_lost() -> None:
    one = OpenStream()
    one.stream.connection_lost(None)
    assert not one.stream.write(Frame(1, "", "x"))
    one.stream.heartbeat()
    one.stream.end(BYE, Reason.KICK)
    assert one.transport.writes == []


def test_a_client_that_half_closes_has_left() -> None:
    """False lets asyncio close the transport (Protocol.eof_received)."""
    assert OpenStream().stream.eof_received() is False


def test_what_the_client_says_is_ignored() -> None:
    one = OpenStream()
    one.stream.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert one.transport.writes == []
    assert one.stream.live


def test_a_paused_transport_is_told_to_a_replay_and_so_is_its_end() -> None:
    one = OpenStream(live=False)
    told: list[str] = []
    assert not one.stream.paused
    one.stream.pause_writing()
    assert one.stream.paused
    one.stream.when_writable(lambda: told.append("drained"))
    one.stream.resume_writing()
    assert not one.stream.paused
    one.stream.resume_writing()
    assert told == ["drained"], "once"
    one.stream.pause_writing()
    one.stream.when_writable(lambda: told.append("over"))
    one.stream.connection_lost(None)
    assert told == ["drained", "over"]
    assert not one.stream.paused, "nothing waits for a client that is gone"


@pytest.mark.parametrize("write", ["opening", "frame", "joined", "heartbeat", "replay", "end"])
def test_a_transport_that_fails_ends_its_stream_and_raises_nothing(write: str) -> None:
    """As uvloop's does when its handle is closed already. The caller has other streams to go on with."""
    one = OpenStream()
    one.transport.error = RuntimeError("the handler is closed")
    calls = {
        "opening": lambda: one.stream.attach(one.transport, connected(ADDRESS), lambda stream: None),
        "frame": lambda: one.stream.write(Frame(1, "", "x")),
        "joined": lambda: one.stream.write_joined(BYE, 1, 2),
        "heartbeat": one.stream.heartbeat,
        "replay": lambda: one.stream.replay(Frame(1, "", "x")),
        "end": lambda: one.stream.end(BYE, Reason.KICK),
    }
    calls[write]()
    assert one.stream.ended
    assert one.stream.failure is one.transport.error
    assert one.transport.calls[0] == "abort"
    assert one.stream.end_reason is (Reason.KICK if write == "end" else Reason.DISCONNECT)
