"""The HTTP server: listening sockets, and the connections that come by them, from the first to the end of the last. It knows
which protocol a connection begins with (`web_door`), and nothing of what is asked.
"""

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from sse_broker.listener import BACKLOG
from sse_broker.web import application, protocols, runner
from sse_broker.web_api import Api
from sse_broker.web_door import Door, Hall

# A connection without a request for this long is closed: as long as aiohttp's.
KEEPALIVE_SECONDS = 3630.0
SWEEP_SECONDS = 60.0
CLOSE_SECONDS = 1.0


class HttpServer:
    """Serves the API on some sockets. With `short_way` off, every request goes through aiohttp's handlers."""

    def __init__(self, api: Api, *, short_way: bool = True) -> None:
        self.runner = runner(application(api))
        self._make_protocol = protocols(api.config)
        self.hall = Hall(api, self._aiohttp_protocol)
        self._short_way = short_way
        self._listeners: list[asyncio.Server] = []
        self._ssl_context: ssl.SSLContext | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, sockets: list[socket.socket], ssl_context: ssl.SSLContext | None = None) -> None:
        """Accept connections on sockets that listen."""
        loop = asyncio.get_running_loop()
        await self.runner.setup()
        self._ssl_context = ssl_context
        for sock in sockets:
            listener = await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG, ssl=ssl_context)
            self._listeners.append(listener)
        self._sweep()

    def leave_port(self, sockets: list[socket.socket]) -> None:
        """Stop listening on a port on which other processes listen too, without a connection being lost.

        A listening socket that closes resets what waits in its backlog. So that is accepted first, and nothing can come in
        between: a loop closes sockets at the end of a turn, but one that is shut down is out of the port's group at once.
        """
        loop = asyncio.get_running_loop()
        for sock in sockets:
            with suppress(OSError):  # none waits any more, or too many files are open
                while True:
                    connection, _ = sock.accept()
                    connection.setblocking(False)
                    adopt = loop.connect_accepted_socket(self._protocol, connection, ssl=self._ssl_context)
                    self.hall.own(loop.create_task(_adopted(adopt)))
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
        self.stop_listening()

    def stop_listening(self) -> None:
        """Accept no more connections; those that are open are served."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """End every connection, those with a request in work after its answer, or a second."""
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_SECONDS
        for door in list(self.hall.doors):
            door.close()
        if self.hall.works:
            _, late = await asyncio.wait(self.hall.works, timeout=CLOSE_SECONDS)
            for work in late:
                work.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        # A close waits for a client that does not read, and with TLS for its word that it has heard.
        while self.hall.doors and loop.time() < deadline:
            await asyncio.sleep(0.01)
        for door in list(self.hall.doors):
            door.abort()
        await self.runner.cleanup()

    def _protocol(self) -> asyncio.Protocol:
        return Door(self.hall, asyncio.get_running_loop()) if self._short_way else self._aiohttp_protocol()

    def _aiohttp_protocol(self) -> asyncio.Protocol:
        server = self.runner.server
        assert server is not None
        return self._make_protocol(server, loop=asyncio.get_running_loop())

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for door in [
            door for door in self.hall.doors if door.since < loop.time() - KEEPALIVE_SECONDS and door.work is None
        ]:
            door.close()
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)


async def _adopted(connection: Coroutine[Any, Any, object]) -> None:
    with suppress(OSError):  # the client has left, or speaks no TLS
        await connection
