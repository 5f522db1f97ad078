"""The HTTP API through aiohttp's handlers: routes, and the way from its requests to those of `web_api` and back. It knows no
rule of the API.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

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
    app.router.add_route("*", "/{path:.*}", not_found)
    return app


def _admit_to_metrics(request: web.Request) -> None:
    check_key(request.app[API_KEY], _head(request), "info")


def runner(app: web.Application, config: Config) -> web.AppRunner:
    """Return what runs the application, as it needs to be run."""
    return web.AppRunner(
        app,
        access_log_class=AccessLogger.trusting(config.server.trusted_networks),
        access_log=logging.getLogger("aiohttp.access"),
        logger=server_logger(),
        handle_signals=False,
        handler_cancellation=False,  # see web_events.take_over
        # Else 600 KB that become 600 MB are inflated to their end, refused or not, and the loop stands still for 8 s.
        auto_decompress=False,
        lingering_time=LINGERING_SECONDS,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        shutdown_timeout=1,
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


async def not_found(request: web.Request) -> web.Response:
    """Answer for every other path."""
    body = answers.body(404, f"there is no {request.path[:200]} here; see / for what there is", 0, "")
    return web.Response(status=404, body=body, headers=answers.HEADERS)


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
