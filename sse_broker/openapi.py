"""The description of the HTTP API for machines (OpenAPI 3.1), served at `/openapi.json`. Pure: CONTRACT sections 2 and 3 as data;
what an endpoint does is said where it is done (`web_api`, `web_events`).
"""

from typing import Any

from sse_broker.version import VERSION

Json = dict[str, Any]

_TEXT: Json = {"type": "string", "minLength": 1, "maxLength": 256}
_NAMES: Json = {"type": "array", "items": _TEXT, "minItems": 1}
_COUNT: Json = {"type": "integer", "minimum": 0}
_MESSAGE: Json = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {"description": "What is delivered; what is not text is sent as its compact JSON."},
        "event": {
            "type": "string",
            "maxLength": 256,
            "description": "The event's name; not one that begins with sys_.",
        },
        "uid": _NAMES | {"description": "Users; with neither users nor devices everyone is meant."},
        "device": _NAMES | {"description": "Devices by name."},
    },
}
_REFUSALS = {
    "400": "A parameter is missing or wrong.",
    "401": "The API key is missing or wrong.",
    "403": "The key or the token is not for this.",
    "413": "The body is too long.",
    "415": "The body is of a type that is not taken.",
    "429": "Too much in a short time: see Retry-After.",
    "503": "Not now: see Retry-After.",
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
            "/token": _both(
                "token",
                "Make a token with which a user may listen.",
                {"type": "object", "required": ["uid"], "properties": _token_fields()},
                {"type": "string"},
            ),
            "/send": _send(),
            "/info": _both(
                "info",
                "Tell who is online: a user, a device, an instance, or the cluster when none is named.",
                {"type": "object", "properties": dict.fromkeys(("uid", "device", "ip", "address"), _TEXT)},
                {"type": "object"},
            ),
            "/kick": _both(
                "kick",
                "End the streams of users and devices and revoke their tokens; at least one must be named.",
                {
                    "type": "object",
                    "properties": {"uid": _NAMES, "device": _NAMES, "data": {"description": "Told to the devices."}},
                },
                _COUNT,
            ),
            "/events": {"get": _events()},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a token with `publish`."},
                "key": {"type": "apiKey", "in": "header", "name": "X-SSE-API-Key"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
                "tokenHeader": {"type": "apiKey", "in": "header", "name": "X-SSE-TOKEN"},
            },
            "schemas": {"Message": _MESSAGE, "Failure": _answer({"const": ""}, {"type": "integer", "minimum": 400})},
        },
    }


def _token_fields() -> Json:
    seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": 31_536_000, "description": "Seconds of life."}
    return {"uid": _TEXT, "device": _TEXT | {"description": "The one device that the token is for."}, "ttl": seconds}


def _both(name: str, summary: str, schema: Json, result: Json) -> Json:
    """Return an endpoint that takes the same parameters as a query and as a body."""
    required = schema.get("required", ())
    query = []
    for key, value in schema["properties"].items():
        flat = _TEXT if value.get("type") == "array" or "type" not in value else value
        query.append({"name": key, "in": "query", "required": key in required, "schema": flat})
    content = {
        "application/json": {"schema": schema},
        "application/x-www-form-urlencoded": {"schema": schema},
        "multipart/form-data": {"schema": schema},
    }
    shared: Json = {"summary": summary, "responses": _responses(result), "security": [{"bearer": []}, {"key": []}]}
    return {
        "get": shared | {"operationId": f"{name}ByQuery", "parameters": query},
        "post": shared | {"operationId": name, "requestBody": {"content": content, "required": bool(required)}},
    }


def _send() -> Json:
    failed = {"type": "object", "properties": {"code": {"type": "integer"}, "msg": {"type": "string"}}}
    result = {"oneOf": [_COUNT, {"type": "array", "items": {"oneOf": [_COUNT, failed]}}]}
    endpoint = _both("send", "Send an event to users, devices or everyone.", _MESSAGE, result)
    content = endpoint["post"]["requestBody"]["content"]
    many = {
        "type": "object",
        "required": ["messages"],
        "properties": {"messages": {"type": "array", "items": _MESSAGE}},
    }
    content["application/json"] = {"schema": {"oneOf": [_MESSAGE, many]}}
    content["application/x-ndjson"] = {"schema": {"type": "string", "description": "One message in JSON on each line."}}
    return endpoint


def _events() -> Json:
    names = {
        "token": "Required here or as the header X-SSE-TOKEN or Authorization: Bearer.",
        "device": "This client's own name; required here or as the header X-SSE-DEVICE.",
        "id": "The last id that the client has; the header Last-Event-ID wins.",
    }
    schemas = {"token": {"type": "string"}, "device": _TEXT, "id": {"type": "string", "pattern": "^[0-9]{1,16}$"}}
    responses = _responses({})
    responses["200"] = {"description": "The stream.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    for status in ("413", "415"):
        del responses[status]
    return {
        "operationId": "events",
        "summary": "Open an event stream.",
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": schemas[name]}
            for name, text in names.items()
        ],
        "responses": responses,
        "security": [{"token": []}, {"tokenHeader": []}, {"bearer": []}],
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
