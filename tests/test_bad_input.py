"""Bad input to the running program (CONTRACT section 7), on each backend: every request has its answer or its end, and
after each test the same process serves, a stream that was open all the while gets its frames, and no line of the log
holds a traceback, a token or data.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from tests.broker_process import TROUBLE, BrokerProcess
from tests.event_client import Answer
from tests.raw_http import RawConnection, chunked, exchange, request_bytes
from tests.redis_servers import RedisServer
from tests.waiting import until

# Stands in the data of every request here, and must stand in no log.
MARK = "SESAME"
MIB = 1024 * 1024
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=XX"


@pytest.fixture(scope="module", params=["embedded", "redis"])
def module_broker(request: pytest.FixtureRequest, module_redis_server: RedisServer) -> Iterator[BrokerProcess]:
    """One process for all tests; tests take `broker`."""
    broker = BrokerProcess(redis=module_redis_server if request.param == "redis" else None)
    try:
        asyncio.run(broker.start())
        yield broker
        asyncio.run(broker.stop())
    finally:
        asyncio.run(broker.discard())


@pytest.fixture
async def broker(module_broker: BrokerProcess) -> AsyncIterator[BrokerProcess]:
    """The process, with a witness: a stream that is open while the test runs, and gets a frame after it."""
    pid, token = module_broker.pid, module_broker.mint("witness", "witness")
    said_before = len(module_broker.stderr_text())
    async with (
        module_broker.api() as api,
        module_broker.client("witness", "witness", headers={"X-SSE-TOKEN": token}) as witness,
    ):
        yield module_broker
        assert module_broker.running
        assert module_broker.pid == pid
        assert (await api.send(f"after {MARK}", device="witness")).result == 1
        assert (await witness.next_frame()).data == f"after {MARK}"
        assert len(witness.frames) == 1, "something was sent that should have been refused"
    text = module_broker.stderr_text()[said_before:]
    assert not TROUBLE.search(text), text[-4000:]
    assert token.rpartition(".")[2] not in text
    assert MARK not in text
    assert not re.search(r'HTTP/\d\.\d" 5\d\d ', text)


def post(body: bytes, content_type: str = JSON, target: str = "/send", **headers: str) -> bytes:
    """Return a POST."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes("POST", target, {"Content-Type": content_type} | names, body)


def assert_refused(answer: Answer, status: int, message: str = "", case: str = "") -> None:
    """Check that an answer is a refusal in the form of the API."""
    assert (answer.status, answer.body["code"], answer.result) == (status, status, ""), (case, answer)
    assert message in answer.msg, case
    assert "\n" not in answer.msg
    assert MARK not in answer.msg


# --- what a body says ---

DEEP = b"[" * 100_000
BODIES: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b"SESAME", JSON, "not valid JSON"),
    "half of JSON": (b'{"data": "SESAME', JSON, "not valid JSON"),
    "more than JSON": (b'{"data": "SESAME"} x', JSON, "not valid JSON"),
    "single quotes": (b"{'data': 'SESAME'}", JSON, "not valid JSON"),
    "a form called JSON": (b"data=SESAME", JSON, "not valid JSON"),
    "an array": (b'["data", "SESAME"]', JSON, "must be an object"),
    "a number": (b"1", JSON, "must be an object"),
    "a text": (b'"SESAME"', JSON, "must be an object"),
    "null": (b"null", JSON, "must be an object"),
    "NaN": (b'{"data": NaN}', JSON, "not valid JSON"),
    "Infinity": (b'{"data": [-Infinity]}', JSON, "not valid JSON"),
    "beyond all numbers": (b'{"data": [1e999]}', JSON, "'data'"),
    "5,000 digits": (b'{"data": ' + b"1" * 5000 + b"}", JSON, "not valid JSON"),
    "a user beyond all numbers": (b'{"data": 1, "uid": 1e999}', JSON, "'uid'"),
    "deep arrays": (DEEP, JSON, "not valid JSON"),
    "deep data": (b'{"data": ' + DEEP + b"1" + b"]" * 100_000 + b"}", JSON, "not valid JSON"),
    "deep objects": (b'{"data":' * 100_000, JSON, "not valid JSON"),
    "no UTF-8": (b'{"data": "SESAME\xff"}', JSON, "not valid JSON"),
    "UTF-16": ('{"data": "SESAME"}'.encode("utf-16"), JSON, "not valid JSON"),
    "half a surrogate pair": (rb'{"data": "SESAME\ud800"}', JSON, "'data' holds a character that UTF-8 can not carry"),
    "the other half": (rb'{"data": ["\udc00SESAME"]}', JSON, "'data' holds a character that UTF-8 can not carry"),
    "a surrogate as bytes": (b'{"data": "\xed\xa0\x80"}', JSON, "not valid JSON"),
    "a surrogate in a user": (rb'{"data": "SESAME", "uid": "\ud800"}', JSON, "'uid'"),
    "a surrogate in a device": (rb'{"data": "SESAME", "device": ["\ud800"]}', JSON, "'device'"),
    "a surrogate in the event": (rb'{"data": "SESAME", "event": "\ud800"}', JSON, "'event'"),
    "NUL in the event": (rb'{"data": "SESAME", "event": "a\u0000b"}', JSON, "'event' must not hold CR, LF or NUL"),
    "LF in the event": (rb'{"data": "SESAME", "event": "a\ndata: forged"}', JSON, "'event' must not hold"),
    "our event": (b'{"data": "SESAME", "event": "sys_kick_offline"}', JSON, "'event' must not begin"),
    "no data": (b'{"event": "SESAME"}', JSON, "'data' is missing"),
    "an empty list": (b'{"data": "SESAME", "uid": []}', JSON, "'uid' is a list that names nobody"),
    "an object for a list": (b'{"data": "SESAME", "uid": {"0": "a"}}', JSON, "'uid' must be text"),
    "a list in a list": (b'{"data": "SESAME", "device": [["a"]]}', JSON, "'device' must be"),
    "a long user": (b'{"data": "SESAME", "uid": "%b"}' % (b"x" * 257), JSON, "'uid' holds a name that is longer"),
    "a long device": (b'{"data": "SESAME", "device": ["%b"]}' % (b"x" * MIB)[:500_000], JSON, "'device' holds a name"),
    "too many users": (b"data=SESAME&uid=" + b"a," * 10_001, FORM, "'uid' names more than 10000"),
    "a long event": (b'{"data": "SESAME", "event": "%b"}' % (b"x" * 257), JSON, "'event' is longer"),
    "escapes that are no UTF-8": (b"data=SESAME%ff", FORM, "percent escapes that are not UTF-8"),
    "a surrogate in escapes": (b"data=SESAME%ed%a0%80", FORM, "percent escapes that are not UTF-8"),
    "a form that is no UTF-8": (b"data=SESAME\xff", FORM, "not text in the character set"),
    "a parameter twice": (b"data=SESAME&data=SESAME", FORM, "'data' is given more than once"),
    "an event twice": (b"data=SESAME&event=a&event=b", FORM, "'event' is given more than once"),
    "1,001 parameters": (b"data=SESAME" + b"&a=b" * 1000, FORM, "more than 1000 parameters"),
    "an unknown character set": (b"data=SESAME", FORM + "; charset=nonsense", "character set"),
    "a slow character set": (b"a" * 900_000 + b"-" + b"ab3" * 30_000, FORM + "; charset=punycode", "character set"),
    "a codec that fails": (b"data=SESAME", FORM + "; charset=undefined", "character set"),
    "no multipart": (b"SESAME", MULTIPART, "a boundary is missing"),
    "no boundary": (b"--XX\r\n\r\n--XX--", "multipart/form-data", "no boundary"),
    "a part without an end": (
        b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\nSESAME', MULTIPART, "a boundary is missing"
    ),
    "a part without a name": (b"--XX\r\nContent-Type: a/b\r\n\r\nSESAME\r\n--XX--", MULTIPART, "a part has no name"),
    "a part for mail": (
        b'--XX\r\nContent-Disposition: form-data; name="data"\r\nContent-Transfer-Encoding: base64\r\n\r\nU0VT\r\n--XX--',
        MULTIPART,
        "for mail",
    ),
    "many parts": (b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 20_000, MULTIPART, "1000 parts"),
    "a part within a part": (
        b"--XX\r\nContent-Type: multipart/mixed; boundary=YY\r\n\r\n--YY\r\n\r\n--YY--\r\n--XX--", MULTIPART, "no name"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [JSON, FORM, "multipart"])
async def test_a_bad_body_is_refused(broker: BrokerProcess, kind: str) -> None:
    for name, (body, content_type, message) in BODIES.items():
        if content_type.startswith(kind):
            start = time.monotonic()
            answer = await exchange(broker.port, post(body, content_type))
            assert time.monotonic() - start < 5, name
            assert_refused(answer, 400, message, name)


async def test_a_body_of_another_type_is_refused(broker: BrokerProcess) -> None:
    for kind in ("", "text/plain", "application/octet-stream", "x", "application/jsonx", "é", "*/*"):
        assert_refused(await exchange(broker.port, post(b'{"data": "SESAME"}', kind)), 415, "content type", kind)
    no_type = request_bytes("POST", "/send", {}, b'{"data": "SESAME"}')
    assert_refused(await exchange(broker.port, no_type), 415, "content type")


GOOD: dict[str, tuple[bytes, str]] = {
    "escapes that are none": (b"data=SESAME%zz%&uid=nobody", FORM),
    "a later key wins": (b'{"data": "SESAME", "data": 1, "uid": "nobody"}', JSON),
    "unknown parameters": (b'{"data": "SESAME", "uid": "nobody", "\\ud800": [{}]}', JSON),
    "a list in several parts": (b"data=SESAME&uid=nobody,no+one&uid=none", FORM),
    "no text after the form": (b"data=SESAME&uid=nobody&&&=&", FORM),
    "JSON with space": (b' \r\n{"data": "SESAME", "uid": ["nobody"]}\t\n', JSON),
}


async def test_what_only_looks_bad_is_taken(broker: BrokerProcess) -> None:
    for name, request in GOOD.items():
        answer = await exchange(broker.port, post(*request))
        assert (answer.status, answer.result) == (200, 0), (name, answer)


async def test_the_query_is_as_strict_as_a_body(broker: BrokerProcess) -> None:
    cases = [
        ("/send?data=SESAME%ff", "percent escapes that are not UTF-8"),
        ("/send?data=SESAME&data=SESAME", "'data' is given more than once"),
        ("/send?data=SESAME" + "&a=b" * 1000, "more than 1000 parameters"),
        ("/send?data=SESAME&event=a%0Ab", "'event' must not hold"),
        ("/send?data=SESAME&uid=" + "x" * 257, "'uid' holds a name that is longer"),
        ("/send?uid=witness", "'data' is missing"),
        ("/kick?data=SESAME", "'uid' or 'device' is missing"),
        ("/token?uid=", "'uid' is missing"),
        ("/token?uid=a&uid=b", "'uid' is given more than once"),
        ("/token?uid=a&ttl=1e999", "'ttl' must be a number"),
        ("/token?uid=a&ttl=" + "9" * 5000, "'ttl' must be"),
        ("/info?uid=a&device=b", "can not be asked for together"),
    ]
    for target, message in cases:
        assert_refused(await exchange(broker.port, request_bytes("GET", target)), 400, message)


# --- how long a body is ---


async def endless(piece: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


async def test_a_long_body_is_refused_before_it_comes(broker: BrokerProcess) -> None:
    """By its length; nothing of it needs to be sent."""
    for content_type in (JSON, FORM, MULTIPART):
        head = post(b"", content_type, Content_Length=str(MIB + 1))
        assert_refused(await exchange(broker.port, head), 413, f"longer than {MIB} bytes")
    head = post(b"", Content_Length="9" * 18)
    assert_refused(await exchange(broker.port, head), 413)


async def test_a_body_at_the_bound_is_taken(broker: BrokerProcess) -> None:
    start, end = b'{"uid": "nobody", "data": "', b'"}'
    body = start + b"x" * (MIB - len(start) - len(end)) + end
    assert (await exchange(broker.port, post(body))).status == 200
    assert (await exchange(broker.port, post(b"", Transfer_Encoding="chunked") + chunked(body))).status == 200
    assert_refused(await exchange(broker.port, post(body + b" ")), 413)


@pytest.mark.parametrize("content_type", [JSON, FORM, MULTIPART])
async def test_a_long_body_without_a_length_is_refused_on_the_way(broker: BrokerProcess, content_type: str) -> None:
    """The sender is not read to its end either: the connection is closed."""
    async with RawConnection(broker.port, seconds=20) as connection:
        await connection.send(post(b"", content_type, Transfer_Encoding="chunked"))
        piece = b"%x\r\n%b\r\n" % (65536, b"S" * 65536)
        sending = asyncio.create_task(connection.send(endless(piece, 10_000)))
        try:
            assert_refused(await connection.answer(), 413)
            assert await connection.ended()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_inflates_is_refused_by_what_it_becomes(broker: BrokerProcess, encoding: str) -> None:
    """Twenty megabytes out of twenty kilobytes are never held."""
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    before = resident_bytes(broker.pid)
    bomb = pack(b" " * 20 * MIB)
    assert len(bomb) < 40_000
    for content_type in (JSON, FORM, MULTIPART):
        assert_refused(await exchange(broker.port, post(bomb, content_type, Content_Encoding=encoding)), 413)
    assert resident_bytes(broker.pid) - before < 10 * MIB
    good = pack(b'{"data": "SESAME", "uid": "nobody"}')
    assert (await exchange(broker.port, post(good, Content_Encoding=encoding))).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_broken_compression_is_refused(broker: BrokerProcess, encoding: str) -> None:
    for body in (b"SESAME" * 10, gzip.compress(b'{"data": "SESAME"}')[:-12]):
        answer = await exchange(broker.port, post(body, Content_Encoding=encoding))
        assert answer.status == 400


async def test_a_body_that_stops_early_costs_nothing(broker: BrokerProcess) -> None:
    for content_type in (JSON, FORM, MULTIPART):
        async with RawConnection(broker.port) as connection:
            await connection.send(post(b"", content_type, Content_Length="1000") + b"data=SESAME")
            connection.writer.write_eof()
            assert await connection.ended()


# --- what is no HTTP ---

NO_HTTP: dict[str, bytes] = {
    "garbage": b"SESAME\r\n\r\n",
    "binary garbage": bytes(range(256)) * 10,
    "TLS": bytes.fromhex("160301020001000001fc0303") + b"S" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a future version": b"GET /send?data=SESAME HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version": b"GET /send?data=SESAME HTTP/\r\nHost: x\r\n\r\n",
    "a method that is none": b"G=T /send?data=SESAME HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": b"GET /send?data=SESAME HTTP/1.1\r\nHost: x\r\nSESAME\r\n\r\n",
    "a header without a name": b"GET /send?data=SESAME HTTP/1.1\r\nHost: x\r\n: SESAME\r\n\r\n",
    "a space before the colon": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\n{}}",
    "NUL in a header": b"GET /send?data=SESAME HTTP/1.1\r\nHost: x\r\nX-SSE-TOKEN: SE\0SAME\r\n\r\n",
    "a folded header": b"GET /send?data=SESAME HTTP/1.1\r\nHost: x\r\nX-A: b\r\n SESAME\r\n\r\n",
    "two lengths": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\n{}}",
    "a length that is none": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: SESAME\r\n\r\n",
    "a negative length": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a signed length": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}",
    "length and chunks": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another transfer coding": b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, SESAME\r\n\r\n",
    "a long line": b"GET /send?data=" + b"SESAME" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line without an end": b"GET /" + b"SESAME" * 100_000,
    "a long header": b"GET /info HTTP/1.1\r\nHost: x\r\nX-SSE-TOKEN: " + b"SESAME" * 5_000 + b"\r\n\r\n",
    "a header without an end": b"GET /info HTTP/1.1\r\nHost: x\r\nX-SSE-TOKEN: " + b"SESAME" * 100_000,
    "a bad port": b"GET http://x:SESAME/info HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad host": b"GET http://[::SESAME/info HTTP/1.1\r\nHost: x\r\n\r\n",
    "a byte beyond ASCII": b"GET /send?data=SESAME\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown method": b"BREW /send?data=SESAME HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /send?data=SESAME HTTP/1.1\r\n\r\n",
}  # fmt: skip


async def test_what_is_no_http_is_refused_and_closed(broker: BrokerProcess) -> None:
    for name, request in NO_HTTP.items():
        async with RawConnection(broker.port) as connection:
            await connection.send(request)
            answer = await connection.answer("GET")
            assert 400 <= answer.status < 500, name
            assert await connection.ended(), name


async def test_headers_without_end_are_refused(broker: BrokerProcess) -> None:
    """However short each is."""
    before = resident_bytes(broker.pid)
    async with RawConnection(broker.port) as connection:
        await connection.send(b"GET /info HTTP/1.1\r\nHost: x\r\n")
        sending = asyncio.create_task(connection.send(endless(b"X-SESAME: 1\r\n" * 1000, 3000)))
        try:
            assert await connection.ended()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    assert resident_bytes(broker.pid) - before < 20 * MIB


BROKEN_CHUNKS: dict[str, bytes] = {
    "no size": b"\r\nSESAME\r\n0\r\n\r\n",
    "a size that is none": b"zz\r\nSESAME\r\n0\r\n\r\n",
    "a size that is too small": b'3\r\n{"data": "SESAME"}\r\n0\r\n\r\n',
    "a negative size": b"-5\r\nSESAME\r\n0\r\n\r\n",
    "a size beyond all": b"ffffffffffffffffff\r\nSESAME\r\n0\r\n\r\n",
    "bare line feeds": b"6\nSESAME\n0\n\n",
}


async def test_broken_chunks_are_refused(broker: BrokerProcess) -> None:
    for name, body in BROKEN_CHUNKS.items():
        async with RawConnection(broker.port) as connection:
            await connection.send(post(b"", Transfer_Encoding="chunked") + body)
            assert (await connection.answer()).status in (400, 413), name
            assert await connection.ended(), name


async def test_requests_of_unusual_form_are_answered(broker: BrokerProcess) -> None:
    """Absolute URI, older versions, an upgrade that nobody wants, an expectation, a fragment, encoded letters."""
    host = b"Host: x\r\n"
    body = post(b'{"data": "SESAME", "uid": "nobody"}', Expect="100-continue")
    for request, status in (
        (b"GET http://x/info?uid=a HTTP/1.1\r\n" + host, 200),
        (b"GET /info?uid=a HTTP/1.0\r\n", 200),
        (b"GET /info?uid=a#there HTTP/1.1\r\n" + host, 200),
        (b"GET /%69nfo?uid=a HTTP/1.1\r\n" + host, 200),
        (b"GET /info?uid=a HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" + host, 200),
        (b"GET /info?uid=a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n" + host, 200),
        (b"\r\n\r\nGET /info?uid=a HTTP/1.1\r\n" + host, 200),
        (b"OPTIONS /send HTTP/1.1\r\n" + host, 204),
        (b"OPTIONS * HTTP/1.1\r\n" + host, 404),
        (b"CONNECT x:1 HTTP/1.1\r\n" + host, 404),
        (b"GET //info HTTP/1.1\r\n" + host, 404),
        (b"GET /../info HTTP/1.1\r\n" + host, 404),
        (b"PURGE /info HTTP/1.1\r\n" + host, 405),
    ):
        async with RawConnection(broker.port) as connection:
            await connection.send(request + b"Connection: close\r\n\r\n")
            answer = await connection.answer("GET")
            assert answer.status == status or (status == 404 and 400 <= answer.status < 500), request
    assert (await exchange(broker.port, body)).status == 200


async def test_garbage_behind_a_request_does_not_spoil_its_answer(broker: BrokerProcess) -> None:
    """Unless it comes in the same packet: then all of it is refused."""
    for together in (True, False):
        async with RawConnection(broker.port) as connection:
            good, garbage = request_bytes("GET", "/info?uid=a"), b"SESAME\0\r\n\r\n"
            await connection.send(good + garbage if together else good)
            if not together:
                assert (await connection.answer("GET")).status == 200
                await connection.send(garbage)
            assert (await connection.answer("GET")).status == 400
            assert await connection.ended()


# --- leaving early ---


def requests(broker: BrokerProcess, number: int) -> list[bytes]:
    """Return whole requests, of which every part will be sent."""
    token = broker.mint("u", f"early-{number}")
    return [
        post(b'{"data": "SESAME", "uid": "nobody"}'),
        post(b"", Transfer_Encoding="chunked") + chunked(b'{"data": "SESAME", ', b'"uid": "nobody"}'),
        request_bytes("GET", f"/events?device=early-{number}", {"X-SSE-TOKEN": token}),
    ]


@pytest.mark.parametrize("abrupt", [False, True], ids=["FIN", "reset"])
async def test_a_client_may_leave_at_each_point_of_a_request(broker: BrokerProcess, abrupt: bool) -> None:
    """Whatever it said so far: no ghost stays, nothing is sent."""
    for number, whole in enumerate(requests(broker, int(abrupt))):
        for end in [*range(0, len(whole), 7), len(whole)]:
            async with RawConnection(broker.port) as connection:
                await connection.send(whole[:end])
                await connection.close(abrupt=abrupt)
        async with broker.api() as api:

            async def alone(api: object = api) -> bool:
                return (await api.info()).result["device_count"] == 1  # type: ignore[attr-defined, no-any-return]

            await until(alone, what=f"only the witness online after request {number}")


async def test_a_request_may_come_a_byte_at_a_time(broker: BrokerProcess) -> None:
    for whole in requests(broker, 2)[:2]:
        async with RawConnection(broker.port) as connection:
            for at in range(len(whole)):
                await connection.send(whole[at : at + 1])
                await asyncio.sleep(0)
            assert (await connection.answer()).status == 200


async def test_an_open_stream_ignores_what_its_client_says(broker: BrokerProcess) -> None:
    """Fifty megabytes of it do not make the process grow."""
    async with RawConnection(broker.port) as connection, broker.api() as api:
        await connection.send(
            request_bytes("GET", "/events?device=talker", {"X-SSE-TOKEN": broker.mint("u", "talker")})
        )
        await asyncio.wait_for(connection.reader.readuntil(b"sys_connected"), 10)
        before = resident_bytes(broker.pid)
        piece = request_bytes("GET", "/send?data=SESAME") * 1000
        await connection.send(endless(piece, 50 * MIB // len(piece)))
        assert resident_bytes(broker.pid) - before < 10 * MIB
        assert (await api.send("end", device="talker")).result == 1
        said = await asyncio.wait_for(connection.reader.readuntil(b"data: end\n"), 10)
        assert b"SESAME" not in said


@pytest.mark.parametrize("seed", range(4))
async def test_damaged_requests_are_answered_or_closed(broker: BrokerProcess, seed: int) -> None:
    """Good requests with some bytes changed, dropped, doubled or moved."""
    draw = random.Random(seed)
    originals = [*requests(broker, 3), post(b"data=SESAME&uid=nobody", FORM), request_bytes("GET", "/info?uid=a")]
    damaged = [damage(draw, draw.choice(originals)) for _ in range(80)]
    # The witness must hear nothing: what is damaged into a broadcast would be one all the same.
    damaged = [request for request in damaged if b"nobody" in request or b"SESAME" not in request]
    statuses = set(await asyncio.gather(*(status_of(broker, request) for request in damaged)))
    assert b"400" in statuses
    assert all(status == b"" or b"200" <= status < b"500" for status in statuses), statuses


def damage(draw: random.Random, request: bytes) -> bytes:
    """Return the request with a few changes."""
    damaged = bytearray(request)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(damaged))
        what = draw.choice(["change", "drop", "double", "move", "insert"])
        if what == "change":
            damaged[at] = draw.randrange(256)
        elif what == "drop":
            del damaged[at : at + draw.randint(1, 9)]
        elif what == "double":
            damaged[at:at] = damaged[at : at + draw.randint(1, 30)]
        elif what == "move":
            damaged.extend(damaged[at : at + 20])
            del damaged[at : at + 20]
        else:
            damaged[at:at] = draw.choice([b"\r\n", b"\0", b"\n", b"%", b":", b"\xff", b" ", b"\r\n\r\n"])
    return bytes(damaged)


async def status_of(broker: BrokerProcess, request: bytes) -> bytes:
    """Return the status of the answer; nothing when none comes soon, as more of the request is waited for."""
    async with RawConnection(broker.port) as connection:
        await connection.send(request)
        with suppress(TimeoutError, ConnectionError):
            return (await asyncio.wait_for(connection.reader.read(12), 1))[9:12]
        return b""


async def test_nobody_waits_for_a_body_that_never_comes(broker: BrokerProcess) -> None:
    """Chunks of any promised size, extensions without end, a body cut off: others are answered meanwhile."""
    beginnings = [
        post(b"", Transfer_Encoding="chunked") + b"ffffffffffffffff\r\nSESAME",
        post(b"", Transfer_Encoding="chunked") + b"3;" + b"SESAME" * 20_000,
        post(b"", Content_Length="1000") + b"SESAME",
        b"POST /send HTTP/1.1\r\nHost",
    ]
    waiting = [RawConnection(broker.port) for _ in beginnings]
    for connection, beginning in zip(waiting, beginnings, strict=True):
        await connection.__aenter__()
        await connection.send(beginning)
    assert (await exchange(broker.port, request_bytes("GET", "/info"), seconds=2)).status == 200
    for connection in waiting:
        await connection.close()


async def test_hard_work_does_not_hold_up_the_others(broker: BrokerProcess) -> None:
    """The costliest bodies of a megabyte: meanwhile a request is answered within a second."""
    names = ",".join(f"n{number}" for number in range(10_000)).encode()
    bodies = [
        post(zlib.compress(b" " * 150 * MIB), Content_Encoding="deflate"),
        post(b'{"data": [' + b"[]," * 300_000 + b'0], "uid": "nobody"}'),
        post(b"data=SESAME&uid=" + names, FORM),
        post(b"data=SESAME&device=" + names, FORM),
        post(b'{"data": "' + b"\\n" * 500_000 + b'", "uid": "nobody"}'),
    ]
    for body in bodies:
        hard = asyncio.create_task(exchange(broker.port, body, seconds=30))
        slowest = 0.0
        while not hard.done():
            start = time.monotonic()
            assert (await exchange(broker.port, request_bytes("GET", "/token?uid=a"), seconds=20)).status == 200
            slowest = max(slowest, time.monotonic() - start)
        assert (await hard).status in (200, 413)
        assert slowest < 1, body[:200]
