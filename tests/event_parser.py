"""A strict parser of event streams (WHATWG HTML standard, section 9.2.6). Pure, and without code of the broker."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LINE_END = re.compile(rb"\r\n|\r|\n")
DECIMAL = re.compile(r"0|[1-9][0-9]*")
FIELDS = ("id", "event", "data", "retry")


class StreamViolation(AssertionError):
    """The stream holds what a broker must never write."""


@dataclass(frozen=True, slots=True)
class Event:
    """One block. `data` is None without a data line, and then a browser shows nothing; `id` is the block's own."""

    id: int | None = None
    event: str = "message"
    data: str | None = None
    retry: int | None = None
    comments: tuple[str, ...] = ()
    seen_at: float = field(default=0.0, compare=False)


class EventParser:
    """Turn bytes into events, however they are cut.

    Stricter than the standard, which shrugs at what it does not know: a field other than id, event, data and retry, an
    id or retry that is no plain decimal number, a field given twice in one block, and text that is not UTF-8 raise
    StreamViolation.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._rest: list[bytes] = []
        self._after_cr = False
        self._first = True
        self._clear()

    def _clear(self) -> None:
        self._data: list[str] = []
        self._fields: dict[str, str] = {}
        self._block_comments: list[str] = []

    @property
    def unfinished(self) -> bool:
        """Whether bytes are left that belong to no finished block; at the end of a stream they are thrown away."""
        return bool(self._rest or self._data or self._fields)

    def feed(self, chunk: bytes, now: float = 0.0) -> list[Event]:
        """Take more bytes and return the blocks that they finish; comment lines go to `comments` as well."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\n" not in chunk and b"\r" not in chunk:
            if chunk:
                self._rest.append(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        *lines, rest = LINE_END.split(b"".join([*self._rest, chunk]))
        self._rest = [rest] if rest else []
        return [event for line in lines if (event := self._line(line, now)) is not None]

    def _line(self, raw: bytes, now: float) -> Event | None:
        if self._first:
            self._first = False
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise StreamViolation(f"not UTF-8: {raw[:200]!r}") from error
        if not line:
            return self._block(now)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
            self._block_comments.append(value)
        elif name == "data":
            self._data.append(value)
        elif name not in FIELDS or name in self._fields:
            raise StreamViolation(f"unknown or repeated field: {line[:200]!r}")
        else:
            self._fields[name] = value
        return None

    def _block(self, now: float) -> Event | None:
        data = "\n".join(self._data) if self._data else None
        fields, comments = self._fields, tuple(self._block_comments)
        self._clear()
        if data is None and not fields:
            return None
        for name in ("id", "retry"):
            if name in fields and not DECIMAL.fullmatch(fields[name]):
                raise StreamViolation(f"{name} is no decimal number: {fields[name][:200]!r}")
        return Event(
            id=int(fields["id"]) if "id" in fields else None,
            event=fields.get("event") or "message",
            data=data,
            retry=int(fields["retry"]) if "retry" in fields else None,
            comments=comments,
            seen_at=now,
        )
