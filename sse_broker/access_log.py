"""The access log's line: one per request, with what must stay secret masked.

Knows aiohttp's requests; must not know where the lines go.
"""

import logging
from collections.abc import Sequence
from urllib.parse import unquote_plus

from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import HttpProcessingError
from aiohttp.web import BaseRequest, RequestPayloadError, StreamResponse

from sse_broker.client_address import Headers, Network, client_address, join_host_port
from sse_broker.log_lines import HotLog, one_line

# A token opens a stream; data is what users tell each other. Neither belongs into a log.
_MASKED = frozenset({"token", "data"})


class AccessLogger(AbstractAccessLogger):
    """Write `address "method path protocol" status bytes seconds`; for `web.AppRunner(access_log_class=...)`.

    Bytes are those sent, with the headers. An event stream has its line as soon as it is live, since then its connection is
    the stream's alone: bytes and seconds are those of its opening. When it ends and why is in the broker's own log.
    """

    __slots__ = ()
    trusted: Sequence[Network] = ()

    @classmethod
    def trusting(cls, networks: Sequence[Network]) -> "type[AccessLogger]":
        """Return the class for a server behind proxies in `networks`, which are believed when they name the client."""
        return type("AccessLogger", (cls,), {"__slots__": (), "trusted": tuple(networks)})

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        """Log one request that took `time` seconds."""
        self.line(
            request.remote,
            request.headers,
            f"{request.method} {masked(request.raw_path)} HTTP/{request.version.major}.{request.version.minor}",
            response.status,
            response.body_length,
            time,
        )

    def line(
        self, remote: str | None, headers: Headers, request_line: str, status: int, sent_bytes: int, seconds: float
    ) -> None:
        """Log one request; `remote` is the peer's address, the path in the request line is masked."""
        HotLog(self.logger).info(
            '%s "%s" %d %d %.6f', self._client(remote, headers), request_line, status, sent_bytes, seconds
        )

    @property
    def enabled(self) -> bool:
        """Whether anybody listens; aiohttp asks once per connection."""
        return self.logger.isEnabledFor(logging.INFO) and self.logger.hasHandlers()

    def _client(self, remote: str | None, headers: Headers) -> str:
        # The peer's address alone: where the stream has ended, aiohttp has forgotten the port.
        remote = (remote or "-").removeprefix("::ffff:")
        if not self.trusted:
            return remote
        address = client_address((remote, 0), headers, self.trusted)
        return remote if address == join_host_port(remote, 0) else address


def server_logger() -> logging.Logger:
    """Return the logger of aiohttp's server. What is no HTTP, or a broken body, has its line in the access log and no other:
    aiohttp would write a traceback for each, with what the client said in it.
    """
    logger = logging.getLogger("sse_broker.http")
    logger.addFilter(_is_no_client_error)  # the same once more changes nothing
    return logger


def _is_no_client_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | RequestPayloadError))


def masked(path: str) -> str:
    """Return path and query with `***` for the values of `token` and `data`, under whatever spelling (%74oken)."""
    path = one_line(path)
    start, mark, query = path.partition("?")
    if not mark:
        return path
    return f"{start}?{'&'.join(map(_masked_field, query.split('&')))}"


def _masked_field(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}=***" if equals and unquote_plus(name) in _MASKED else text
