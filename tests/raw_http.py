"""Requests byte by byte, for what no client library would send. It knows HTTP answers and nothing of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterable, Mapping
from typing import Any

import h11

from tests.event_client import Answer


def request_bytes(method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """Return a request with Host, and with Content-Length if there is a body; nothing is checked."""
    fields = {"Host": "127.0.0.1"} | ({"Content-Length": str(len(body))} if body else {}) | dict(headers or {})
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    """Return pieces as a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class RawConnection:
    """One connection on which anything can be said; use with `async with RawConnection(port)`."""

    def __init__(self, port: int, *, seconds: float = 10) -> None:
        self._port, self._seconds = port, seconds
        self._h11 = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> RawConnection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, data: bytes | AsyncIterable[bytes]) -> None:
        """Write bytes; a connection that the other side closed meanwhile is no error."""
        with contextlib.suppress(ConnectionError):
            if isinstance(data, bytes):
                self.writer.write(data)
                await self.writer.drain()
            else:
                async for piece in data:
                    self.writer.write(piece)
                    await self.writer.drain()

    async def answer(self, method: str = "POST") -> Answer:
        """Read the next answer; JSON bodies are parsed, others are text.

        Raises: AssertionError when none comes in time or the connection ends before.
        """
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        self._h11.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        self._h11.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    event = self._h11.next_event()
                    if isinstance(event, h11.Response):
                        head = event
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    elif event is h11.NEED_DATA:
                        self._h11.receive_data(await self.reader.read(65536))
                    assert not isinstance(event, h11.ConnectionClosed), "the connection ended without an answer"
        except TimeoutError:
            raise AssertionError(f"no answer within {self._seconds} s") from None
        except (h11.RemoteProtocolError, ConnectionError) as error:
            raise AssertionError(f"no whole answer: {error}") from error
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, _parsed(headers, bytes(body)))

    async def ended(self) -> bool:
        """Wait for the end of the connection; False when it stays open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                try:
                    while await self.reader.read(65536):
                        pass
                except ConnectionError:
                    pass
                return True
        return False

    async def close(self, *, abrupt: bool = False) -> None:
        """Close it: with a FIN, or with a reset if `abrupt`."""
        sock = self.writer.get_extra_info("socket")
        if abrupt and not self.writer.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def exchange(port: int, data: bytes, *, seconds: float = 10) -> Answer:
    """Send bytes on a new connection and return the answer."""
    async with RawConnection(port, seconds=seconds) as connection:
        await connection.send(data)
        return await connection.answer(data.partition(b" ")[0].decode("latin-1") or "GET")


def _parsed(headers: Mapping[str, str], body: bytes) -> Any:
    if headers.get("content-type", "").startswith("application/json"):
        return json.loads(body) if body else None
    return body.decode("utf-8", "replace")
