"""The short way from a connection to the API, for the requests that come by the thousand: a send and the opening of a stream.
It owns a connection until a request comes that is not of the plain kind; that one and all that follow are aiohttp's. It
knows no rule of the API.

Why: through aiohttp's handlers a request costs two tasks, a request and a response object, and some six turns of the event
loop: 190 µs with an application that does nothing, and more than a whole send costs this way, in one turn. The parser is aiohttp's own, so what is
a request, and where it ends, has one answer on both ways; nothing else here reads what a client sent.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aiohttp.http import HttpProcessingError, HttpRequestParser

from sse_broker.access_log import AccessLogger, masked
from sse_broker.at_once import run_at_once
from sse_broker.errors import BrokerError
from sse_broker.presence import Reason
from sse_broker.turns import Turns
from sse_broker.web import MAX_LINE_BYTES
from sse_broker.web_api import ENDPOINTS, Answer, Api, Head, answer, cors, failure
from sse_broker.web_events import ALLOW, STREAM_HEADERS, joined_stream
from sse_broker.web_heads import EVENTS, HEAD_END, KnownHeads, PlainHead, plain_head
from sse_broker.web_params import body_values
from sse_broker.web_responses import ResponseHeads

log = logging.getLogger(__name__)

# A body up to this length may come in pieces; what is longer, or of another type, is read by aiohttp's handlers.
MAX_BODY_BYTES = 64 * 1024
# A client may send this much ahead of the answer to its last request.
MAX_BEHIND_BYTES = 64 * 1024
# Streams that are opened in one turn of the loop: about 3 ms.
OPENINGS_PER_TURN = 16


class Hall:
    """What the doors of one server share. `doors` are those that are open, `works` the requests that could not be answered at
    once; `aiohttp_protocol` makes a protocol of aiohttp's for a connection.
    """

    def __init__(self, api: Api, aiohttp_protocol: Callable[[], asyncio.Protocol]) -> None:
        server = api.config.server
        self.api = api
        self.aiohttp_protocol = aiohttp_protocol
        self.doors: set[Door] = set()
        self.works: set[asyncio.Task[None]] = set()
        self.heads = KnownHeads()
        self.responses = ResponseHeads()
        self.openings = Turns(asyncio.get_running_loop(), OPENINGS_PER_TURN)
        self.max_body_bytes = min(MAX_BODY_BYTES, server.max_body_bytes)
        self._access = AccessLogger.trusting(server.trusted_networks)(logging.getLogger("aiohttp.access"), "")

    def own(self, work: "asyncio.Task[None]") -> None:
        """Keep a task until its end."""
        self.works.add(work)
        work.add_done_callback(self.works.discard)

    def log_access(self, head: Head, status: int, sent_bytes: int, started: float) -> None:
        """Write the access log's line for a request that began at `started` on the performance counter."""
        remote = head.peer[0] if isinstance(head.peer, tuple) else None
        target = masked(head.target) if "?" in head.target else head.target
        line = f"{head.method} {target} HTTP/1.1"
        self._access.line(remote, head.headers, line, status, sent_bytes, time.perf_counter() - started)


class Door(asyncio.Protocol):
    """The protocol of a connection from its beginning until aiohttp or a stream takes it.

    `work` is the task of a request that could not be answered at once; `since` is the loop's time of the last request;
    `fresh` until there was one.
    """

    __slots__ = ("_behind", "_behind_bytes", "_closing", "_hall", "_head", "_loop", "_parser", "_partial", "_payload", "_peer", "_transport", "_write_paused", "fresh", "since", "work")  # fmt: skip

    def __init__(self, hall: Hall, loop: asyncio.AbstractEventLoop) -> None:
        self._hall = hall
        self._loop = loop
        self._parser: HttpRequestParser | None = HttpRequestParser(
            self,  # type: ignore[arg-type]  # it asks for `pause_reading` and `resume_reading` alone
            loop,
            2 * MAX_BODY_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )
        self._transport: asyncio.Transport | None = None
        self._peer: object = None
        self._head: PlainHead | None = None
        self._payload: Any = None
        self._partial: list[bytes] = []
        self._behind: list[bytes] = []
        self._behind_bytes = 0
        self._closing = False
        self._write_paused = False
        self.work: asyncio.Task[None] | None = None
        self.since = loop.time()
        self.fresh = True

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection; its socket has its options from the one that listens."""
        self._transport = transport  # type: ignore[assignment]  # that of a connection is a Transport
        self._peer = transport.get_extra_info("peername")
        self._hall.doors.add(self)

    def connection_lost(self, error: BaseException | None) -> None:
        """Forget it; a request in work goes on to its end, and nobody hears of it."""
        self._forget()

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self._write_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        if self._transport is not None:
            self._transport.resume_reading()
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Answer a request that is whole and plain; wait for one that is plain; leave any other to aiohttp."""
        if self.work is not None or self._write_paused:
            self._behind.append(data)
            self._behind_bytes += len(data)
            if self._behind_bytes > MAX_BEHIND_BYTES and self._transport is not None:
                self._transport.pause_reading()
            return
        if self._closing or self._parser is None:
            return
        if self._head is None and (known := self._hall.heads.find(data)) is not None:
            self._begin(*known)
        else:
            self._parse(self._parser, data)

    def _parse(self, parser: HttpRequestParser, data: bytes) -> None:
        try:
            messages, upgraded, _ = parser.feed_data(data)
        except HttpProcessingError:
            self._leave_to_aiohttp(data)
            return
        if messages and self._head is None:
            message, self._payload = messages[0]
            self._head = plain_head(message, self._hall.max_body_bytes)
            messages = messages[1:]
        head = self._head
        if messages or upgraded or head is None:
            self._leave_to_aiohttp(data)
        elif self._payload.is_eof():
            came = b"".join([*self._partial, data]) if self._partial else data
            # The beginning of a next request would be in the parser alone, and lost to aiohttp if that one is not plain.
            if came.find(HEAD_END) + len(HEAD_END) + head.length == len(came):
                parser.message_consumed()
                self._hall.heads.add(came, head)
                self._head = self._payload = None
                self._partial.clear()
                self._begin(head, came[len(came) - head.length :])
            else:
                self._leave_to_aiohttp(data)
        else:
            self._partial.append(data)

    # --- what aiohttp's reader of bodies asks of a protocol: never of use, since bodies are shorter than its bound ---

    def pause_reading(self) -> None:
        """See above."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """See above."""

    # --- requests ---

    def _begin(self, plain: PlainHead, body: bytes) -> None:
        """Carry out a request: at once if nothing has to be waited for, else in a task."""
        transport = self._transport
        assert transport is not None
        self.since = self._loop.time()
        self.fresh = False
        head = Head(plain.method, plain.target, plain.path, plain.headers, self._peer)
        if plain.path == EVENTS:
            work = self._open_stream(head, plain.close)
        else:
            work = self._answer(head, _Body(plain, body), plain.close)
        try:
            # A set of keys may have to be fetched, with deadlines, which want a task around them.
            at_once = self._hall.api.jwks is None
            self.work = run_at_once(work, self._loop) if at_once else self._loop.create_task(work)
        except Exception:
            log.exception("a request failed")
            transport.abort()
        if self.work is not None:
            self._hall.own(self.work)
            self.work.add_done_callback(self._worked)

    def _worked(self, work: "asyncio.Task[None]") -> None:
        self.work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("a request failed", exc_info=error)
        self._go_on()

    def _go_on(self) -> None:
        """Take what came behind the last request."""
        if self._behind and self.work is None and not self._write_paused:
            data = b"".join(self._behind)
            self._behind.clear()
            self._behind_bytes = 0
            if self._transport is not None:
                self._transport.resume_reading()
            self.data_received(data)

    async def _answer(self, head: Head, body: "_Body", close: bool) -> None:
        started = time.perf_counter()
        result = await answer(self._hall.api, ENDPOINTS[head.path], head, body)
        self._write(head, result, started, close)

    async def _open_stream(self, head: Head, close: bool) -> None:
        started = time.perf_counter()
        started_ns = time.perf_counter_ns()
        api = self._hall.api
        turn = self._hall.openings.take()
        if turn is not None:
            await turn
        headers = cors(api, head)
        try:
            opening = await joined_stream(api, head, chunked=True)
        except BrokerError as error:
            self._write(head, failure(error, started_ns, headers, ALLOW), started, close)
            return
        except Exception:
            log.exception("/events failed")
            unknown = BrokerError("something went wrong here; the log says what")
            self._write(head, failure(unknown, started_ns, headers, ALLOW), started, close)
            return
        stream, transport = opening.stream, self._transport
        if transport is None or transport.is_closing():  # the client left while its device joined
            api.broker.leave(stream)
            return
        self._forget()
        transport.set_protocol(stream)  # type: ignore[arg-type]  # a protocol by duck typing
        transport.resume_reading()
        response = self._hall.responses.head(200, STREAM_HEADERS | headers | {"Transfer-Encoding": "chunked"})
        try:
            await api.broker.run(stream, transport, opening.joined, opening.last_id, response)
        except BaseException:
            api.broker.leave(stream)
            stream.abort(Reason.DISCONNECT)
            raise
        finally:
            self._hall.log_access(head, 200, len(response), started)

    def _write(self, head: Head, result: Answer, started: float, close: bool) -> None:
        close = close or self._closing
        data = self._hall.responses.head(result.status, result.headers, len(result.body), close) + result.body
        transport = self._transport
        if transport is not None:
            transport.write(data)
            if close:
                self._closing = True
                transport.close()
        self._hall.log_access(head, result.status, len(data), started)

    # --- the end ---

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection's transport, None once it is somebody else's or gone."""
        return self._transport

    @property
    def body_progress(self) -> int | None:
        """How much of a body that is still to come is there, in pieces; None when none is waited for."""
        return None if self._head is None else len(self._partial)

    def close(self) -> None:
        """End the connection, after the answer to a request that is in work."""
        self._closing = True
        if self.work is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection, whatever is still to be said."""
        if self._transport is not None:
            self._transport.abort()

    def _leave_to_aiohttp(self, data: bytes) -> None:
        """Hand the connection over, with all that came since the last request that was answered."""
        transport = self._transport
        assert transport is not None
        data = b"".join([*self._partial, data])
        self._forget()
        protocol = self._hall.aiohttp_protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def _forget(self) -> None:
        self._transport = None
        self._parser = None  # it knows this protocol: without a cycle both go at once
        self._head = self._payload = None
        self._partial.clear()
        self._behind.clear()
        self._behind_bytes = 0
        self._hall.doors.discard(self)


class _Body:
    """A body that is there as a whole."""

    __slots__ = ("_body", "_head")

    def __init__(self, head: PlainHead, body: bytes) -> None:
        self._head = head
        self._body = body

    async def values(self) -> dict[str, object]:
        """See `Body.values`."""
        if not self._body:
            return {}
        return body_values(self._body, self._head.kind, None, self._head.kind)
