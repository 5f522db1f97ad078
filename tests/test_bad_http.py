"""What is no HTTP, or only half of a request, said to the running program on each backend: it is refused or ended, and
nobody else notices (see `witness` for what is checked after each test).
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from tests.broker_process import BrokerProcess
from tests.raw_http import RawConnection, chunked, exchange, request_bytes
from tests.waiting import until
from tests.witness import FORM, MIB, assert_refused, endless, post, resident_bytes


@pytest.fixture
def broker(watched_broker: BrokerProcess) -> BrokerProcess:
    """The broker that is watched."""
    return watched_broker


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
            assert_refused(answer, 400, case=name)
            assert answer.headers["connection"] == "close", name
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
            assert_refused(await connection.answer(), 400, case=name)
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
