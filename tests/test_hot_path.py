"""What one delivery, one send and one connect may cost, counted instead of timed: the same on any machine, however busy.

`make bench-check` looks at the real cost, where timings mean something.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import pytest

import sse_broker.frame
from sse_broker.delivery import SLICE_STREAMS
from sse_broker.frame import Frame
from sse_broker.web_door import Door
from tests.recording import OpenStream, make_device
from tests.served import ServedBroker
from tests.waiting import until

STREAMS = 2 * SLICE_STREAMS + 1


class Wire:
    """A transport that counts what is written to it, and is otherwise like a client that reads at once."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        """Take bytes."""
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def get_extra_info(self, name: str) -> tuple[str, int]:
        """Return where the client is."""
        return "127.0.0.1", 5

    def set_protocol(self, protocol: Any) -> None:
        """Take another protocol."""
        self.protocol = protocol

    def is_closing(self) -> bool:
        """It stays open."""
        return False

    def resume_reading(self) -> None:
        """There is nothing to read."""

    def close(self) -> None:
        """End as a connection does."""
        self.protocol.connection_lost(None)

    abort = close


@pytest.fixture
async def served() -> AsyncIterator[ServedBroker]:
    """A broker on the embedded backend."""
    async with ServedBroker() as broker:
        yield broker


def connect(broker: ServedBroker) -> tuple[Door, Wire]:
    """Return a connection without a socket."""
    door, wire = Door(broker.http.hall, asyncio.get_running_loop()), Wire()
    wire.protocol = door
    door.connection_made(wire)  # type: ignore[arg-type]
    return door, wire


async def open_stream(broker: ServedBroker, number: int) -> Wire:
    """Return the wire of an open stream."""
    door, wire = connect(broker)
    target = f"/events?device=d{number}&token={broker.mint(f'u{number}')}"
    door.data_received(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await until(lambda: wire.protocol is not door, what="the stream", pause_seconds=0)
    return wire


def send(**parameters: str) -> bytes:
    """Return the bytes of a send."""
    body = json.dumps({"data": "x" * 100} | parameters).encode()
    head = f"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Count the calls of a function of `sse_broker.frame`."""
    calls: list[object] = []
    function = getattr(sse_broker.frame, name)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(sse_broker.frame, name, counted)
    return calls


async def test_a_connect_is_one_write_and_no_task(served: ServedBroker) -> None:
    before = asyncio.all_tasks()
    wire = await open_stream(served, 0)
    await until(lambda: asyncio.all_tasks() == before, what="nothing more")
    assert len(wire.writes) == 1
    assert asyncio.all_tasks() == before
    wire.close()


async def test_a_broadcast_is_one_encode_one_write_for_each_stream_and_no_task(
    served: ServedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires = [await open_stream(served, number) for number in range(STREAMS)]
    door, publisher = connect(served)
    tasks = asyncio.all_tasks()
    encoded = counting(monkeypatch, "as_chunk")
    door.data_received(send())
    await until(lambda: len(wires[-1].writes) == 2, what="the last stream's frame")
    assert [len(wire.writes) for wire in wires] == [2] * STREAMS
    assert all(wire.writes[1] is wires[0].writes[1] for wire in wires), "the same bytes object"
    assert len(encoded) == 1
    assert len(publisher.writes) == 1
    assert asyncio.all_tasks() == tasks
    for wire in wires:
        wire.close()


async def test_a_burst_of_broadcasts_is_one_write_for_each_stream(served: ServedBroker) -> None:
    wires = [await open_stream(served, number) for number in range(STREAMS)]
    door, _ = connect(served)
    for _ in range(10):
        door.data_received(send())
    await until(lambda: len(wires[-1].writes) == 2, what="the last stream's frames")
    assert [len(wire.writes) for wire in wires] == [2] * STREAMS
    assert wires[0].writes[1].count(b"\nid: ") == 10
    for wire in wires:
        wire.close()


async def test_a_targeted_send_is_one_write_to_its_stream_and_one_to_its_sender(served: ServedBroker) -> None:
    wires = [await open_stream(served, number) for number in range(3)]
    door, publisher = connect(served)
    tasks = asyncio.all_tasks()
    door.data_received(send(device="d1"))
    assert [len(wire.writes) for wire in wires] == [1, 2, 1], "before anything else could run"
    assert len(publisher.writes) == 1
    assert asyncio.all_tasks() == tasks
    for wire in wires:
        wire.close()


# --- instructions of the interpreter ---


def instructions(work: Callable[[], object]) -> int:
    """Return how many of Python's instructions a call takes, in Python's code alone."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(former)
    return count


# Measured on Python 3.11, and a tenth more for those that count differently. A change that goes over has to say why.
MAX_INSTRUCTIONS = {"write": 85, "write_joined": 85, "send": 2_500, "connect": 3_400}


async def test_a_write_takes_few_instructions() -> None:
    one = OpenStream(make_device("d"))
    first, second = Frame(1, "", "x"), Frame(2, "", "x")
    assert instructions(lambda: one.stream.write(first)) - instructions(lambda: None) <= MAX_INSTRUCTIONS["write"]
    taken = instructions(lambda: one.stream.write_joined(second, 2, 2)) - instructions(lambda: None)
    assert taken <= MAX_INSTRUCTIONS["write_joined"]
    assert one.ids == [1, 2]


async def test_a_send_and_a_connect_take_few_instructions(served: ServedBroker) -> None:
    wires = [await open_stream(served, number) for number in range(3)]
    door, _ = connect(served)
    request = send(device="d1")
    door.data_received(request)
    assert instructions(lambda: door.data_received(request)) <= MAX_INSTRUCTIONS["send"]
    token = served.mint("u9")
    other, wire = connect(served)
    opening = f"GET /events?device=d9&token={token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert instructions(lambda: other.data_received(opening)) <= MAX_INSTRUCTIONS["connect"]
    for one in [*wires, wire]:
        one.close()


@pytest.mark.parametrize("streams", [10, 1_000])
async def test_a_send_costs_the_same_whatever_the_number_of_streams(served: ServedBroker, streams: int) -> None:
    wires = [await open_stream(served, number) for number in range(streams)]
    door, _ = connect(served)
    request = send(device="d1")
    door.data_received(request)
    assert instructions(lambda: door.data_received(request)) <= MAX_INSTRUCTIONS["send"]
    for wire in wires:
        wire.close()
