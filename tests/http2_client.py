"""An independent client of event streams over HTTP/2: many of them on one connection, as a browser has its tabs."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.event_parser import Event, EventParser


class Http2Connection(asyncio.Protocol):
    """One TLS connection; use with `async with`."""

    def __init__(self, url: str, tls: ssl.SSLContext, source_ip: str) -> None:
        self._where, self._tls, self._source_ip = urlsplit(url), tls, source_ip
        self._tls.set_alpn_protocols(["h2"])
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._streams: dict[int, Http2Stream] = {}
        self._lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        assert self._where.hostname
        await asyncio.get_running_loop().create_connection(
            lambda: self, "127.0.0.1", self._where.port, local_addr=(self._source_ip, 0),
            ssl=self._tls, server_hostname=self._where.hostname,
        )  # fmt: skip
        assert self._transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        self._http.initiate_connection()
        self._flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.abort()
        await self._lost.wait()

    def request(self, stream: Http2Stream, headers: Mapping[str, str]) -> int:
        """Ask for the event stream and return the number of the HTTP/2 stream."""
        number = self._http.get_next_available_stream_id()
        self._streams[number] = stream
        head = {":method": "GET", ":scheme": "https", ":authority": self._where.netloc, ":path": "/events"}
        names = {name.lower(): text for name, text in headers.items()}
        self._http.send_headers(number, list((head | names).items()), end_stream=True)
        self._flush()
        return number

    def reset(self, number: int) -> None:
        """End a stream as a browser does when its tab is closed."""
        with suppress(h2.exceptions.ProtocolError):  # it ended before
            self._http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def _flush(self) -> None:
        self._transport.write(self._http.data_to_send())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand what arrives to the streams."""
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._streams[event.stream_id].take_head(dict(event.headers))
            elif isinstance(event, h2.events.DataReceived):
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._streams[event.stream_id].take_body(event.data)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._streams[event.stream_id].end()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every stream."""
        for stream in self._streams.values():
            stream.end()
        self._lost.set()


class Http2Stream:
    """One event stream on a connection, with what tests need of EventClient's interface; use with `async with`."""

    def __init__(
        self,
        connection: Http2Connection,
        *,
        token: str,
        device: str,
        last_id: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._connection = connection
        self._headers = {"X-SSE-TOKEN": token, "X-SSE-DEVICE": device} | dict(headers or {})
        if last_id is not None:
            self._headers["Last-Event-ID"] = str(last_id)
        self._parser = EventParser()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._head: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._number = self._connection.request(self, self._headers)
        async with asyncio.timeout(10):
            head = await self._head
        assert (head.get(":status"), head.get("content-type", "")[:17]) == ("200", "text/event-stream"), head
        await self.next_event("sys_connected")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Reset the stream; the connection stays."""
        self._connection.reset(self._number)

    async def wait_closed(self, *, seconds: float = 10) -> None:
        """Wait for the stream's end that the other side makes, however."""
        async with asyncio.timeout(seconds):
            await self._ended.wait()

    async def next_event(self, name: str, *, seconds: float = 10) -> Event:
        """Return the next event so called."""
        return await self._next(lambda event: event.event == name, seconds)

    async def next_frame(self, *, seconds: float = 10) -> Event:
        """Return the next event with an id."""
        return await self._next(lambda event: event.id is not None, seconds)

    async def _next(self, wanted: Callable[[Event], bool], seconds: float) -> Event:
        async with asyncio.timeout(seconds):
            while not wanted(event := await self._events.get()):
                pass
            return event

    # Called by the connection

    def take_head(self, headers: Mapping[str, str]) -> None:
        """Take status and headers."""
        self._head.set_result(headers)

    def take_body(self, data: bytes) -> None:
        """Take bytes of the stream."""
        for event in self._parser.feed(data, time.monotonic()):
            self._events.put_nowait(event)

    def end(self) -> None:
        """Note the end."""
        if not self._head.done():
            self._head.set_result({})
        self._ended.set()
