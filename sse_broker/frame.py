"""The bytes of an event stream: frames, system events and the heartbeat. Everything is encoded once, here, and in both
wire forms: plain (HTTP/1.0) and as one HTTP/1.1 chunk. Pure: knows no transport, no clock and no backend.

Format: WHATWG HTML standard, section 9.2.6 "Interpreting an event stream"; chunks: RFC 9112, section 7.1.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from sse_broker.bounds import MAX_EVENT_CHARS
from sse_broker.errors import BadRequest

MAX_ID = 2**53 - 1
SYSTEM_PREFIX = "sys_"
END_OF_CHUNKS = b"0\r\n\r\n"

# What an EventSource waits before it connects again, in ms: about a day after a kick or an extrusion, so that it does not
# fight its successor; spread over some seconds after anything that hits many streams at once.
RETRY_NEVER_MS = 86_400_000
RETRY_SOON_MS = (1_000, 5_000)


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes that stand in an event stream as they are; `chunk` is `plain` as one HTTP/1.1 chunk."""

    plain: bytes
    chunk: bytes

    @classmethod
    def of(cls, plain: bytes) -> "Block":
        """Wrap event-stream bytes that are already complete."""
        return cls(plain, as_chunk(plain))


@dataclass(frozen=True, slots=True)
class Frame:
    """One event-stream block with an id; its bytes are made once, at construction.

    `data` and `event` must have passed `check_data` and `check_event`.
    """

    id: int
    event: str
    data: str
    plain: bytes = field(init=False, repr=False, compare=False)
    chunk: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        event = f"event: {self.event}\n" if self.event else ""
        plain = f"id: {self.id}\n{event}{_data_lines(self.data)}\n".encode()
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "chunk", as_chunk(plain))


def as_chunk(plain: bytes) -> bytes:
    """Return `plain` as one HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(plain), plain)


def join_frames(frames: Iterable[Frame]) -> Block:
    """Return several frames as one block, so that they go out in one write."""
    frames = tuple(frames)
    return Block(b"".join([frame.plain for frame in frames]), b"".join([frame.chunk for frame in frames]))


def system_event(name: str, data: str, retry_ms: int | None = None) -> Block:
    """Return a system event; it has no id, so the client's last event id stays what it was."""
    retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
    return Block.of(f"{retry}event: {name}\n{_data_lines(data)}\n".encode())


def soon_ms() -> int:
    """Return a random reconnect delay in ms, so that many clients do not come back at once."""
    return random.randint(*RETRY_SOON_MS)


def check_data(data: str) -> str:
    """Return `data` if UTF-8 can carry it.

    Raises: BadRequest when it holds a lone surrogate.
    """
    return check_text("data", data)


def check_event(event: str) -> str:
    """Return the event name if it is one line, of sensible length, and not the broker's own.

    Raises: BadRequest.
    """
    if not event:
        return event
    check_text("event", event)
    if any(character in event for character in "\r\n\0"):
        raise BadRequest("'event' must not hold CR, LF or NUL")
    if event.startswith(SYSTEM_PREFIX):
        raise BadRequest(f"'event' must not begin with '{SYSTEM_PREFIX}': such names are the broker's own")
    if len(event) > MAX_EVENT_CHARS:
        raise BadRequest(f"'event' is longer than {MAX_EVENT_CHARS} characters")
    return event


def check_text(name: str, text: str) -> str:
    """Return `text` if UTF-8 can carry it; `name` is the parameter's, for the message.

    Raises: BadRequest when it holds a lone surrogate.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"'{name}' holds a character that UTF-8 can not carry (a lone surrogate)") from None
    return text


def _data_lines(data: str) -> str:
    """Return one `data:` line for each line of `data`; CRLF, CR and LF all end a line."""
    if "\r" in data:
        data = data.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in data:
        data = data.replace("\n", "\ndata: ")
    return f"data: {data}\n"


HEARTBEAT = Block.of(b":heartbeat\n\n")
