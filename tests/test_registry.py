"""An instance's streams by device and by connection."""

from __future__ import annotations

from sse_broker.presence import device_id_of
from sse_broker.registry import Registry
from tests.recording import make_device, make_stream

A, B, NOBODY = device_id_of("a"), device_id_of("b"), device_id_of("nobody")


def test_a_stream_is_found_by_its_device_and_by_its_connection() -> None:
    registry = Registry()
    stream = make_stream(make_device("a"))
    registry.add(stream)
    assert registry.device(A) is stream
    assert registry.connection(stream.device.connection_id) is stream
    assert list(registry.of_devices([A])) == [stream]
    assert len(registry) == 1


def test_a_removed_stream_is_found_no_more_and_removed_once() -> None:
    registry = Registry()
    stream = make_stream(make_device("a"))
    registry.add(stream)
    assert registry.remove(stream)
    assert not registry.remove(stream)
    assert registry.device(A) is None
    assert registry.connection(stream.device.connection_id) is None
    assert list(registry.of_devices([A])) == []
    assert len(registry) == 0


def test_a_stream_that_was_never_in_is_not_removed() -> None:
    registry = Registry()
    registry.add(make_stream(make_device("a")))
    assert not registry.remove(make_stream(make_device("a")))
    assert len(registry) == 1


def test_a_device_has_its_old_stream_until_that_has_ended_and_then_the_new_one() -> None:
    registry = Registry()
    old, new = make_stream(make_device("a")), make_stream(make_device("a"))
    registry.add(old)
    registry.add(new)
    assert registry.device(A) is new
    assert list(registry.of_devices([A])) == [old, new]
    assert registry.remove(old)
    assert list(registry.of_devices([A])) == [new]
    assert registry.device(A) is new


def test_the_end_of_the_newer_stream_leaves_the_older() -> None:
    registry = Registry()
    old, new = make_stream(make_device("a")), make_stream(make_device("a"))
    registry.add(old)
    registry.add(new)
    assert registry.remove(new)
    assert registry.device(A) is old


def test_streams_come_in_the_order_of_the_devices_asked_for() -> None:
    registry = Registry()
    a, b = make_stream(make_device("a")), make_stream(make_device("b"))
    registry.add(a)
    registry.add(b)
    assert list(registry.of_devices([B, NOBODY, A])) == [b, a]


def test_streams_may_come_and_go_during_a_walk() -> None:
    registry = Registry()
    streams = [make_stream(make_device(f"d{number}")) for number in range(5)]
    for stream in streams:
        registry.add(stream)
    seen = []
    for stream in registry:
        seen.append(stream)
        registry.remove(stream)
        registry.add(make_stream(make_device("late")))
    assert seen == streams


def test_the_newest_stream_may_be_removed_while_those_of_its_device_are_walked() -> None:
    registry = Registry()
    old, new = make_stream(make_device("a")), make_stream(make_device("a"))
    registry.add(old)
    registry.add(new)
    for stream in registry.of_devices([A]):
        registry.remove(stream)
    assert len(registry) == 0
