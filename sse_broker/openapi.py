"""The description of the HTTP API for machines (OpenAPI 3.1), served at `/openapi.json`. Pure: docs/contract.md, sections 2 and 3 as data;
what an endpoint does is said where it is done (`web_api`, `web_events`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sse_broker.bounds import MAX_EVENT_CHARS, MAX_NAME_CHARS, MAX_TTL_SECONDS
from sse_broker.version import VERSION

Json = dict[str, Any]

_JSON = "application/json"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_COUNT: Json = {"type": "integer", "minimum": 0}
_WORD: Json = {"type": "string", "maxLength": MAX_NAME_CHARS}
_GIVEN: Json = {"minLength": 1}
_LAST_ID: Json = {"type": "string", "pattern": "^[0-9]{1,16}$"}
_SECONDS: Json = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TTL_SECONDS}
_EVENT: Json = {
    "allOf": [
        {"type": "string", "maxLength": MAX_EVENT_CHARS, "pattern": "^[^\\r\\n\\u0000]*$"},
        {"not": {"pattern": "^sys_"}},
    ]
}
# Text with commas between names, at least one of which is not empty; no text at all is no list.
_LIST = f"^[^,]{{0,{MAX_NAME_CHARS}}}(,[^,]{{0,{MAX_NAME_CHARS}}})*$"
_SOME_NAMES: Json = {"allOf": [{"type": "string", "pattern": _LIST}, {"pattern": "[^ ,]"}]}
_NAMES: Json = {"anyOf": [{"type": "string", "maxLength": 0}, _SOME_NAMES]}
# In JSON numbers are taken for text, and a list may be an array, whose empty items are dropped.
_JSON_WORD: Json = {"type": ["string", "number"], "maxLength": MAX_NAME_CHARS}
_JSON_WORD_OR_NONE: Json = {"type": ["string", "number", "null"], "maxLength": MAX_NAME_CHARS}
_JSON_LISTS: tuple[Json, ...] = (
    {"type": "number"},
    {"type": "array", "items": _JSON_WORD, "contains": _JSON_WORD | _GIVEN},
)
_JSON_NAMES: Json = {"anyOf": [{"type": "null"}, *_NAMES["anyOf"], *_JSON_LISTS]}


@dataclass(frozen=True, slots=True)
class _Field:
    """A parameter: as text, as in a query or a form, and as JSON."""

    name: str
    text: Json
    json: Json
    description: str
    example: object = None

    def schema(self, json: bool) -> Json:
        """Return its schema in a body."""
        shown = {"examples": [self.example]} if self.example is not None else {}
        return (self.json if json else self.text) | {"description": self.description} | shown

    def parameter(self, required: bool) -> Json:
        """Return it as a parameter of the query."""
        where = {"name": self.name, "in": "query", "required": required, "description": self.description}
        return where | {"schema": self.text} | ({"example": self.example} if self.example is not None else {})


_TOKEN_FIELDS = (
    _Field("uid", _WORD | _GIVEN, _JSON_WORD | _GIVEN, "The user.", "alice"),
    _Field("device", _WORD, _JSON_WORD_OR_NONE, "The one device that the token is for.", "phone"),
    _Field(
        "ttl",
        {"anyOf": [_SECONDS, {"type": "string", "maxLength": 0}]},
        _SECONDS | {"type": ["number", "null"]},
        "How many seconds it lives.",
        60,
    ),
)
_TARGET_FIELDS = (
    _Field("uid", _NAMES, _JSON_NAMES, "Users.", "alice,bob"),
    _Field("device", _NAMES, _JSON_NAMES, "Devices by name."),
)
_MESSAGE_FIELDS = (
    _Field(
        "data",
        {"type": "string"},
        {},
        "What is delivered; what is not text is sent as its compact JSON.",
        "Your parcel is here",
    ),
    _Field("event", _EVENT, {"anyOf": [_EVENT, {"type": ["number", "null"]}]}, "The event's name.", "order_shipped"),
    *_TARGET_FIELDS,
)
_KICK_FIELDS = (*_TARGET_FIELDS, _Field("data", {"type": "string"}, {}, "Told to the devices.", "logged out"))
_SOMEBODY: Json = {"anyOf": [_SOME_NAMES, *_JSON_LISTS]}
_KICK_RULE: Json = {
    "anyOf": [{"required": [name], "properties": {name: _SOMEBODY}} for name in ("uid", "device")],
}
_INFO_FIELDS = (
    _Field("device", _WORD, _JSON_WORD_OR_NONE, "A device by name."),
    _Field("uid", _WORD, _JSON_WORD_OR_NONE, "A user.", "alice"),
    _Field("ip", _WORD, _JSON_WORD_OR_NONE, "An instance by its address, with or without port."),
    _Field("address", _WORD, _JSON_WORD_OR_NONE, "The same."),
)
_TOGETHER = (("device", "uid"), ("device", "ip"), ("device", "address"), ("uid", "ip"), ("uid", "address"))
_NOT_EMPTY: Json = {"type": ["string", "number"], "minLength": 1}
_INFO_RULE: Json = {
    "not": {
        "anyOf": [{"required": list(pair), "properties": dict.fromkeys(pair, _NOT_EMPTY)} for pair in _TOGETHER],
    }
}
_REFUSALS = {
    "400": "A parameter is missing or wrong.",
    "401": "The API key is missing or wrong.",
    "403": "The key or the token is not for this.",
    "413": "The body is too long.",
    "415": "The body is of a type that is not taken.",
    "429": "Too much in a short time: see Retry-After.",
    "503": "Not now: see Retry-After. A send or a kick may have been carried out or not.",
}


def description() -> Json:
    """Return the description as JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sse-broker",
            "version": VERSION,
            "description": "Push events to browsers and apps over Server-Sent Events. Every endpoint of a back end takes "
            "GET with a query and POST with JSON, a form or a multipart form.",
        },
        "paths": {
            "/token": _token(),
            "/send": _send(),
            "/info": _both(
                "info",
                "Tell who is online: a user, a device, an instance, or the cluster when none is named.",
                _INFO_FIELDS,
                {"type": "object"},
                rule=_INFO_RULE,
            ),
            "/kick": _both(
                "kick",
                "End the streams of users and devices and revoke their tokens; at least one must be named.",
                _KICK_FIELDS,
                _COUNT,
                rule=_KICK_RULE,
            ),
            "/events": {"get": _events()},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a token with `publish`."},
                "key": {"type": "apiKey", "in": "header", "name": "X-SSE-API-Key"},
                "tokenBearer": {"type": "http", "scheme": "bearer", "description": "A listener's token."},
                "tokenHeader": {"type": "apiKey", "in": "header", "name": "X-SSE-TOKEN"},
            },
            "schemas": {"Message": _message(), "Failure": _answer({"const": ""}, {"type": "integer", "minimum": 400})},
        },
    }


def _both(
    name: str,
    summary: str,
    fields: Sequence[_Field],
    result: Json,
    *,
    required: Sequence[str] = (),
    rule: Json | None = None,
) -> Json:
    """Return an endpoint that takes the same fields as a query and as a body; `rule` says which of them go together."""
    query = [field.parameter(field.name in required) for field in fields]
    content = {kind: {"schema": _object(fields, required, rule, json=kind == _JSON)} for kind in (_JSON, *_FORMS)}
    body = {"content": content, "required": bool(required or rule is _KICK_RULE)}
    shared: Json = {"summary": summary, "responses": _responses(result), "security": [{"bearer": []}, {"key": []}]}
    return {
        "get": shared | {"operationId": f"{name}ByQuery", "parameters": query},
        "post": shared | {"operationId": name, "requestBody": body},
    }


def _object(fields: Iterable[_Field], required: Sequence[str], rule: Json | None, *, json: bool) -> Json:
    properties = {field.name: field.schema(json) for field in fields}
    return {"type": "object", "properties": properties, "required": list(required)} | (rule or {})


def _token() -> Json:
    """Return the endpoint, and where its result goes."""
    summary = "Make a token with which a user may listen."
    endpoint = _both("token", summary, _TOKEN_FIELDS, {"type": "string"}, required=["uid"])
    link = {
        "operationId": "events",
        "parameters": {"token": "$response.body#/result"},
        "description": "Opens a stream, of the token's device if it names one.",
    }
    for method in endpoint.values():
        responses = method["responses"]
        method["responses"] = responses | {"200": responses["200"] | {"links": {"listen": link}}}
    return endpoint


def _message() -> Json:
    return _object(_MESSAGE_FIELDS, ["data"], None, json=True)


def _send() -> Json:
    failed = {"type": "object", "properties": {"code": {"type": "integer"}, "msg": {"type": "string"}}}
    result = {"oneOf": [_COUNT, {"type": "array", "items": {"oneOf": [_COUNT, failed]}}]}
    summary = "Send an event to users, devices or everyone; with neither users nor devices everyone is meant."
    endpoint = _both("send", summary, _MESSAGE_FIELDS, result, required=["data"])
    content = endpoint["post"]["requestBody"]["content"]
    one = {"$ref": "#/components/schemas/Message"}
    each = {"description": "Each a Message; one that is none has its code and what is wrong in the result."}
    list_of = {
        "type": "array",
        "items": each,
        "description": "One that is too long is refused with 413, and nothing sent.",
    }
    many = {"type": "object", "required": ["messages"], "properties": {"messages": list_of}}
    lines = "One message in JSON on each line. Lines beyond a limit have its code in the result; what has no result was not sent."
    content[_JSON] = {"schema": {"anyOf": [one, many]}}
    content["application/x-ndjson"] = {"schema": {"type": "string", "description": lines}}
    return endpoint


def _events() -> Json:
    token = "The token: required here, as X-SSE-TOKEN, as Authorization: Bearer or in a cookie; a header wins."
    parameters = [
        {"name": "token", "in": "query", "description": token, "schema": {"type": "string"}},
        _Field("device", _WORD | _GIVEN, {}, "This client's own name; X-SSE-DEVICE wins.", "phone").parameter(True),
        _Field("id", _LAST_ID, {}, "The last id that the client has; Last-Event-ID wins.").parameter(False),
    ]
    responses = _responses({})
    event = {"type": "object", "properties": {name: {"type": "string"} for name in ("id", "event", "data")}}
    responses["200"] = {"description": "The stream.", "content": {"text/event-stream": {"schema": event}}}
    for status in ("413", "415"):
        del responses[status]
    return {
        "operationId": "events",
        "summary": "Open an event stream.",
        "parameters": parameters,
        "responses": responses,
        # The empty one is for the query and the cookie.
        "security": [{"tokenHeader": []}, {"tokenBearer": []}, {}],
    }


def _responses(result: Json) -> Json:
    good = {"description": "Done.", "content": {"application/json": {"schema": _answer(result, {"const": 1})}}}
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    return {"200": good} | {code: {"description": text, "content": failure} for code, text in _REFUSALS.items()}


def _answer(result: Json, code: Json) -> Json:
    return {
        "type": "object",
        "required": ["code", "msg", "micro", "result"],
        "properties": {"code": code, "msg": {"type": "string"}, "micro": _COUNT, "result": result},
    }
