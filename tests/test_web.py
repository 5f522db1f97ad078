"""The endpoints through HTTP (docs/contract.md, section 2): each way of giving parameters, answers, statuses and messages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import jwt
import pytest

from sse_broker import openapi
from tests.broker_process import SECRET
from tests.event_client import Answer, Api
from tests.raw_http import RawConnection, exchange
from tests.redis_servers import RedisServer
from tests.served import Serve, ServedBroker

pytestmark = pytest.mark.usefixtures("both_ways")

WAYS = ["query", "json", "form", "multipart"]
ENDPOINTS = ["/token", "/send", "/info", "/kick"]


async def call(api: Api, way: str, path: str, fields: Mapping[str, Any]) -> Answer:
    """Call an endpoint with parameters given in one of the ways."""
    if way == "query":
        return await api.request("GET", path, params=fields)
    if way == "json":
        return await api.request("POST", path, json=fields)
    if way == "form":
        return await api.request("POST", path, data=fields)
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, str(value))
    return await api.request("POST", path, data=form)


async def received(broker: ServedBroker, **fields: Any) -> tuple[str, str | None]:
    """Send to a fresh device and return the event name and the data that arrive there."""
    async with broker.client("receiver", "receiver-1") as client:
        answer = await broker.api.send(**fields)
        assert answer.status == 200, answer
        frame = await client.next_frame()
        return frame.event, frame.data


# --- answers ---


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/token", {"uid": "u"}), ("/send", {"data": "x"}), ("/info", {}), ("/kick", {"uid": "u"})],
)
async def test_an_answer_has_code_msg_micro_and_result(serve: Serve, path: str, fields: dict[str, Any]) -> None:
    broker = await serve()
    started = time.perf_counter()
    answer = await broker.api.request("POST", path, json=fields)
    waited_us = (time.perf_counter() - started) * 1e6
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert set(answer.body) == {"code", "msg", "micro", "result"}
    assert (answer.body["code"], answer.body["msg"]) == (1, "success")
    assert type(answer.body["micro"]) is int
    assert 0 < answer.body["micro"] < waited_us


async def test_a_failure_has_the_status_as_code_and_an_empty_result(serve: Serve) -> None:
    broker = await serve()
    answer = await broker.api.request("POST", "/send", json={})
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert set(answer.body) == {"code", "msg", "micro", "result"}
    assert (answer.body["code"], answer.result) == (400, "")
    assert answer.msg == "'data' is missing"


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_unknown_parameters_are_ignored(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded()
    fields = {"uid": "u", "data": "d", "nobody": "knows", "": "", "Data": {"a": [1]}}
    answer = await broker.api.request("POST", path, json=fields)
    assert answer.status == 200, answer


# --- every endpoint in every way ---


@pytest.mark.parametrize("way", WAYS)
async def test_a_token_can_be_asked_for(serve: Serve, way: str) -> None:
    """Claims as the contract names them; `device_name` only in a token that is bound; `ttl` and `jwt.expire` count."""
    broker = await serve({"jwt": {"expire": 45}})
    for fields, seconds in (({"uid": "anna"}, 45), ({"uid": "anna", "device": "phone é", "ttl": 7}, 7)):
        answer = await call(broker.api, way, "/token", fields)
        assert answer.status == 200, answer
        assert jwt.get_unverified_header(answer.result)["alg"] == "HS256"
        claims = jwt.decode(answer.result, SECRET, algorithms=["HS256"])
        assert claims.pop("uid") == "anna"
        assert abs(claims["exp"] - claims["iat"] - seconds) < 1.5
        assert abs(claims.pop("exp") - time.time() - seconds) < 5
        assert abs(claims.pop("iat") - time.time()) < 5
        assert claims == ({"device_name": "phone é"} if "device" in fields else {})


@pytest.mark.parametrize("way", WAYS)
async def test_a_frame_can_be_sent_to_users_and_devices(serve: Serve, way: str) -> None:
    """Lists are split at commas, spaces and empty items dropped, each device counted once however often it is meant."""
    broker = await serve()
    names = [("anna", "anna-1"), ("anna", "anna-2"), ("ben", "ben-1"), ("cleo", "cleo-1")]
    clients = [await broker.client(uid, device).open() for uid, device in names]
    try:
        fields = {
            "uid": " anna ,, nobody,anna",
            "device": "ben-1,anna-2,  ,",
            "event": "news é",
            "data": "a&b=c+d %é\n",
        }
        answer = await call(broker.api, way, "/send", fields)
        assert (answer.status, answer.result) == (200, 3), answer
        answer = await call(broker.api, way, "/send", {"data": "for all"})
        assert (answer.status, answer.result) == (200, 4)
        for client in clients[:3]:
            first, second = await client.next_frame(), await client.next_frame()
            assert (first.event, first.data) == ("news é", "a&b=c+d %é\n")
            assert (second.event, second.data) == ("message", "for all")
        assert (await clients[3].next_frame()).data == "for all"
        assert len(clients[3].frames) == 1
    finally:
        for client in clients:
            await client.close()


@pytest.mark.parametrize("way", WAYS)
async def test_users_and_devices_can_be_kicked(serve: Serve, way: str) -> None:
    broker = await serve()
    async with (
        broker.client("anna", "anna-1") as one,
        broker.client("anna", "anna-2") as two,
        broker.client("ben", "ben-1") as three,
        broker.client("ben", "ben-2") as spared,
    ):
        answer = await call(broker.api, way, "/kick", {"uid": "anna", "device": "ben-1, anna-1", "data": "bye\né"})
        assert (answer.status, answer.result) == (200, 3)
        for client in (one, two, three):
            assert (await client.next_event("sys_kick_offline")).data == "bye\né"
            assert await client.wait_closed() == "clean"
        assert not spared.closed
        assert (await call(broker.api, way, "/kick", {"uid": "anna"})).result == 0


@pytest.mark.parametrize("way", WAYS)
async def test_information_can_be_asked_for(serve: Serve, way: str) -> None:
    broker = await serve()
    async with broker.client("anna é", "phone é"):
        assert (await call(broker.api, way, "/info", {"uid": "anna é"})).result["online"] is True
        assert (await call(broker.api, way, "/info", {"device": "phone é"})).result["online"] is True
        assert (await call(broker.api, way, "/info", {"ip": broker.address})).result["online"] is True
        assert (await call(broker.api, way, "/info", {})).result["device_count"] == 1


async def test_a_list_may_be_a_json_array(serve: Serve) -> None:
    """An array says exactly whom it means: also names with commas and spaces, and numbers."""
    broker = await serve()
    async with broker.client("a, b", "one,two") as one, broker.client("42", " x ", via="query") as two:
        answer = await broker.api.send("1", uid=["a, b", "nobody"], device=["one,two", ""])
        assert answer.result == 1
        assert (await broker.api.send("2", uid=[42], device=[" x "])).result == 1
        assert (await one.next_frame()).data == "1"
        assert (await two.next_frame()).data == "2"


async def test_numbers_are_taken_as_text(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    token = (await broker.api.token(7, 8.5)).result
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert (claims["uid"], claims["device_name"]) == ("7", "8.5")
    async with broker.client("7", "8.5", token=token) as client:
        assert (await broker.api.send("x", uid=7, event=9)).result == 1
        assert (await client.next_frame()).event == "9"
        assert (await broker.api.info(uid=7)).result["online"] is True
        assert (await broker.api.kick(device=8.5, data="done")).result == 1


async def test_a_number_may_be_text(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    claims = jwt.decode((await broker.api.token("u", ttl="90")).result, SECRET, algorithms=["HS256"])
    assert abs(claims["exp"] - time.time() - 90) < 5


async def test_the_body_wins_over_the_query(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    answer = await broker.api.request("POST", "/token?uid=query&ttl=50", json={"uid": "body"})
    claims = jwt.decode(answer.result, SECRET, algorithms=["HS256"])
    assert claims["uid"] == "body"
    assert abs(claims["exp"] - time.time() - 50) < 5


async def test_a_post_may_have_its_parameters_in_the_query(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    assert (await broker.api.request("POST", "/token?uid=u")).status == 200


JSON_VALUES: list[Any] = [
    {"a": [1, 2.5, None, True], "ü": "é\n😀"}, [], {}, [[[]]], 0, -1.5, 12345678901234567890, True, False, None,
]  # fmt: skip


@pytest.mark.parametrize("value", JSON_VALUES, ids=json.dumps)
async def test_data_that_is_no_text_is_sent_as_compact_json(serve_embedded: Serve, value: Any) -> None:
    broker = await serve_embedded()
    async with broker.client("u", "d") as client:
        assert (await broker.api.request("POST", "/send", json={"data": value})).status == 200
        data = (await client.next_frame()).data
        assert data == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def test_text_stays_as_it_is(serve: Serve) -> None:
    """Also where it looks like JSON, has spaces at its ends, or is empty."""
    broker = await serve()
    for text in ('{"a": 1}', "  x  ", "", "null", "\n", "\r\n\r", "data: x\n\nid: 7", "\0\ufeff\u2028😀"):
        event, data = await received(broker, data=text)
        assert event == "message"
        assert data == text.replace("\r\n", "\n").replace("\r", "\n")


# --- refusals ---

LONG = "x" * 257
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/token", {}, "'uid' is missing"),
    ("/token", {"uid": ""}, "'uid' is missing"),
    ("/token", {"uid": None}, "'uid' is missing"),
    ("/token", {"uid": LONG}, "'uid' is longer than 256 characters"),
    ("/token", {"uid": ["a"]}, "'uid' must be one text, not a list"),
    ("/token", {"uid": {"a": 1}}, "'uid' must be text"),
    ("/token", {"uid": True}, "'uid' must be text"),
    ("/token", {"uid": "u", "device": LONG}, "'device' is longer than 256 characters"),
    ("/token", {"uid": "u", "ttl": "soon"}, "'ttl' must be a number"),
    ("/token", {"uid": "u", "ttl": True}, "'ttl' must be a number"),
    ("/token", {"uid": "u", "ttl": [1]}, "'ttl' must be a number"),
    ("/token", {"uid": "u", "ttl": 0}, "'ttl' must be more than 0"),
    ("/token", {"uid": "u", "ttl": -1}, "'ttl' must be more than 0"),
    ("/token", {"uid": "u", "ttl": 1e300}, "'ttl' must be more than 0"),
    ("/send", {}, "'data' is missing"),
    ("/send", {"data": "x", "uid": [LONG]}, "'uid' holds a name that is longer than 256 characters"),
    ("/send", {"data": "x", "device": "a," + LONG}, "'device' holds a name that is longer"),
    ("/send", {"data": "x", "uid": {"a": 1}}, "'uid' must be text"),
    ("/send", {"data": "x", "uid": [["a"]]}, "'uid' must be"),
    ("/send", {"data": "x", "uid": [None]}, "'uid' must be text"),
    ("/send", {"data": "x", "device": False}, "'device' must be text"),
    ("/send", {"data": "x", "uid": []}, "'uid' is a list that names nobody"),
    ("/send", {"data": "x", "device": " , "}, "'device' is a list that names nobody"),
    ("/send", {"data": "x", "event": "a\nb"}, "'event' must not hold CR, LF or NUL"),
    ("/send", {"data": "x", "event": "a\rb"}, "'event' must not hold CR, LF or NUL"),
    ("/send", {"data": "x", "event": "a\0b"}, "'event' must not hold CR, LF or NUL"),
    ("/send", {"data": "x", "event": "sys_connected"}, "'event' must not begin with 'sys_'"),
    ("/send", {"data": "x", "event": LONG}, "'event' is longer than 256 characters"),
    ("/send", {"data": "x", "event": ["a"]}, "'event' must be one text, not a list"),
    ("/kick", {}, "'uid' or 'device' is missing"),
    ("/kick", {"data": "x"}, "'uid' or 'device' is missing"),
    ("/kick", {"uid": [7.5, LONG]}, "'uid' holds a name that is longer"),
    ("/info", {"uid": ["a"]}, "'uid' must be one text, not a list"),
    ("/info", {"device": LONG}, "'device' is longer than 256 characters"),
    ("/info", {"uid": LONG}, "'uid' is longer than 256 characters"),
    ("/info", {"uid": "a", "device": "b"}, "'device' and 'uid' can not be asked for together"),
    ("/info", {"ip": 1, "uid": "b"}, "'uid' and 'ip' can not be asked for together"),
]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_bad_parameter_is_refused_and_named(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded()
    async with broker.client("u", "d") as client:
        for fields, message in [(fields, message) for where, fields, message in REFUSED if where == path]:
            answer = await broker.api.request("POST", path, json=fields)
            assert (answer.status, answer.body["code"], answer.result) == (400, 400, ""), (fields, answer)
            assert message in answer.msg, fields
            assert "\n" not in answer.msg
        assert (await broker.api.send("still here")).result == 1
        assert (await client.next_frame()).data == "still here"
        assert len(client.frames) == 1


@pytest.mark.parametrize("path", [*ENDPOINTS, "/events"])
async def test_another_method_is_refused_with_those_allowed(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded()
    for method in ("HEAD", "PUT", "DELETE", "PATCH", "TRACE"):
        answer = await broker.api.request(method, path + "?uid=u&data=x")
        assert answer.status == 405
        assert answer.headers["allow"] == ("GET, OPTIONS" if path == "/events" else "GET, POST, OPTIONS")
        if method != "HEAD":
            assert (answer.body["code"], answer.result) == (405, "")
            assert path in answer.msg


@pytest.mark.parametrize("path", ["/", "/demo", "/static/demo.html", "/static/demo.js", "/openapi.json", "/healthz"])
async def test_a_page_takes_no_other_method_than_get_and_head(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded()
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = await broker.api.request(method, path + "?token=sesame")
        assert (answer.status, answer.body["code"], answer.result) == (405, 405, ""), answer
        assert answer.headers["allow"] == "GET, HEAD"
        assert answer.msg == f"{path} takes GET and HEAD"


async def test_events_takes_no_post(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    answer = await broker.api.request("POST", "/events")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, OPTIONS")


@pytest.mark.parametrize("way", ["json", "form", "multipart"])
async def test_an_oversize_body_is_refused(serve: Serve, way: str) -> None:
    broker = await serve({"server": {"max_body_bytes": 3000}})
    assert (await call(broker.api, way, "/send", {"data": "x" * 2000})).status == 200
    answer = await call(broker.api, way, "/send", {"data": "x" * 4000})
    assert (answer.status, answer.body["code"], answer.result) == (413, 413, "")
    assert answer.msg == "the body is longer than 3000 bytes"
    assert (await call(broker.api, way, "/send", {"data": "x" * 2000})).status == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/xml", "nonsense", ""])
async def test_another_content_type_is_refused(serve_embedded: Serve, content_type: str) -> None:
    broker = await serve_embedded()
    headers = {"Content-Type": content_type}
    answer = await broker.api.request("POST", "/send", data=b'{"data": "x"}', headers=headers)
    assert (answer.status, answer.body["code"], answer.result) == (415, 415, "")
    assert "application/json" in answer.msg


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"])
async def test_json_may_be_called_otherwise(serve_embedded: Serve, content_type: str) -> None:
    broker = await serve_embedded()
    headers = {"Content-Type": content_type}
    answer = await broker.api.request("POST", "/send", data='{"data": "é"}'.encode(), headers=headers)
    assert answer.status == 200


async def test_without_redis_what_needs_it_is_unavailable_for_now(
    serve_on_redis: Serve, redis_server: RedisServer
) -> None:
    """Each says so within seconds and when to come again; tokens need no Redis."""
    broker = await serve_on_redis()
    token = await broker.api.token_for("u")
    await redis_server.kill()
    calls = [("POST", "/send", {"data": "x"}), ("POST", "/kick", {"uid": "u"}), ("POST", "/info", {"uid": "u"})]
    calls += [("POST", "/info", {}), ("GET", f"/events?device=d&token={token}", {})]
    for method, path, fields in calls:
        answer = await broker.api.request(method, path, json=fields if method == "POST" else None)
        assert (answer.status, answer.body["code"], answer.result) == (503, 503, ""), answer
        assert int(answer.headers["retry-after"]) > 0
    assert (await broker.api.token("u")).status == 200
    await redis_server.start()


HOST = b"Host: x\r\n"
NO_REQUEST: list[tuple[bytes, str]] = [
    (
        b"GET /send?data=" + b"sesame" * 3000 + b" HTTP/1.1\r\n" + HOST,
        "is longer than 16384 bytes; long data goes into",
    ),
    (b"GET /info HTTP/1.1\r\nX: " + b"sesame" * 3000 + b"\r\n" + HOST, "a header, is longer than 16384 bytes"),
    ("GET /events?token=sesameé HTTP/1.1\r\n".encode() + HOST, "path and query must be percent-encoded"),
    (b"GET /send?data=sesame HTTP/1.1\r\n", "the header Host is missing"),
    (b"GET /info HTTP/1.1\r\n" + b"X: sesame\r\n" * 200 + HOST, "there are too many headers"),
    (
        b"POST /send HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n" + HOST,
        "Content-Length and Transfer-Encoding can not be given together",
    ),
    (
        b"POST /send HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n" + HOST,
        "Content-Length and Transfer-Encoding can not be given together",
    ),
    (b"BREW /sesame HTTP/1.1\r\n" + HOST, "the request does not begin with a method that is known here"),
    (b"GET /info HTTP/1.1\r\nsesame\r\n" + HOST, "the request is not HTTP as it should be"),
    (b"GET http://x:sesame/info HTTP/1.1\r\n" + HOST, "the request is not HTTP as it should be"),
]


@pytest.mark.parametrize(("head", "message"), NO_REQUEST)
async def test_what_is_no_request_is_refused_as_json_that_repeats_nothing_of_it(
    serve_embedded: Serve, caplog: pytest.LogCaptureFixture, head: bytes, message: str
) -> None:
    broker = await serve_embedded()
    async with RawConnection(broker.port) as connection:
        await connection.send(head + b"\r\n")
        answer, _, body = (await asyncio.wait_for(connection.reader.read(), 10)).partition(b"\r\n\r\n")
    status, *lines = answer.decode().split("\r\n")
    assert status == "HTTP/1.1 400 Bad Request"
    assert {"Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}", "Connection: close"} <= {
        *lines
    }
    said = json.loads(body)
    assert message in said.pop("msg")
    assert said == {"code": 400, "micro": 0, "result": ""}
    assert b"sesame" not in body
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("OPTIONS *", 404, "there is no * here"),
        ("CONNECT x:1", 404, "there is no tunnel here"),
        ("GET /healthz HTTP/1.1\r\nExpect: sesame\r\nX:", 417, "'Expect' may be 100-continue and nothing else"),
    ],
)
async def test_what_gets_to_no_handler_is_refused_as_json(
    serve_embedded: Serve, line: str, status: int, message: str
) -> None:
    broker = await serve_embedded()
    answer = await exchange(broker.port, line.encode() + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert (answer.status, answer.body["code"], answer.result) == (status, status, "")
    assert message in answer.msg


async def test_a_page_that_fails_is_an_error_as_json_and_in_the_log(
    serve_embedded: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await serve_embedded()
    with monkeypatch.context() as context:
        context.setattr(openapi, "description", lambda: 1 / 0)
        answer = await broker.api.request("GET", "/openapi.json")
    assert (answer.status, answer.body["code"], answer.result) == (500, 500, "")
    assert answer.msg == "something went wrong here; the log says what"
    assert ["ZeroDivisionError" in line for line in broker.trouble.lines] == [True]
    broker.trouble.lines.clear()


async def test_a_path_that_is_not_there_is_not_found(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    for path in ("/sendx", "/send/", "/static/nothing.js", "/%00", "/..%2fetc/passwd"):
        answer = await broker.api.request("GET", path)
        assert (answer.status, answer.body["code"], answer.result) == (404, 404, ""), path
