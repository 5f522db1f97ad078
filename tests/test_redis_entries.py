"""Frames, envelopes and devices as they stand in Redis: written and read back, and nothing that is read is trusted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker.envelope import EndEnvelope, FrameEnvelope
from sse_broker.frame import MAX_ID, Frame
from sse_broker.presence import Device, Reason, device_id_of
from sse_broker.redis_entries import DamagedEntry, device_json, device_of, entry_id, envelope_of, frame_of, page_of
from tests.recording import make_device


def entry(number: int | bytes, **fields: str | bytes) -> tuple[bytes, list[bytes]]:
    """Return an entry as a reply of Redis has it."""
    name = number if isinstance(number, bytes) else b"%d-0" % number
    flat = [part.encode() if isinstance(part, str) else part for name_value in fields.items() for part in name_value]
    return name, flat


# Ids


def test_the_id_of_an_entry_is_the_frame_s() -> None:
    assert entry_id(entry(1_700_000_000_000_000)) == 1_700_000_000_000_000
    assert entry_id(entry(MAX_ID)) == MAX_ID


@pytest.mark.parametrize(
    "name", [b"0-1", b"-5-0", b"%d-0" % (MAX_ID + 1), b"18446744073709551615-0", b"", b"x-0", b"\xff"]
)
def test_an_id_that_is_none_of_ours_is_damage(name: bytes) -> None:
    with pytest.raises(DamagedEntry):
        entry_id(entry(name))


# Frames and envelopes


def test_a_frame_is_read_back() -> None:
    assert frame_of(entry(5, e="news", d="two\nlines ☃")) == Frame(5, "news", "two\nlines ☃")
    assert frame_of(entry(5, e="", d="", t="4")) == Frame(5, "", "")


def test_an_envelope_names_devices_or_means_everyone() -> None:
    assert envelope_of(entry(5, e="", d="x", t="one two")) == FrameEnvelope(Frame(5, "", "x"), ("one", "two"))
    assert envelope_of(entry(5, e="", d="x", t="")) == FrameEnvelope(Frame(5, "", "x"), None)


def test_an_end_is_read_back() -> None:
    fields = {"k": "end", "i": "device", "c": "connection", "r": "extrude_offline", "p": "[::1]:5"}
    assert envelope_of(entry(5, **fields)) == EndEnvelope("device", "connection", Reason.EXTRUDE, "[::1]:5")


@pytest.mark.parametrize("missing", ["i", "c", "r", "p"])
def test_an_end_without_a_part_is_damage(missing: str) -> None:
    fields = {"k": "end", "i": "device", "c": "connection", "r": "kick_offline", "p": "x"}
    del fields[missing]
    with pytest.raises(DamagedEntry):
        envelope_of(entry(5, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"e": "x"},
        {"d": "x"},
        {"e": "a\nb", "d": "x"},
        {"e": "a\0", "d": "x"},
        {"e": "sys_connected", "d": "forged"},
        {"e": "e" * 257, "d": "x"},
        {"e": "", "d": b"\xff"},
        {"e": b"\xed\xa0\x80", "d": "x"},
        {"k": "end", "i": "d", "c": "c", "r": "no reason", "p": ""},
    ],
)
def test_what_the_broker_can_not_have_written_is_damage(fields: dict[str, str | bytes]) -> None:
    with pytest.raises(DamagedEntry):
        envelope_of(entry(5, **fields))
    with pytest.raises(DamagedEntry):
        frame_of(entry(5, **fields))


ANY_REPLY = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1).filter(lambda number: abs(number) < 1000) | st.binary(max_size=40),
    lambda children: st.lists(children, max_size=6),
    max_leaves=20,
)
FIELD = st.sampled_from([b"e", b"d", b"t", b"k", b"i", b"c", b"r", b"p", b"end", b"kick_offline", b""]) | st.binary(
    max_size=9
)


@given(st.one_of(ANY_REPLY, st.tuples(st.binary(max_size=20) | st.just(b"5-0"), st.lists(FIELD, max_size=12))))
def test_any_bytes_are_a_good_envelope_or_damage(reply: object) -> None:
    """And a good one has a frame that can stand in an event stream."""
    try:
        envelope = envelope_of(reply)  # type: ignore[arg-type]
    except DamagedEntry:
        return
    if isinstance(envelope, FrameEnvelope):
        assert b"\n\n" not in envelope.frame.plain[:-2]
        assert 0 < envelope.frame.id <= MAX_ID


# Pages


def frames(*ids: int) -> list[tuple[bytes, list[bytes]]]:
    return [entry(number, e="", d="x") for number in ids]


def ids(page: object) -> list[int]:
    return [frame.id for frame in page.frames]  # type: ignore[attr-defined]


def test_logs_are_merged_in_order_and_a_frame_of_several_is_there_once() -> None:
    page, _, damaged = page_of(0, [frames(1, 4, 7), frames(2, 4), frames(4, 5)], 10)
    assert ids(page) == [1, 2, 4, 5, 7]
    assert (page.more, page.gap, damaged) == (False, False, 0)


def test_nothing_beyond_the_end_of_a_full_log_is_in_the_page() -> None:
    """What that log holds further on may come before what the others gave already."""
    page, end_id, _ = page_of(0, [frames(1, 4, 7), frames(2, 3, 50), frames(60)], 3)
    assert ids(page) == [1, 2, 3, 4, 7]
    assert page.more
    assert end_id == 7


def test_a_log_that_is_not_full_hides_nothing() -> None:
    page, _, _ = page_of(1, [frames(1, 4), frames(), frames(60)], 3)
    assert ids(page) == [1, 4, 60]
    assert not page.more
    assert page.gap


def test_damage_is_counted_and_passed_over() -> None:
    log = [entry(1, e="", d="x"), entry(2), entry(3, e="", d="x")]
    page, end_id, damaged = page_of(0, [log, []], 3)
    assert ids(page) == [1, 3]
    assert (page.more, end_id, damaged) == (True, 3, 1)


def test_a_page_of_nothing_but_damage_says_where_to_go_on() -> None:
    page, end_id, damaged = page_of(0, [[entry(1), entry(2), entry(3)], frames(9)], 3)
    assert page.frames == ()
    assert (page.more, end_id, damaged) == (True, 3, 3)


def test_a_full_log_that_ends_beyond_our_ids_has_nothing_more() -> None:
    page, _, damaged = page_of(0, [[*frames(1, 2), entry(MAX_ID + 1, e="", d="x")]], 3)
    assert ids(page) == [1, 2]
    assert (page.more, damaged) == (False, 1)


@given(st.lists(st.sets(st.integers(1, 60), max_size=30), min_size=1, max_size=3), st.integers(1, 7))
def test_page_by_page_everything_comes_once_and_in_order(logs: list[set[int]], size: int) -> None:
    read: list[int] = []
    after = 0
    for _ in range(200):
        parts = [frames(*sorted(number for number in log if number > after)[:size]) for log in logs]
        page, after, _ = page_of(0, parts, size)
        read += ids(page)
        if not page.more:
            break
    assert read == sorted(set().union(*logs))


# Routes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def route(device: Device) -> bytes:
    return f"{device.instance_id} {device.connection_id} {device_json(device)}".encode()


@given(TEXT, TEXT, TEXT, st.floats(0, 1e12), st.floats(0, 1e12))
def test_a_device_is_read_back_from_its_route(uid: str, name: str, address: str, login: float, expires: float) -> None:
    device = make_device(
        name, uid, device_address=address, login_time=login, token_digest="digest", token_expires_at=expires
    )
    assert device_of(route(device)) == device


def test_a_route_does_not_say_twice_what_it_says_once() -> None:
    assert set(json.loads(device_json(make_device()))) == {field.name for field in dataclasses.fields(Device)} - {
        "device_id",
        "connection_id",
        "instance_id",
    }


def test_the_user_stands_first_in_a_route() -> None:
    """The publishing script reads it there, without reading all of the JSON."""
    assert device_json(make_device(uid="ann")).startswith('{"uid": "ann", ')


def test_the_device_id_is_made_of_the_name_and_not_believed() -> None:
    assert device_of(route(make_device("pad"))).device_id == device_id_of("pad")


GOOD = json.loads(device_json(make_device()))


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [None, [], {}, True, "text", 5, ["a"]])
def test_a_route_with_a_field_of_another_type_is_damage(name: str, value: object) -> None:
    text = f"node connection {json.dumps(GOOD | {name: value})}".encode()
    if value == ("text" if isinstance(GOOD[name], str) else 5):
        assert getattr(device_of(text), name) == value
    else:
        with pytest.raises(DamagedEntry):
            device_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "one two",
        "one two three",
        "one two {}",
        "one two []",
        "one two null",
        "one two " + "[" * 100_000,
        "one two " + json.dumps(GOOD | {"more": 1}),
        "one two " + json.dumps(GOOD | {"device_id": "x"}),
        "one two " + json.dumps(GOOD | {"device_name": "\ud800"}),
        "one two " + json.dumps(GOOD | {"login_time": float("nan")}),
        "one two " + json.dumps(GOOD | {"token_expires_at": float("inf")}),
        "one two " + json.dumps(GOOD | {"login_time": 1e300}),
        "one two " + json.dumps(GOOD | {"login_time": -1}),
        "one two " + json.dumps(GOOD | {"uid": "\ud800"}),
    ],
    ids=range(16),
)
def test_a_route_that_can_not_be_read_is_damage(text: str) -> None:
    with pytest.raises(DamagedEntry):
        device_of(text.encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_device_or_damage(data: bytes) -> None:
    with pytest.raises(DamagedEntry):
        device_of(data)
