"""The first lines of an answer on the short way (RFC 9112, section 4), as aiohttp writes them on the other."""

import time
from email.utils import formatdate
from http import HTTPStatus

from aiohttp.http import SERVER_SOFTWARE

from sse_broker import answers


def _lines(headers: dict[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()


PLAIN_LINES = _lines(answers.HEADERS)
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class ResponseHeads:
    """Makes heads; the time in them is written once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._end = b""

    def head(self, status: int, headers: dict[str, str], length: int | None = None, close: bool = False) -> bytes:
        """Return the head of an answer, without `length` of a stream; `close` says that the connection ends with it."""
        # The headers of every answer that no page of another site asked for are joined once.
        lines = PLAIN_LINES if headers is answers.HEADERS else _lines(headers)
        start = b"HTTP/1.1 %d %b\r\n%b" % (status, PHRASES[status], lines)
        if length is not None:
            start += b"Content-Length: %d\r\n" % length
        return start + self._last_lines() + (b"Connection: close\r\n\r\n" if close else b"\r\n")

    def _last_lines(self) -> bytes:
        # With the time: RFC 9110, section 6.6.1.
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._end = f"Date: {formatdate(second, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n".encode()
        return self._end
