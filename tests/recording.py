"""A transport that writes down what is done to it, and devices and streams for tests that need no network. The real
transports are tested where real connections are (tests/test_web_events.py and the wire tests).
"""

from __future__ import annotations

import itertools
from typing import Any

from sse_broker.frame import Frame
from sse_broker.presence import Device, Reason, device_id_of
from sse_broker.stream import Stream
from sse_broker.system_events import connected

ADDRESS = "203.0.113.9:40001"
_numbers = itertools.count(1)


class RecordingTransport:
    """What a stream needs of a transport. `writes` holds the very objects that were written.

    `buffered` is what the client has not read, as the test sets it; `error` is raised by the next writes, `broken` also by the
    question how much is buffered.
    """

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.calls: list[str] = []
        self.buffered = 0
        self.error: Exception | None = None
        self.broken: Exception | None = None

    def write(self, data: bytes) -> None:
        """Write down, or fail."""
        if self.error is not None:
            raise self.error
        assert not self.is_closing(), "written to after the end"
        self.writes.append(data)

    def close(self) -> None:
        """Write down."""
        self.calls.append("close")

    def abort(self) -> None:
        """Write down."""
        self.calls.append("abort")

    def is_closing(self) -> bool:
        """Whether close or abort came."""
        return bool(self.calls)

    def get_write_buffer_size(self) -> int:
        """Say what the test wants, or fail."""
        if self.broken is not None:
            raise self.broken
        return self.buffered


def make_device(name: str = "d", uid: str = "u", **fields: Any) -> Device:
    """Return a device with a connection id of its own."""
    values: dict[str, Any] = {
        "uid": uid,
        "device_id": device_id_of(name),
        "device_name": name,
        "connection_id": f"connection{next(_numbers)}",
        "device_address": ADDRESS,
        "instance_id": "instance",
        "instance_address": "127.0.0.1:8080",
        "login_time": 1_700_000_000.0,
    }
    return Device(**values | fields)


def make_stream(device: Device | None = None, *, chunked: bool = False, max_buffer_bytes: int = 1000) -> Stream:
    """Return a stream that has no transport yet."""
    return Stream(device or make_device(), chunked=chunked, max_buffer_bytes=max_buffer_bytes)


class OpenStream:
    """A stream with its transport; `lost` counts how often its owner was told that it is gone."""

    def __init__(
        self, device: Device | None = None, *, live: bool = True, last_id: int | None = None, **options: Any
    ) -> None:
        self.stream = make_stream(device, **options)
        self.transport = RecordingTransport()
        self.lost: list[Reason | None] = []
        self.stream.begin(last_id, 0)
        self.stream.attach(self.transport, connected(ADDRESS), lambda stream: self.lost.append(stream.end_reason))
        self.transport.writes.clear()
        if live:
            self.stream.go_live()

    @property
    def written(self) -> bytes:
        """All that was written after the opening."""
        return b"".join(self.transport.writes)

    @property
    def ids(self) -> list[int]:
        """The ids of the frames written, in order."""
        return [int(line[4:]) for line in self.written.split(b"\n") if line.startswith(b"id: ")]


def frames(*ids: int, data: str = "x") -> list[Frame]:
    """Return frames with these ids."""
    return [Frame(number, "", data) for number in ids]
