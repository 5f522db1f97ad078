"""The HTTP API without the HTTP library: from a request's head and body to an answer. It owns who may call, what each
endpoint takes, and how an answer or an error reads. `web` (through aiohttp's handlers) and `web_door` (the short way) carry
both, so that there is one set of rules.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from sse_broker import answers
from sse_broker.api_keys import ANYONE, Caller
from sse_broker.bounds import MAX_NAME_CHARS
from sse_broker.broker import Broker
from sse_broker.client_address import Headers, client_address, client_host
from sse_broker.config import Config
from sse_broker.errors import BadRequest, BrokerError, MethodNotAllowed, TooManyRequests, Unauthorized, Unavailable
from sse_broker.gate import Gate
from sse_broker.presence import device_id_of
from sse_broker.web_batch import message_of, send_list, target_of
from sse_broker.web_credentials import bearer
from sse_broker.web_jwks import JwkSet
from sse_broker.web_params import Params, query_values

log = logging.getLogger(__name__)


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
    gate: Gate
    config: Config
    jwks: JwkSet | None = None


Endpoint = Callable[[Api, Head, Body, Caller], Awaitable[object]]


# --- the endpoints ---


async def token(api: Api, head: Head, body: Body, caller: Caller) -> object:
    """Mint a token for a user, bound to a device if one is named."""
    params = await _params(head, body)
    uid = params.required_text("uid", max_chars=MAX_NAME_CHARS)
    device = params.text("device", max_chars=MAX_NAME_CHARS)
    ttl = params.number("ttl")
    access = api.gate.access
    return access.tokens.mint(uid, device, access.expire_seconds if ttl is None else ttl)


async def send(api: Api, head: Head, body: Body, caller: Caller) -> object:
    """Send a frame to users, devices or everyone, or many at once."""
    params = await _params(head, body)
    if "messages" in params:
        return await send_list(api.broker, api.gate, caller, params.value("messages"))
    message = message_of(params)
    api.gate.check_reach(caller, message.target)
    api.gate.admit_messages(caller, 1)
    return (await api.broker.send([message]))[0].count


async def kick(api: Api, head: Head, body: Body, caller: Caller) -> object:
    """End the streams of users and devices and revoke their tokens."""
    params = await _params(head, body)
    target = target_of(params)
    if target.everyone:
        raise BadRequest("'uid' or 'device' is missing: say whom to kick")
    count = await api.broker.kick(target, params.payload("data") or "")
    log.info("%s kicked %d devices", caller.name, count)
    return count


async def info(api: Api, head: Head, body: Body, caller: Caller) -> object:
    """Tell who is online: a user, a device, an instance or the cluster."""
    params = await _params(head, body)
    asked = {name: params.text(name, max_chars=MAX_NAME_CHARS) for name in ("device", "uid", "ip", "address")}
    address = asked.pop("address")
    asked["ip"] = asked["ip"] or address
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
    headers = cors(api, head)
    try:
        if head.method == "OPTIONS":
            return preflight(api, head, "GET, POST")
        if head.method not in ("GET", "POST"):
            raise MethodNotAllowed(f"{head.path} takes GET and POST")
        result = await endpoint(api, head, body, check_key(api, head, head.path[1:]))
    except BrokerError as error:
        return failure(error, started, headers, "GET, POST, OPTIONS")
    except Exception:
        log.exception("%s failed", head.path)
        return failure(BrokerError("something went wrong here; the log says what"), started, headers, "")
    micro = (time.perf_counter_ns() - started) // 1000
    return Answer(
        200, answers.HEADERS | headers if headers else answers.HEADERS, answers.body(1, "success", micro, result)
    )


def failure(error: BrokerError, started_ns: int, headers: dict[str, str], allow: str) -> Answer:
    """Return the answer for an error; `allow` are the methods that the endpoint takes."""
    headers = answers.HEADERS | headers
    if isinstance(error, Unavailable | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = allow
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    micro = (time.perf_counter_ns() - started_ns) // 1000
    return Answer(error.status, headers, answers.body(error.status, error.message, micro, ""))


def cors(api: Api, head: Head) -> dict[str, str]:
    """Return the headers that let pages of the configured origins read the answer."""
    return api.gate.access.origins.headers(head.headers.get("Origin", ""))


def preflight(api: Api, head: Head, methods: str) -> Answer:
    """Return the answer to a browser that asks before it calls."""
    return Answer(204, api.gate.access.origins.preflight(head.headers.get("Origin", ""), methods), b"")


def host_of(api: Api, head: Head) -> str:
    """Return the client's address without a port, by which it is limited."""
    return client_host(head.peer, head.headers, api.config.server.trusted_networks)


def client_of(head: Head, config: Config) -> str:
    """Return the client's address."""
    return client_address(head.peer, head.headers, config.server.trusted_networks)


def check_key(api: Api, head: Head, scope: str) -> Caller:
    """Return who calls, by the API key of the request. Raises: what `Gate.caller` does."""
    if not api.gate.access.keys:
        return ANYONE
    credential = head.headers.get("X-SSE-API-Key") or bearer(head.headers) or ""
    return api.gate.caller(scope, credential, host_of(api, head))
