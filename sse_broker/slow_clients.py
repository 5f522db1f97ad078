"""Connections that only wait: for the head of a first request that does not come, for a body that stands still, or in greater
number than one address may have. They are closed. It looks once a second and costs a request nothing.

Streams are not among them: a stream's connection belongs to the stream (`heartbeats` looks after it).
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sse_broker.client_address import Network, is_trusted, peer_host
from sse_broker.gate import Gate
from sse_broker.http_server import HttpServer

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class _Connection:
    """What a look found: whose it is, and since when it has waited for what (`progress` tells whether it has moved)."""

    __slots__ = ("host", "progress", "since", "transport", "waits_for")

    def __init__(self, transport: asyncio.Transport, waits_for: str, progress: int) -> None:
        self.transport = transport
        self.host = peer_host(transport.get_extra_info("peername"))
        self.waits_for = waits_for
        self.progress = progress
        self.since = 0.0


class SlowClients:
    """Looks at the connections of a server that are no streams. `start` and `close` own its timer."""

    def __init__(self, http: HttpServer, gate: Gate, trusted: Sequence[Network]) -> None:
        self._http = http
        self._gate = gate
        self._trusted = trusted
        self._known: dict[asyncio.Transport, _Connection] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._known.clear()

    def look(self) -> None:
        """Close what has waited for too long."""
        now = asyncio.get_running_loop().time()
        former, self._known = self._known, {}
        by_address: defaultdict[str, list[_Connection]] = defaultdict(list)
        for connection in self._connections():
            known = former.get(connection.transport)
            same = known is not None and (known.waits_for, known.progress) == (
                connection.waits_for,
                connection.progress,
            )
            connection.since = known.since if known is not None and same else now
            if self._too_long(connection, now):
                self._end(connection)
                continue
            self._known[connection.transport] = connection
            if not is_trusted(connection.host, self._trusted) and (key := self._gate.limited_as(connection.host)):
                by_address[key].append(connection)
        most = self._gate.access.limits.connections_per_address
        for address, connections in by_address.items():
            if most and len(connections) > most:
                log.warning("%d connections without a stream from %s: the oldest are closed", len(connections), address)
                waiting = sorted((one for one in connections if one.waits_for != "answer"), key=lambda one: one.since)
                for connection in waiting[: len(connections) - most]:
                    self._end(connection)

    def _look_again(self) -> None:
        try:
            self.look()
        except Exception:
            log.exception("slow clients could not be looked for")
        self.start()

    def _too_long(self, connection: _Connection, now: float) -> bool:
        limits = self._gate.access.limits
        most = {"head": limits.head_seconds, "body": limits.body_seconds}.get(connection.waits_for, 0)
        return most > 0 and now - connection.since >= most

    def _end(self, connection: _Connection) -> None:
        self._gate.counters.slow_clients += 1
        self._known.pop(connection.transport, None)
        connection.transport.abort()

    def _connections(self) -> Iterator[_Connection]:
        """Find what each connection waits for: `head`, `body`, `answer`, or `request` between two requests."""
        for door in self._http.hall.doors:
            if door.transport is not None:
                progress = door.body_progress
                waits_for = "body" if progress is not None else "head" if door.fresh else "request"
                yield _Connection(door.transport, "answer" if door.work is not None else waits_for, progress or 0)
        server = self._http.runner.server
        for handler in server.connections if server is not None else ():
            transport = handler.transport
            if transport is None:
                continue
            request = handler._current_request
            if request is None:
                yield _Connection(transport, "request" if handler._request_count else "head", handler._request_count)
            elif request.content.is_eof():
                yield _Connection(transport, "answer", 0)
            else:
                yield _Connection(transport, "body", request.content.total_bytes)
