"""Which requests take the short way (`web_door`), and what their heads say. It owns the memory of heads that were parsed
before; it parses nothing itself.

Why a memory: a back end that sends from a kept connection sends the same head again and again, but for a few lengths. The
parser takes 20 µs for one, of the 98 of a whole send in process, and what is asked of its result 8 more. Bytes that are
the same mean the same: between two requests a parser is as it was before the first.
"""

from aiohttp.http import HttpVersion11, RawRequestMessage

from sse_broker.client_address import Headers
from sse_broker.web_api import ENDPOINTS
from sse_broker.web_params import FORM, JSON

EVENTS = "/events"
KINDS = {
    "application/json": JSON,
    "application/json; charset=utf-8": JSON,
    "application/json;charset=utf-8": JSON,
    "application/json; charset=UTF-8": JSON,
    FORM: FORM,
}
HEAD_END = b"\r\n\r\n"
# Heads that are remembered, and how long one may be: 2 MB in all.
MAX_HEADS = 1024
MAX_HEAD_BYTES = 2048


class PlainHead:
    """A head of the plain kind: HTTP/1.1, of an endpoint of the API, the length of its body known, and nothing unusual.

    `kind` is the media type of the body as `body_values` takes it; `close` whether the connection ends with the answer.
    """

    __slots__ = ("close", "headers", "kind", "length", "method", "path", "target")

    def __init__(self, message: RawRequestMessage, path: str, kind: str, length: int) -> None:
        self.method: str = message.method
        self.target: str = message.path
        self.path = path
        self.headers: Headers = message.headers
        self.close: bool = message.should_close
        self.kind = kind
        self.length = length


def plain_head(message: RawRequestMessage, max_body_bytes: int) -> PlainHead | None:
    """Return what a parsed head says, if it is of the plain kind and its body not longer than this."""
    path = message.path.partition("?")[0]
    if message.version != HttpVersion11 or message.upgrade or message.chunked or message.compression:
        return None
    if "#" in message.path:
        return None
    headers = message.headers
    length = headers.get("Content-Length")
    if message.method == "GET":
        plain = (path in ENDPOINTS or path == EVENTS) and length is None
        return PlainHead(message, path, JSON, 0) if plain else None
    if message.method != "POST" or path not in ENDPOINTS or "Expect" in headers or "Content-Encoding" in headers:
        return None
    if length is None or not int(length):
        return PlainHead(message, path, JSON, 0)
    kind = KINDS.get(headers.get("Content-Type", ""))
    if kind is None or int(length) > max_body_bytes:
        return None
    return PlainHead(message, path, kind, int(length))


class KnownHeads:
    """The heads of POST requests that were parsed lately, by their bytes."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, PlainHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[PlainHead, bytes] | None:
        """Return head and body of a request, if `data` is all of it and nothing more, and its head is known."""
        end = data.find(HEAD_END, 0, MAX_HEAD_BYTES) + 4
        head = self._heads.get(data[:end])
        return None if head is None or head.length != len(data) - end else (head, data[end:])

    def add(self, data: bytes, head: PlainHead) -> None:
        """Remember the head of the request `data`; that of a GET not, which says each time something else."""
        end = len(data) - head.length
        if head.method == "POST" and end <= MAX_HEAD_BYTES:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[data[:end]] = head
