"""The access log's line: one per request, with what must stay secret masked.

Knows aiohttp's requests; must not know where the lines go, nor work out who a client behind a proxy is.
"""

import logging
from urllib.parse import unquote_plus

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web import BaseRequest, StreamResponse

from sse_broker.logs import one_line

CLIENT_ADDRESS = "client_address"
"""The key under which a request carries its client's address, where that is not the peer's (a trusted proxy's)."""

# A token opens a stream; data is what users tell each other. Neither belongs into a log.
_MASKED = frozenset({"token", "data"})


class AccessLogger(AbstractAccessLogger):
    """Write `address "method path protocol" status bytes seconds`; for `web.AppRunner(access_log_class=...)`.

    An event stream has its line when it ends. Its bytes are not counted: they do not pass through aiohttp.
    """

    __slots__ = ()

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        """Log one request that took `time` seconds."""
        self.logger.info(
            '%s "%s %s HTTP/%d.%d" %d %d %.6f',
            request.get(CLIENT_ADDRESS) or request.remote or "-",
            request.method,
            masked(request.raw_path),
            request.version.major,
            request.version.minor,
            response.status,
            response.body_length,
            time,
        )

    @property
    def enabled(self) -> bool:
        """Whether anybody listens; aiohttp asks once per connection."""
        return self.logger.isEnabledFor(logging.INFO) and self.logger.hasHandlers()


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
