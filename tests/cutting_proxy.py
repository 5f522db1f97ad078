"""A TCP proxy between a program and its server, which a test can cut at the worst moment. It knows bytes, nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.waiting import free_port


class CuttingProxy:
    """Forwards connections of a free port to another port of 127.0.0.1.

    `deaf` swallows what the server answers: requests are carried out and nobody learns of it. `watch` is called with
    each piece that clients send, before it is forwarded.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.deaf = False
        self.connections = 0
        self.watch: Callable[[bytes], None] = lambda data: None
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def addr(self) -> str:
        """The address as `127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Take connections (again)."""
        self.deaf = False
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut_connections()

    async def cut_connections(self) -> None:
        """Drop the connections that are there; new ones may come."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream, self._seen))
                group.create_task(self._pump(answers, writer, self._heard))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # the test cut it, or an end has left
        finally:
            self._tasks.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, look: Callable[[bytes], bytes]
    ) -> None:
        while data := await source.read(65536):
            if data := look(data):
                sink.write(data)
                with suppress(ConnectionError):
                    await sink.drain()
        raise ConnectionResetError

    def _seen(self, data: bytes) -> bytes:
        self.watch(data)
        return data

    def _heard(self, data: bytes) -> bytes:
        return b"" if self.deaf else data
