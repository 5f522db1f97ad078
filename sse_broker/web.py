"""The HTTP API: routes, who may call them, and how an answer or an error reads. Each handler parses, makes one call to the
broker and answers. It knows no backend.
"""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import hdrs, web

from sse_broker import answers, pages
from sse_broker.access_log import AccessLogger, server_logger
from sse_broker.broker import Broker
from sse_broker.client_address import client_address
from sse_broker.config import Config
from sse_broker.errors import BadRequest, BrokerError, MethodNotAllowed, TooManyRequests, Unauthorized, Unavailable
from sse_broker.presence import device_id_of
from sse_broker.tokens import Tokens
from sse_broker.web_batch import NDJSON, message_of, send_lines, send_list, target_of
from sse_broker.web_events import bearer, open_stream
from sse_broker.web_params import MAX_NAME_CHARS, request_params

log = logging.getLogger(__name__)

# Request heads: a token of 8 KiB may stand in the query.
MAX_LINE_BYTES = 16 * 1024
# A refused body is read on for so long, that its sender may hear why.
LINGERING_SECONDS = 2.0
CORS_MAX_AGE_SECONDS = 600
CORS_HEADERS = "Authorization, Content-Type, Last-Event-ID, X-SSE-API-Key, X-SSE-DEVICE, X-SSE-ID, X-SSE-TOKEN"

Call = Callable[["Api", web.Request], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Api:
    """What the handlers work with."""

    broker: Broker
    tokens: Tokens
    config: Config


API_KEY = web.AppKey("api", Api)


def application(broker: Broker, tokens: Tokens, config: Config) -> web.Application:
    """Return the application that serves a started broker."""
    app = web.Application(client_max_size=config.server.max_body_bytes)
    app[API_KEY] = Api(broker, tokens, config)
    for path, call in {"/token": token, "/send": send, "/info": info, "/kick": kick}.items():
        app.router.add_route("*", path, _endpoint(call))
    app.router.add_route("*", "/events", events)
    pages.setup(app)
    app.router.add_route("*", "/{path:.*}", not_found)
    return app


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


# --- the endpoints ---


async def token(api: Api, request: web.Request) -> object:
    """Mint a token for a user, bound to a device if one is named."""
    params = await request_params(request)
    uid = params.required_text("uid", max_chars=MAX_NAME_CHARS)
    device = params.text("device", max_chars=MAX_NAME_CHARS)
    ttl = params.number("ttl")
    return api.tokens.mint(uid, device, api.config.jwt.expire if ttl is None else ttl)


async def send(api: Api, request: web.Request) -> object:
    """Send a frame to users, devices or everyone, or many at once."""
    if request.content_type == NDJSON and request.method == hdrs.METH_POST:
        return await send_lines(api.broker, request, api.config.server.max_body_bytes)
    params = await request_params(request)
    if "messages" in params:
        return await send_list(api.broker, params.value("messages"))
    return (await api.broker.send([message_of(params)]))[0].count


async def kick(api: Api, request: web.Request) -> object:
    """End the streams of users and devices and revoke their tokens."""
    params = await request_params(request)
    target = target_of(params)
    if target.everyone:
        raise BadRequest("'uid' or 'device' is missing: say whom to kick")
    return await api.broker.kick(target, params.payload("data") or "")


async def info(api: Api, request: web.Request) -> object:
    """Tell who is online: a user, a device, an instance or the cluster."""
    params = await request_params(request)
    asked = {
        "device": params.text("device", max_chars=MAX_NAME_CHARS),
        "uid": params.text("uid", max_chars=MAX_NAME_CHARS),
        "ip": params.text("ip") or params.text("address"),
    }
    given = [name for name, value in asked.items() if value]
    if len(given) > 1:
        raise BadRequest(f"'{given[0]}' and '{given[1]}' can not be asked for together")
    if asked["device"]:
        name = asked["device"]
        return answers.device(name, await api.broker.device(device_id_of(name)))
    if asked["uid"]:
        return answers.user(asked["uid"], await api.broker.user(asked["uid"]))
    instances = await api.broker.backend.instances()
    if asked["ip"]:
        return answers.instance_at(asked["ip"], instances)
    return answers.cluster(instances, *await api.broker.backend.counts())


async def events(request: web.Request) -> web.StreamResponse:
    """Open an event stream."""
    api = request.app[API_KEY]
    started = time.perf_counter_ns()
    cors = _cors(request, api.config)
    try:
        if request.method == hdrs.METH_OPTIONS:
            return _preflight(request, cors, "GET")
        if request.method != hdrs.METH_GET:
            raise MethodNotAllowed("/events takes GET")
        return await open_stream(request, api.broker, api.tokens, _client(request, api.config), cors)
    except BrokerError as error:
        return _failure(error, started, cors, "GET, OPTIONS")


async def not_found(request: web.Request) -> web.Response:
    """Answer for every other path."""
    body = answers.body(404, f"there is no {request.path[:200]} here; see / for what there is", 0, "")
    return web.Response(status=404, body=body, headers={"Content-Type": answers.CONTENT_TYPE})


# --- what they share ---


def _endpoint(call: Call) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Wrap an endpoint: methods, API key, parameters, JSON answer, errors."""

    async def handler(request: web.Request) -> web.Response:
        api = request.app[API_KEY]
        started = time.perf_counter_ns()
        cors = _cors(request, api.config)
        try:
            if request.method == hdrs.METH_OPTIONS:
                return _preflight(request, cors, "GET, POST")
            if request.method not in ("GET", "POST"):
                raise MethodNotAllowed(f"{request.path} takes GET and POST")
            _check_api_key(request, api.config.api.keys)
            result = await call(api, request)
        except BrokerError as error:
            return _failure(error, started, cors, "GET, POST, OPTIONS")
        except Exception:
            log.exception("%s failed", request.path)
            return _failure(BrokerError("something went wrong here; the log says what"), started, cors, "")
        return _success(result, started, cors)

    return handler


def _check_api_key(request: web.Request, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    given = (request.headers.get("X-SSE-API-Key") or bearer(request) or "").encode(errors="surrogateescape")
    # Every key is compared, so the time does not tell which one was near.
    if not sum(hmac.compare_digest(given, key.encode()) for key in keys):
        raise Unauthorized("the API key is wrong" if given else "an API key is needed, as X-SSE-API-Key or Bearer")


def _client(request: web.Request, config: Config) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return client_address(peer, request.headers, config.server.trusted_networks)


def _success(result: object, started: int, headers: dict[str, str]) -> web.Response:
    micro = (time.perf_counter_ns() - started) // 1000
    return web.Response(
        body=answers.body(1, "success", micro, result), headers={"Content-Type": answers.CONTENT_TYPE} | headers
    )


def _failure(error: BrokerError, started: int, headers: dict[str, str], allow: str) -> web.Response:
    headers = {"Content-Type": answers.CONTENT_TYPE} | headers
    if isinstance(error, Unavailable | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = allow
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    micro = (time.perf_counter_ns() - started) // 1000
    return web.Response(status=error.status, body=answers.body(error.status, error.message, micro, ""), headers=headers)


def _cors(request: web.Request, config: Config) -> dict[str, str]:
    origins = config.server.cors_origins
    if not origins:
        return {}
    origin = request.headers.get("Origin", "")
    if "*" in origins:
        return {"Access-Control-Allow-Origin": "*"}
    return {"Vary": "Origin"} | ({"Access-Control-Allow-Origin": origin} if origin in origins else {})


def _preflight(request: web.Request, cors: dict[str, str], methods: str) -> web.Response:
    headers = cors | {"Allow": f"{methods}, OPTIONS"}
    if "Access-Control-Allow-Origin" in cors:
        headers["Access-Control-Allow-Methods"] = methods
        headers["Access-Control-Allow-Headers"] = CORS_HEADERS
        headers["Access-Control-Max-Age"] = str(CORS_MAX_AGE_SECONDS)
    return web.Response(status=204, headers=headers)
