"""The bytes of frames: what a client reads is what was sent, and nothing in it can be taken for something else."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker import frame
from sse_broker.errors import BadRequest
from sse_broker.frame import (
    HEARTBEAT,
    MAX_ID,
    Block,
    Frame,
    check_data,
    check_event,
    check_text,
    join_frames,
    system_event,
)
from tests.event_parser import Event, EventParser

# Everything that UTF-8 can carry, with the characters that matter to an event stream often.
TEXT = st.text(
    st.one_of(
        st.sampled_from("\r\n\0: \ufeff\u2028\u0085é\U0001f600"),
        st.characters(exclude_categories=["Cs"], codec="utf-8"),
    )
)
EVENTS = TEXT.filter(lambda text: not re.search("[\r\n\0]", text) and not text.startswith("sys_") and len(text) < 257)
IDS = st.integers(1, MAX_ID)


def one_line_end(text: str) -> str:
    """Return the text as an event stream gives it back: each line end is LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unchunked(data: bytes) -> bytes:
    """Read HTTP/1.1 chunks strictly (RFC 9112, section 7.1)."""
    out = b""
    while data:
        size, rest = data.split(b"\r\n", 1)
        assert re.fullmatch(rb"[0-9a-f]+", size)
        length = int(size, 16)
        assert length, "this would end the response"
        assert rest[length : length + 2] == b"\r\n"
        out, data = out + rest[:length], rest[length + 2 :]
    return out


def test_a_frame_is_id_event_and_data_and_a_blank_line() -> None:
    assert Frame(5, "news", "hello").plain == b"id: 5\nevent: news\ndata: hello\n\n"


def test_a_frame_without_an_event_name_has_no_event_line() -> None:
    assert Frame(5, "", "hello").plain == b"id: 5\ndata: hello\n\n"


def test_a_frame_with_cr_lf_is_one_line_each() -> None:
    assert Frame(5, "", "a\r\nb\rc\nd").plain == b"id: 5\ndata: a\ndata: b\ndata: c\ndata: d\n\n"


def test_empty_data_and_empty_lines_are_kept() -> None:
    assert Frame(5, "", "").plain == b"id: 5\ndata: \n\n"
    assert Frame(5, "", "\n\na\n").plain == b"id: 5\ndata: \ndata: \ndata: a\ndata: \n\n"


@pytest.mark.parametrize("text", ["\n\rx", "\r\r\n\n", "\n\n\r\n"])
def test_mixed_line_ends_count_as_the_standard_counts_them(text: str) -> None:
    (event,) = EventParser().feed(Frame(1, "", text).plain)
    assert event.data == one_line_end(text)


@given(IDS, EVENTS, TEXT)
def test_what_a_client_reads_is_what_was_sent(number: int, event: str, data: str) -> None:
    assert EventParser().feed(Frame(number, event, data).plain) == [
        Event(id=number, event=event or "message", data=one_line_end(data))
    ]


@given(IDS, EVENTS, TEXT)
def test_a_chunk_is_the_same_bytes_as_one_http_chunk(number: int, event: str, data: str) -> None:
    one = Frame(number, event, data)
    assert unchunked(one.chunk) == one.plain


@given(st.lists(st.tuples(EVENTS, TEXT), min_size=1, max_size=5))
def test_joined_frames_read_like_frames_written_one_by_one(parts: list[tuple[str, str]]) -> None:
    some = [Frame(number, event, data) for number, (event, data) in enumerate(parts, 1)]
    block = join_frames(iter(some))
    assert block.plain == b"".join(one.plain for one in some)
    assert unchunked(block.chunk) == block.plain


def test_a_megabyte_and_100_000_lines_are_one_frame() -> None:
    (event,) = EventParser().feed(Frame(1, "", "\n" * 100_000).plain)
    assert event.data == "\n" * 100_000
    assert len(Frame(1, "", "x" * 2**20).plain) == 2**20 + len(b"id: 1\ndata: \n\n")


def test_the_bytes_of_a_frame_are_made_once() -> None:
    one = Frame(1, "", "x")
    assert one.plain is one.plain
    assert one.chunk is one.chunk
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.plain = b""  # type: ignore[misc]


def test_frames_are_equal_by_what_they_say() -> None:
    assert Frame(1, "e", "x") == Frame(1, "e", "x")
    assert Frame(1, "e", "x") != Frame(2, "e", "x")


def test_the_greatest_id_is_exact_in_a_double() -> None:
    """JavaScript reads ids as numbers at times: 2^53 - 1 is the last that it tells from its neighbour."""
    assert MAX_ID == 2**53 - 1
    assert Frame(MAX_ID, "", "x").plain.startswith(b"id: 9007199254740991\n")


def test_the_heartbeat_is_a_comment_that_no_client_shows() -> None:
    assert Block(b":heartbeat\n\n", b"c\r\n:heartbeat\n\n\r\n") == HEARTBEAT
    assert EventParser().feed(HEARTBEAT.plain) == []


def test_the_end_of_chunks_ends_an_http_response() -> None:
    assert frame.END_OF_CHUNKS == b"0\r\n\r\n"


def test_a_system_event_has_a_retry_line_if_asked() -> None:
    assert system_event("sys_x", "a\nb").plain == b"event: sys_x\ndata: a\ndata: b\n\n"
    assert system_event("sys_x", "a", 1500).plain == b"retry: 1500\nevent: sys_x\ndata: a\n\n"


def test_a_reconnect_soon_is_one_to_five_seconds_away() -> None:
    delays = [frame.soon_ms() for _ in range(200)]
    assert 1000 <= min(delays) < max(delays) <= 5000


@pytest.mark.parametrize(
    "event", ["", "news", " spaces ", "système", "sys", "SYS_x", "xsys_", "a:b", "\u2028", "e" * 256]
)
def test_an_event_name_of_one_line_is_good(event: str) -> None:
    assert check_event(event) == event
    (read,) = EventParser().feed(Frame(1, event, "x").plain)
    assert read.event == (event or "message")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ("a\nb", "CR, LF or NUL"),
        ("a\rb", "CR, LF or NUL"),
        ("a\r\ndata: forged", "CR, LF or NUL"),
        ("\0", "CR, LF or NUL"),
        ("sys_", "sys_"),
        ("sys_connected", "sys_"),
        ("e" * 257, "256"),
        ("\udc80", "surrogate"),
    ],
)
def test_a_bad_event_name_is_refused_with_the_reason(event: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        check_event(event)
    assert caught.value.status == 400
    assert "'event'" in caught.value.message


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_a_lone_surrogate_is_refused_under_the_name_of_its_parameter(text: str) -> None:
    with pytest.raises(BadRequest, match="'data'"):
        check_data(text)
    with pytest.raises(BadRequest, match="'uid'"):
        check_text("uid", text)


@given(TEXT)
def test_all_that_utf_8_can_carry_is_good_data(text: str) -> None:
    assert check_data(text) == text
