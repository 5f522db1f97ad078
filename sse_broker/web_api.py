"""The HTTP API without the HTTP library: from a request's head and body to an answer. It owns who may call, what each
endpoint takes, and how an answer or an error reads. `web` (through aiohttp's handlers) and `web_door` (the short way) carry
both, so that there is one set of rules.
"""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, overload

from sse_broker import answers
from sse_broker.broker import Broker
from sse_broker.client_address import client_address
from sse_broker.config import Config
from sse_broker.errors import BadRequest, BrokerError, MethodNotAllowed, TooManyRequests, Unauthorized, Unavailable
from sse_broker.presence import device_id_of
from sse_broker.tokens import Tokens
from sse_broker.web_batch import message_of, send_list, target_of
from sse_broker.web_params import MAX_NAME_CHARS, Params, query_values

log = logging.getLogger(__name__)

CORS_MAX_AGE_SECONDS = 600
CORS_HEADERS = "Authorization, Content-Type, Last-Event-ID, X-SSE-API-Key, X-SSE-DEVICE, X-SSE-ID, X-SSE-TOKEN"


class Headers(Protocol):
    """What is needed of a request's headers, whatever the case of their names."""

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str) -> str: ...
    def __getitem__(self, name: str, /) -> str: ...
    def getall(self, name: str, default: Any, /) -> Any: ...


class Head:
    """What a request says before its body: method, target (path and query as they came), path, headers, the peer."""

    __slots__ = ("headers", "method", "path", "peer", "target")

    def __init__(self, method: str, target: str, path: str, headers: Headers, peer: object) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.headers = headers
        self.peer = peer


class Body(Protocol):
    """The rest of a request, read when it is wanted."""

    async def values(self) -> dict[str, object]:
        """Return the parameters in the body, none without one. Raises: BadRequest, PayloadTooLarge, UnsupportedMedia."""


class Answer:
    """A status, headers and a body of JSON."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


@dataclass(frozen=True, slots=True)
class Api:
    """What the endpoints work with."""

    broker: Broker
    tokens: Tokens
    config: Config


Endpoint = Callable[[Api, Head, Body], Awaitable[object]]


# --- the endpoints ---


async def token(api: Api, head: Head, body: Body) -> object:
    """Mint a token for a user, bound to a device if one is named."""
    params = await _params(head, body)
    uid = params.required_text("uid", max_chars=MAX_NAME_CHARS)
    device = params.text("device", max_chars=MAX_NAME_CHARS)
    ttl = params.number("ttl")
    return api.tokens.mint(uid, device, api.config.jwt.expire if ttl is None else ttl)


async def send(api: Api, head: Head, body: Body) -> object:
    """Send a frame to users, devices or everyone, or many at once."""
    params = await _params(head, body)
    if "messages" in params:
        return await send_list(api.broker, params.value("messages"))
    return (await api.broker.send([message_of(params)]))[0].count


async def kick(api: Api, head: Head, body: Body) -> object:
    """End the streams of users and devices and revoke their tokens."""
    params = await _params(head, body)
    target = target_of(params)
    if target.everyone:
        raise BadRequest("'uid' or 'device' is missing: say whom to kick")
    return await api.broker.kick(target, params.payload("data") or "")


async def info(api: Api, head: Head, body: Body) -> object:
    """Tell who is online: a user, a device, an instance or the cluster."""
    params = await _params(head, body)
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


ENDPOINTS: dict[str, Endpoint] = {"/token": token, "/send": send, "/info": info, "/kick": kick}


async def _params(head: Head, body: Body) -> Params:
    """Return the query's parameters, and for a POST those of the body, which win."""
    values = query_values(head.target)
    if head.method == "POST":
        values.update(await body.values())
    return Params(values)


# --- what they share ---


async def answer(api: Api, endpoint: Endpoint, head: Head, body: Body) -> Answer:
    """Carry out a call of an endpoint: method, API key, parameters, JSON answer, errors."""
    started = time.perf_counter_ns()
    headers = cors(head, api.config)
    try:
        if head.method == "OPTIONS":
            return preflight(headers, "GET, POST")
        if head.method not in ("GET", "POST"):
            raise MethodNotAllowed(f"{head.path} takes GET and POST")
        _check_api_key(head, api.config.api.keys)
        result = await endpoint(api, head, body)
    except BrokerError as error:
        return failure(error, started, headers, "GET, POST, OPTIONS")
    except Exception:
        log.exception("%s failed", head.path)
        return failure(BrokerError("something went wrong here; the log says what"), started, headers, "")
    micro = (time.perf_counter_ns() - started) // 1000
    headers["Content-Type"] = answers.CONTENT_TYPE
    return Answer(200, headers, answers.body(1, "success", micro, result))


def failure(error: BrokerError, started_ns: int, headers: dict[str, str], allow: str) -> Answer:
    """Return the answer for an error; `allow` are the methods that the endpoint takes."""
    headers = {"Content-Type": answers.CONTENT_TYPE} | headers
    if isinstance(error, Unavailable | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = allow
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    micro = (time.perf_counter_ns() - started_ns) // 1000
    return Answer(error.status, headers, answers.body(error.status, error.message, micro, ""))


def cors(head: Head, config: Config) -> dict[str, str]:
    """Return the headers that let pages of the configured origins read the answer."""
    origins = config.server.cors_origins
    if not origins:
        return {}
    origin = head.headers.get("Origin", default="")
    if "*" in origins:
        return {"Access-Control-Allow-Origin": "*"}
    return {"Vary": "Origin"} | ({"Access-Control-Allow-Origin": origin} if origin in origins else {})


def preflight(headers: dict[str, str], methods: str) -> Answer:
    """Return the answer to a browser that asks before it calls."""
    headers = headers | {"Allow": f"{methods}, OPTIONS"}
    if "Access-Control-Allow-Origin" in headers:
        headers["Access-Control-Allow-Methods"] = methods
        headers["Access-Control-Allow-Headers"] = CORS_HEADERS
        headers["Access-Control-Max-Age"] = str(CORS_MAX_AGE_SECONDS)
    return Answer(204, headers, b"")


def client_of(head: Head, config: Config) -> str:
    """Return the client's address."""
    return client_address(head.peer, head.headers, config.server.trusted_networks)


def bearer(head: Head) -> str | None:
    """Return what stands behind `Authorization: Bearer`, if anything does (RFC 6750, section 2.1)."""
    scheme, _, credentials = head.headers.get("Authorization", default="").partition(" ")
    return credentials.strip() or None if scheme.lower() == "bearer" else None


def _check_api_key(head: Head, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    given = (head.headers.get("X-SSE-API-Key") or bearer(head) or "").encode(errors="surrogateescape")
    # Every key is compared, so the time does not tell which one was near.
    if not sum(hmac.compare_digest(given, key.encode()) for key in keys):
        raise Unauthorized("the API key is wrong" if given else "an API key is needed, as X-SSE-API-Key or Bearer")
