"""The HTTP API through aiohttp's handlers: routes, the way from its requests to those of `web_api` and back, and the answers to
what comes to no handler. It knows no rule of the API.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError, HttpVersion11
from aiohttp.http_exceptions import LineTooLong

from sse_broker import answers, openapi, pages, web_ops
from sse_broker.access_log import AccessLogger, server_logger
from sse_broker.api_keys import Caller
from sse_broker.config import Config
from sse_broker.errors import BrokerError
from sse_broker.metrics import Metrics
from sse_broker.web_api import (
    ENDPOINTS,
    Answer,
    Api,
    Body,
    Endpoint,
    Head,
    answer,
    check_key,
    cors,
    failure,
    preflight,
    send,
)
from sse_broker.web_batch import NDJSON, send_lines
from sse_broker.web_events import ALLOW, open_stream
from sse_broker.web_params import request_values

# Request heads: a token of 8 KiB may stand in the query.
MAX_LINE_BYTES = 16 * 1024
# A refused body is read on for so long, that its sender may hear why.
LINGERING_SECONDS = 2.0

API_KEY = web.AppKey("api", Api)


def application(api: Api) -> web.Application:
    """Return the application that serves a started broker."""
    app = web.Application(client_max_size=api.config.server.max_body_bytes)
    app[API_KEY] = api
    for path, endpoint in (ENDPOINTS | {"/send": send_or_lines}).items():
        app.router.add_route("*", path, _handler(endpoint))
    app.router.add_route("*", "/events", events)
    app.router.add_get("/openapi.json", description)
    pages.setup(app)
    web_ops.setup(app, api.broker, Metrics(api.broker, api.gate.counters), _admit_to_metrics)
    return app


def _admit_to_metrics(request: web.Request) -> None:
    check_key(request.app[API_KEY], _head(request), "info")


def runner(app: web.Application) -> web.AppRunner:
    """Return what runs the application, as it needs to be run; its connections have the protocols of `protocols`."""
    return web.AppRunner(
        app,
        handle_signals=False,
        handler_cancellation=False,  # see web_events.take_over
        shutdown_timeout=1,
    )


def protocols(config: Config) -> "Callable[..., Protocol]":
    """Return what makes the protocol of a connection for `runner`'s server and its loop, as it needs to be made."""
    return partial(
        Protocol,
        access_log_class=AccessLogger.trusting(config.server.trusted_networks),
        access_log=logging.getLogger("aiohttp.access"),
        logger=server_logger(),
        # Else 600 KB that become 600 MB are inflated to their end, refused or not, and the loop stands still for 8 s.
        auto_decompress=False,
        lingering_time=LINGERING_SECONDS,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
    )


async def send_or_lines(api: Api, head: Head, body: Body, caller: Caller) -> object:
    """Send what the parameters say, or each line of a body that is read piece by piece."""
    if isinstance(body, AiohttpBody) and body.request.content_type == NDJSON and head.method == hdrs.METH_POST:
        return await send_lines(api.broker, api.gate, caller, body.request, api.config.server.max_body_bytes)
    return await send(api, head, body, caller)


async def events(request: web.Request) -> web.StreamResponse:
    """Open an event stream."""
    api = request.app[API_KEY]
    head = _head(request)
    started = time.perf_counter_ns()
    headers = cors(api, head)
    if head.method == hdrs.METH_OPTIONS:
        return _response(preflight(api, head, "GET"))
    try:
        return await open_stream(api, head, request, headers)
    except BrokerError as error:
        return _response(failure(error, started, headers, ALLOW))


async def description(request: web.Request) -> web.Response:
    """Answer what the API is, for machines; anybody may read it from any page."""
    headers = answers.HEADERS | {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}
    return web.Response(body=json.dumps(openapi.description()).encode(), headers=headers)


class Protocol(web.RequestHandler):
    """aiohttp's protocol of a connection. What aiohttp would refuse with a text of its own, in which the request stands with its
    tokens, is refused as the API does it.
    """

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and a handler that failed; the connection ends with it."""
        super().handle_error(request, status, exc, message)  # it logs, and raises where an answer has begun
        if isinstance(exc, HttpProcessingError):
            sentence = _why_no_http(exc)
            # No request could be read, so aiohttp has put one of HTTP/1.0 in its place.
            request._version = HttpVersion11
        else:
            sentence = "something went wrong here; the log says what"
        response = _refusal(status, sentence)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer as the handler says, or why there is none: no such path, another method, an unknown `Expect`."""
        if isinstance(resp, web.HTTPException):
            resp = _no_handler(request, resp)
        return await super().finish_response(request, resp, start_time)


# What aiohttp's parser finds, by the beginning of its message, and how it is said here; the rest of a message is the client's.
_NO_HTTP = {
    "Invalid char in url": "path and query must be percent-encoded: é is written %C3%A9",
    "Missing 'Host'": "the header Host is missing",
    "Too many headers": "there are too many headers",
    "Content-Length can't be": "Content-Length and Transfer-Encoding can not be given together",
    "Transfer-Encoding can't be": "Content-Length and Transfer-Encoding can not be given together",
    "Invalid method": "the request does not begin with a method that is known here",
}


def _why_no_http(error: HttpProcessingError) -> str:
    """Return what is wrong with a request, in words of which none is the client's."""
    if isinstance(error, LineTooLong):
        return f"the path with its query, or a header, is longer than {MAX_LINE_BYTES} bytes; long data goes into the body of a POST"
    known = [sentence for start, sentence in _NO_HTTP.items() if error.message.startswith(start)]
    return known[0] if known else "the request is not HTTP as it should be"


def _no_handler(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    path = request.path[:200] or "tunnel"  # only a CONNECT comes without a path
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return _refusal(error.status, f"{path} takes {' and '.join(allowed)}", {"Allow": ", ".join(allowed)})
    if isinstance(error, web.HTTPNotFound):
        return _refusal(error.status, f"there is no {path} here; see / for what there is")
    if isinstance(error, web.HTTPExpectationFailed):
        return _refusal(error.status, "'Expect' may be 100-continue and nothing else")
    return _refusal(error.status, error.reason)


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=answers.body(status, message, 0, ""), headers=answers.HEADERS | (headers or {})
    )


class AiohttpBody:
    """The body of one of aiohttp's requests."""

    __slots__ = ("request",)

    def __init__(self, request: web.Request) -> None:
        self.request = request

    async def values(self) -> dict[str, object]:
        """See `Body.values`."""
        return await request_values(self.request)


def _handler(endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return _response(await answer(request.app[API_KEY], endpoint, _head(request), AiohttpBody(request)))

    return handler


def _head(request: web.Request) -> Head:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return Head(request.method, request.raw_path, request.path, request.headers, peer)


def _response(result: Answer) -> web.Response:
    return web.Response(status=result.status, body=result.body or None, headers=result.headers)
