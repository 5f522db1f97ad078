"""The short way from a connection to the API: which requests take it, and that nobody can tell which way was taken."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence

import pytest

from sse_broker.memory import MemoryBackend
from sse_broker.target import Message, Sent
from sse_broker.web_door import MAX_BEHIND_BYTES, MAX_BODY_BYTES
from tests.raw_http import RawConnection, request_bytes
from tests.served import ServedBroker
from tests.waiting import until


@pytest.fixture
async def served() -> AsyncIterator[ServedBroker]:
    """A broker on the embedded backend, with the short way."""
    async with ServedBroker({"server": {"max_body_bytes": 200_000}}) as broker:
        yield broker


SlowServed = tuple[ServedBroker, "SlowBackend"]


@pytest.fixture
async def on_slow_backend() -> AsyncIterator[SlowServed]:
    """A broker whose backend publishes when it is let."""
    backend = SlowBackend()
    async with ServedBroker(wrap=lambda _: backend) as broker:
        yield broker, backend


def post(body: bytes, content_type: str = "application/json", *headers: str, target: str = "/send") -> bytes:
    """Return a POST with a body."""
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def went_to_aiohttp(broker: ServedBroker) -> bool:
    """Tell whether a connection is aiohttp's now."""
    server = broker.http.runner.server
    assert server is not None
    return bool([one for one in server.connections if one.transport is not None])


SEND = json.dumps({"data": "x"}).encode()

PLAIN = {
    "json": post(SEND),
    "json with a charset": post(SEND, "application/json; charset=utf-8"),
    "form": post(b"data=x", "application/x-www-form-urlencoded"),
    "query": request_bytes("GET", "/send?data=x"),
    "post without a body": post(b"", target="/send?data=x"),
    "long": post(json.dumps({"data": "x" * (MAX_BODY_BYTES - 100)}).encode()),
    "info": request_bytes("GET", "/info"),
}
OTHER = {
    "multipart": post(
        b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nx\r\n--b--\r\n', 'multipart/form-data; boundary="b"'
    ),
    "lines": post(SEND + b"\n", "application/x-ndjson"),
    "too long to wait for": post(json.dumps({"data": "x" * MAX_BODY_BYTES}).encode()),
    "another spelling of the type": post(SEND, "Application/JSON"),
    "another spelling of the path": request_bytes("GET", "/s%65nd?data=x"),
    "chunked": b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"d\r\n" + SEND + b"\r\n0\r\n\r\n",
    "page": request_bytes("GET", "/"),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("pieces", [1, 2, 5])
async def test_a_plain_request_is_answered_without_aiohttps_handlers(
    served: ServedBroker, kind: str, pieces: int
) -> None:
    request = PLAIN[kind]
    head_length = request.index(b"\r\n\r\n") + 4
    async with RawConnection(served.port) as connection:
        for _ in range(3):
            await connection.send(request[: head_length + 1])
            rest = request[head_length + 1 :]
            for start in range(0, len(rest), max(1, len(rest) // pieces)):
                await asyncio.sleep(0)
                await connection.send(rest[start : start + max(1, len(rest) // pieces)])
            answer = await connection.answer(request[:4].decode().strip())
            assert answer.status == 200
        assert not went_to_aiohttp(served)


@pytest.mark.parametrize("kind", OTHER)
async def test_any_other_request_is_aiohttps(served: ServedBroker, kind: str) -> None:
    request = OTHER[kind]
    async with RawConnection(served.port) as connection:
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).status == 200
        assert not went_to_aiohttp(served)
        await connection.send(request)
        assert (await connection.answer(request[:4].decode().strip())).status == 200
        assert went_to_aiohttp(served)
        # And it goes on from there.
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nabcde",
        b"POST /send HTTP/1.1\r\nContent-Length : 5\r\nHost: x\r\n\r\nabcde",
        b"GET /info HTTP/1.1\r\n\r\n",
        b"GET /info HTTP/1.1\nHost: x\nA: b\r\rc\n\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_connection_closed(served: ServedBroker, request_: bytes) -> None:
    async with RawConnection(served.port) as connection:
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).status == 200
        await connection.send(request_)
        answer = await asyncio.wait_for(connection.reader.read(), 5)
        assert re.match(rb"HTTP/1\.\d 400 ", answer)
        assert answer.count(b"\nServer: ") == 1


class SlowBackend(MemoryBackend):
    """Publishes when it is let."""

    def __init__(self) -> None:
        super().__init__(max_frames=10, expire_seconds=100)
        self.may_publish = asyncio.Event()
        self.publishing = 0

    async def publish(self, messages: Sequence[Message]) -> list[Sent]:
        """Publish, late."""
        self.publishing += 1
        await self.may_publish.wait()
        return await super().publish(messages)


ORIGIN = "Origin: https://a\r\n"
ALIKE = [
    f"GET /info HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n{ORIGIN}\r\n",
    "GET /info?uid=a HTTP/1.1\r\nHost: x\r\nOrigin: https://b\r\nAuthorization: Bearer key\r\n\r\n",
    "GET /info?uid=a&device=b HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n\r\n",
    "GET /send HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n\r\n",
    "GET /send?data=%FF HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n\r\n",
    "GET /send?data=\xe4 HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n\r\n",
    f"GET /send?data=x HTTP/1.1\r\nHost: x\r\n{ORIGIN}\r\n",
    "GET /send?data=x HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: k\xe4y\r\n\r\n",
    "GET /events HTTP/1.1\r\nHost: x\r\nOrigin: https://b\r\n\r\n",
    f"GET /events?device=d HTTP/1.1\r\nHost: x\r\n{ORIGIN}\r\n",
    "GET /events?device=d&token=a.b.c HTTP/1.1\r\nHost: x\r\nLast-Event-ID: x\r\n\r\n",
    "POST /events?device=d HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /kick HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-SSE-API-Key: key\r\n\r\n",
    "PUT /kick HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\n\r\n",
    "OPTIONS /send HTTP/1.1\r\nHost: x\r\nOrigin: https://a\r\n\r\n",
    "HEAD /info HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\nConnection: close\r\n\r\n",
    "POST /send HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\nContent-Length: 3\r\n\r\na=b",
    "POST /send HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\nContent-Length: 0\r\n\r\n",
    *(
        f"POST /send HTTP/1.1\r\nHost: x\r\nX-SSE-API-Key: key\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8")
        for body in ('{"data": 1}', "[]", "{", "data=1", "data=%f0", "data=\xff", '{"data": "x", "device": ["a", 5]}', "{\"data\": NaN}")
    ),
]  # fmt: skip


async def _raw_answer(broker: ServedBroker, request: bytes) -> bytes:
    """Return an answer as it came, without what time makes of it."""
    async with RawConnection(broker.port) as connection:
        await connection.send(request)
        if request.startswith(b"HEAD"):
            data = await asyncio.wait_for(connection.reader.read(), 5)
        else:
            data = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), 5)
            if length := re.search(rb"Content-Length: (\d+)", data):
                data += await asyncio.wait_for(connection.reader.readexactly(int(length[1])), 5)
    data = re.sub(rb"Date: [^\r]*", b"Date: now", data)
    micro = re.search(rb'"micro": \d+', data)
    return re.sub(rb"Content-Length: \d+", b"Content-Length: ?", data.replace(micro[0], b"") if micro else data)


async def test_both_ways_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status line, headers in their order, and body, for good requests and bad ones; also when their heads are known."""
    config = {"server": {"cors_origins": ("https://a",)}, "api": {"keys": ("key",)}}
    async with ServedBroker(config) as short:
        monkeypatch.setattr(ServedBroker, "short_way", False)
        async with ServedBroker(config) as long:
            for text in ALIKE:
                request = text.encode("latin-1")
                read = [await _raw_answer(broker, request) for broker in (short, long, short)]
                for broker in (short, long):
                    read = [one.replace(broker.address.encode(), b"here") for one in read]
                first, second, again = (re.sub(rb'"start_time": "[^"]*"', b"", one) for one in read)
                assert first == second == again, text


async def test_pipelined_requests_are_answered_in_order(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).result == 0
        await connection.send(PLAIN["json"] + request_bytes("GET", "/token?uid=u") + PLAIN["form"] + OTHER["lines"])
        for check in (0, None, 0, [0]):
            answer = await connection.answer("POST")
            assert answer.status == 200
            assert answer.result == check or check is None


async def test_what_comes_behind_a_request_in_work_waits(on_slow_backend: SlowServed) -> None:
    """One request after the other, though the first must wait and the next is aiohttp's."""
    broker, backend = on_slow_backend
    async with RawConnection(broker.port) as connection:
        await connection.send(PLAIN["json"])
        await until(lambda: backend.publishing, what="publishing")
        await connection.send(request_bytes("GET", "/token?uid=u"))
        await connection.send(OTHER["multipart"] + PLAIN["form"])
        async with RawConnection(broker.port) as other:
            await other.send(request_bytes("GET", "/info"))
            assert (await other.answer("GET")).status == 200
        assert backend.publishing == 1
        backend.may_publish.set()
        assert (await connection.answer("POST")).result == 0
        assert isinstance((await connection.answer("POST")).result, str)
        assert [(await connection.answer("POST")).result for _ in range(2)] == [0, 0]


async def test_a_client_that_sends_without_end_behind_a_request_is_paused(on_slow_backend: SlowServed) -> None:
    broker, backend = on_slow_backend
    async with RawConnection(broker.port) as connection:
        await connection.send(PLAIN["json"])
        await until(lambda: backend.publishing, what="publishing")
        request = request_bytes("GET", "/token?uid=u&padding=" + "x" * 8000)
        count = 6 * MAX_BEHIND_BYTES // len(request)
        connection.writer.write(request * count)
        (door,) = broker.http.hall.doors
        await until(lambda: sum(map(len, door._behind)) > MAX_BEHIND_BYTES, what="much behind")
        for _ in range(50):
            await asyncio.sleep(0)
        assert sum(map(len, door._behind)) < 5 * MAX_BEHIND_BYTES
        backend.may_publish.set()
        for _ in range(1 + count):
            assert (await connection.answer("GET")).status == 200


async def test_pieces_behind_a_request_are_counted_once_each(on_slow_backend: SlowServed) -> None:
    """Counting them all at each would be quadratic: minutes for as many bytes as may wait, sent one by one."""

    class Piece(bytes):
        looks = 0

        def __len__(self) -> int:
            Piece.looks += 1
            return super().__len__()

    broker, backend = on_slow_backend
    async with RawConnection(broker.port) as connection:
        await connection.send(PLAIN["json"])
        await until(lambda: backend.publishing, what="publishing")
        (door,) = broker.http.hall.doors
        request = request_bytes("GET", "/token?uid=u&padding=" + "x" * 500)
        for at in range(len(request)):
            door.data_received(Piece(request[at : at + 1]))
        assert Piece.looks == len(request)
        backend.may_publish.set()
        for _ in range(2):
            assert (await connection.answer("POST")).status == 200


@pytest.mark.parametrize("abrupt", [False, True])
async def test_a_client_that_leaves_before_its_answer_hurts_nobody(on_slow_backend: SlowServed, abrupt: bool) -> None:
    broker, backend = on_slow_backend
    async with RawConnection(broker.port) as connection:
        await connection.send(PLAIN["json"])
        await until(lambda: backend.publishing, what="publishing")
        await connection.close(abrupt=abrupt)
    await until(lambda: not broker.connection_count() or len(broker.http.hall.doors) == 0, what="gone")
    backend.may_publish.set()
    await until(lambda: not broker.http.hall.works, what="the work's end")


async def test_the_end_of_the_server_waits_for_an_answer(on_slow_backend: SlowServed) -> None:
    broker, backend = on_slow_backend
    async with RawConnection(broker.port) as connection, RawConnection(broker.port) as idle:
        await connection.send(PLAIN["json"])
        await until(lambda: backend.publishing and len(broker.http.hall.doors) >= 2, what="publishing")
        closing = asyncio.create_task(broker.http.close())
        assert await idle.ended()
        backend.may_publish.set()
        answer = await connection.answer("POST")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await connection.ended()
        await closing


async def test_connection_close_is_obeyed(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        await connection.send(post(SEND, "application/json", "Connection: close"))
        answer = await connection.answer("POST")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await connection.ended()


async def test_a_client_that_reads_no_answer_is_read_no_further(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        (door,) = await until(lambda: list(served.http.hall.doors)[-1:], what="the door")
        door.pause_writing()  # as the transport does when answers pile up
        await connection.send(PLAIN["json"])
        async with RawConnection(served.port) as other:
            await other.send(PLAIN["query"])
            assert (await other.answer("GET")).status == 200
        door.data_received(PLAIN["query"])  # what was read already
        assert door.work is None
        door.resume_writing()
        assert [(await connection.answer("POST")).status for _ in range(2)] == [200, 200]


async def test_a_connection_that_is_silent_for_long_is_closed(
    served: ServedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RawConnection(served.port) as silent, RawConnection(served.port) as other:
        await until(lambda: len(served.http.hall.doors) >= 2, what="two connections")
        await other.send(PLAIN["query"])
        assert (await other.answer("GET")).status == 200
        monkeypatch.setattr("sse_broker.http_server.KEEPALIVE_SECONDS", -1.0)
        served.http._sweep()
        assert await silent.ended()


async def test_a_send_goes_out_before_its_answer_without_a_task(served: ServedBroker) -> None:
    async with served.client("u", "d") as client, RawConnection(served.port) as connection:
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).result == 1
        before = asyncio.all_tasks()
        await connection.send(PLAIN["json"])
        assert (await connection.answer("POST")).result == 1
        assert asyncio.all_tasks() == before
        assert [(await client.next_frame()).data for _ in range(2)] == ["x", "x"]


@pytest.mark.parametrize("kind", [*PLAIN, *OTHER])
async def test_a_request_may_begin_in_the_packet_of_the_one_before(served: ServedBroker, kind: str) -> None:
    """Wherever it is cut, and whichever way it goes."""
    request = (PLAIN | OTHER)[kind]
    for cut in (1, 5, request.index(b"\r\n\r\n") + 2, len(request) - 1):
        async with RawConnection(served.port) as connection:
            await connection.send(PLAIN["json"] + request[:cut])
            assert (await connection.answer("POST")).status == 200
            await connection.send(request[cut:])
            assert (await connection.answer(request[:4].decode().strip())).status == 200, cut
