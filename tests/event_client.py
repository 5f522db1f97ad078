"""An independent client of event streams on a raw socket, and one of the HTTP API, without code of the broker."""

from __future__ import annotations

import asyncio
import ctypes
import io
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import h11

from tests.event_parser import Event, EventParser, StreamViolation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: `headers` have lower-case names, `body` is the parsed JSON or None (an open event stream)."""

    status: int
    headers: Mapping[str, str]
    body: Any = None

    @property
    def result(self) -> Any:
        """The `result` of the API's JSON."""
        return self.body["result"]

    @property
    def msg(self) -> str:
        """The `msg` of the API's JSON."""
        return str(self.body["msg"])


class EventClient(asyncio.Protocol):
    """One connection to `/events`, read strictly; everything seen stays in `events`, in order.

    `frames` are the events with an id, `system` those named `sys_...`. `closed` is empty while the stream is open, then
    `clean` (last chunk seen), `eof` (the connection ended without one, which is the only way in HTTP/1.0), `reset`,
    `local` (closed here) or `violation`; what was wrong is raised by the next wait.
    `via` says how token, device and last id travel: `headers`, `bearer` or `query`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        device: str = "",
        last_id: int | str | None = None,
        headers: Mapping[str, str] | None = None,
        via: str = "headers",
        path: str = "/events",
        http: str = "1.1",
        receive_buffer_bytes: int = 0,
        source_ip: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url, self.device, self.http = url, device, http
        self._request = self._make_request(token, last_id, headers or {}, via, path)
        self._receive_buffer_bytes, self._source_ip, self._tls = receive_buffer_bytes, source_ip, tls
        self.events: list[Event] = []
        self.frames: list[Event] = []
        self.system: list[Event] = []
        self.heartbeat_times: list[float] = []
        self.closed = ""
        self.closed_at = 0.0
        self.answer: Answer | None = None
        self._head = Answer(0, {})
        self._violation: StreamViolation | None = None
        self._parser = EventParser()
        self._http = h11.Connection(h11.CLIENT)
        self._body = bytearray()
        self._read = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._lost = asyncio.Event()

    def _make_request(
        self, token: str, last_id: int | str | None, headers: Mapping[str, str], via: str, path: str
    ) -> h11.Request:
        fields = {"Host": urlsplit(self.url).netloc, "Accept": "text/event-stream"}
        values = {"token": token, "device": self.device, "id": "" if last_id is None else str(last_id)}
        values = {key: value for key, value in values.items() if value}
        if via == "query":
            path += "?" + urlencode(values, quote_via=quote)
        else:
            names = {"token": "X-SSE-TOKEN", "device": "X-SSE-DEVICE", "id": "Last-Event-ID"}
            if via == "bearer" and "token" in values:
                fields["Authorization"] = "Bearer " + values.pop("token")
            fields |= {names[key]: value for key, value in values.items()}
        sent = [(name.encode(), value.encode()) for name, value in {**fields, **headers}.items()]
        return h11.Request(method="GET", target=path, headers=sent)

    # Opening

    async def connect(self, *, seconds: float = 10) -> Answer:
        """Connect and ask for the stream; return status and headers, and the JSON unless the stream was opened.

        Raises: OSError if there is no connection, AssertionError if no answer comes.
        """
        where = urlsplit(self.url)
        assert where.hostname
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in where.hostname else socket.AF_INET
        connection = self._socket = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        if self._receive_buffer_bytes:  # before connecting, since it sets the window that is announced
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        try:
            async with asyncio.timeout(seconds):
                if self._source_ip:
                    connection.bind((self._source_ip, 0))
                await loop.sock_connect(connection, (where.hostname, where.port))
                await loop.create_connection(
                    lambda: self, sock=connection, ssl=self._tls, server_hostname=where.hostname if self._tls else None
                )
                assert self._transport
                request = self._http.send(self._request) + self._http.send(h11.EndOfMessage())
                if self.http == "1.0":
                    request = request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
                self._transport.write(request)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise AssertionError(f"no connection to {self.url} within {seconds} s") from None
            raise
        await self._wait(lambda: self.answer, seconds, "answer to /events")
        assert self.answer
        return self.answer

    async def open(self, *, seconds: float = 10) -> Self:
        """Connect, see status 200, wait for `sys_connected`, and return the client itself."""
        answer = await self.connect(seconds=seconds)
        assert answer.status == 200, f"{answer.status} {answer.body}"
        await self.wait_for(lambda event: event.event == "sys_connected", seconds=seconds)
        return self

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Seeing

    @property
    def heartbeats(self) -> int:
        """How many `:heartbeat` lines came."""
        return len(self.heartbeat_times)

    @property
    def last_id(self) -> int | None:
        """The id of the last frame seen."""
        return self.frames[-1].id if self.frames else None

    @property
    def address(self) -> str:
        """This end of the connection as `ip:port`."""
        assert self._transport
        host, port = self._transport.get_extra_info("sockname")[:2]
        return f"{host}:{port}"

    async def next_event(self, name: str | None = None, *, seconds: float = 10) -> Event:
        """Return the next event that no call of this kind has passed yet; with a name, the next so called."""
        return await self._next(lambda event: name is None or event.event == name, seconds, name or "event")

    async def next_frame(self, *, seconds: float = 10) -> Event:
        """Return the next event with an id, passing over system events."""
        return await self._next(lambda event: event.id is not None, seconds, "frame")

    async def _next(self, wanted: Callable[[Event], bool], seconds: float, what: str) -> Event:
        def step() -> Event | None:
            while self._read < len(self.events):
                self._read += 1
                if wanted(self.events[self._read - 1]):
                    return self.events[self._read - 1]
            return None

        return await self._wait(step, seconds, f"next {what}")

    async def wait_for(
        self, wanted: Callable[[Event], bool], *, seconds: float = 10, what: str = "a certain event"
    ) -> Event:
        """Return the first event of the whole stream for which `wanted` is true; what was read stays read."""
        seen = 0

        def step() -> Event | None:
            nonlocal seen
            while seen < len(self.events):
                seen += 1
                if wanted(self.events[seen - 1]):
                    return self.events[seen - 1]
            return None

        return await self._wait(step, seconds, what)

    async def wait_closed(self, *, seconds: float = 10) -> str:
        """Wait for the end of the stream and return how it ended (see `closed`)."""
        await self._wait(lambda: self.closed, seconds, "end of the stream")
        return self.closed

    async def _wait(self, step: Callable[[], T | None], seconds: float, what: str) -> T:
        """Call `step` after each change until it gives something true.

        Raises: StreamViolation if the stream broke the format, AssertionError if it ended before or time ran out.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            if value := step():
                return value
            if self._violation:
                raise self._violation
            left = deadline - loop.time()
            if self.closed or left <= 0:
                why = f"the stream ended ({self.closed})" if self.closed else f"not within {seconds} s"
                raise AssertionError(f"{why}: {what}; last events: {self.events[-3:]!r:.2000}")
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                self._waiters.discard(waiter)

    # What tests do to the connection

    def stop_reading(self) -> None:
        """Read nothing more from the socket, so that the kernel's buffers fill up."""
        assert self._transport
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        assert self._transport
        self._transport.resume_reading()

    def vanish(self) -> None:
        """Fall silent without a FIN, like a phone that loses its network; call `close` only when all is checked.

        A socket filter throws away every packet that arrives, before the kernel could acknowledge it (Linux).
        """
        assert self._socket
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        self._socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ATTACH_FILTER", 26), program)

    def send_bytes(self, data: bytes) -> None:
        """Write bytes behind the request."""
        assert self._transport
        self._transport.write(data)

    async def close(self, *, abrupt: bool = False) -> None:
        """Close the connection: with a FIN, or with a reset if `abrupt`."""
        if self._transport is None:
            return
        if not self._lost.is_set():
            self._end("local")
            if abrupt and self._socket and self._tls is None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()  # drops what is still buffered; without the option above it sends a FIN
        await self._lost.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop are no subclass

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self._take(data)

    def eof_received(self) -> None:
        """Note the other side's FIN; the transport closes itself."""
        self._take(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end("reset" if exc else "eof")
        self._lost.set()

    def _take(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while not self.closed:
                event = self._http.next_event()
                if isinstance(event, h11.Response):
                    self._take_head(event)
                elif isinstance(event, h11.Data):
                    self._take_body(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._take_end()
                else:
                    break
        except h11.RemoteProtocolError as error:
            if data:
                self._violation = StreamViolation(f"broken HTTP: {error}")
            self._end("violation" if data else "eof")
        except StreamViolation as error:
            self._violation = error
            self._end("violation")
        self._wake()

    def _take_head(self, response: h11.Response) -> None:
        headers = {name.decode("latin-1"): value.decode("utf-8") for name, value in response.headers}
        self._head = Answer(response.status_code, headers)
        if response.status_code != 200:
            return
        if self.http == "1.0" and "transfer-encoding" in headers:
            raise StreamViolation("a chunked answer to HTTP/1.0")
        if headers.get("content-type", "").partition(";")[0] != "text/event-stream":
            raise StreamViolation(f"content type {headers.get('content-type')!r}")
        self.answer = self._head

    def _take_body(self, data: bytes) -> None:
        if self.answer is None:
            self._body += data
            return
        now = time.monotonic()
        for event in self._parser.feed(data, now):
            self.events.append(event)
            if event.event.startswith("sys_"):
                self.system.append(event)
            elif event.id is not None:
                self.frames.append(event)
        comments = self._parser.comments
        self.heartbeat_times += [now] * comments.count("heartbeat")
        comments.clear()

    def _take_end(self) -> None:
        if self.answer is None:
            self.answer = Answer(self._head.status, self._head.headers, json.loads(self._body))
        # In HTTP/1.0 the end of the connection is the end of the answer: nothing tells a full stream from a cut one.
        self._end("clean" if self.http == "1.1" else "eof")

    def _end(self, how: str) -> None:
        if not self.closed:
            self.closed, self.closed_at = how, time.monotonic()
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Api:
    """The endpoints `/token`, `/send`, `/info`, `/kick` of one broker, and any other path; use with `async with`.

    Each method gives the whole answer whatever its status; `token_for` gives the token itself.
    """

    def __init__(self, base_url: str, key: str | None = None, *, seconds: float = 10) -> None:
        self.base_url = base_url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        if self._session:
            await self._session.close()

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """Make any request; `options` are those of aiohttp (`json`, `data`, `params`, `headers`).

        Raises: aiohttp.ClientError if there is no broker, TimeoutError.
        """
        assert self._session, "use `async with Api(...)`"
        async with self._session.request(method, self.base_url + path, **options) as response:
            text = await response.text()
            headers = {name.lower(): value for name, value in response.headers.items()}
        is_json = text and headers.get("content-type", "").startswith("application/json")
        body = json.loads(text) if is_json else text
        return Answer(response.status, headers, body)

    async def token(self, uid: str, device: str | None = None, **more: Any) -> Answer:
        """Ask for a token."""
        return await self._call("/token", uid=uid, device=device, **more)

    async def token_for(self, uid: str, device: str | None = None, **more: Any) -> str:
        """Return a token, which must be granted."""
        answer = await self.token(uid, device, **more)
        assert answer.status == 200, answer
        return str(answer.result)

    async def send(
        self, data: Any, *, uid: Any = None, device: Any = None, event: str | None = None, **more: Any
    ) -> Answer:
        """Send a frame to users, devices, or everyone."""
        return await self._call("/send", data=data, uid=uid, device=device, event=event, **more)

    async def info(self, **which: Any) -> Answer:
        """Ask about a `uid`, `device`, `ip`, or the cluster."""
        return await self._call("/info", **which)

    async def kick(self, *, uid: Any = None, device: Any = None, data: str | None = None, **more: Any) -> Answer:
        """Kick users or devices."""
        return await self._call("/kick", uid=uid, device=device, data=data, **more)

    async def _call(self, path: str, **fields: Any) -> Answer:
        body = json.dumps({key: value for key, value in fields.items() if value is not None}).encode()
        headers = {"Content-Type": "application/json"}
        # A stream, since aiohttp warns of large bodies that come in one piece.
        return await self.request("POST", path, data=io.BytesIO(body), headers=headers)
