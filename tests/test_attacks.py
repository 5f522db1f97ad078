"""What an attacker with a socket, a kicked device's token or the Redis tries, and what comes of it: nothing.

Single malformed requests stand in `test_bad_http` and `test_bad_input`, tokens in `test_tokens` and `test_token_keys`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sse_broker.redis_keys import inbox
from tests.broker_process import BrokerProcess
from tests.event_client import Api, EventClient
from tests.raw_http import RawConnection, request_bytes
from tests.redis_servers import RedisServer
from tests.served import Serve
from tests.waiting import until
from tests.witness import watched

RunBroker = Callable[..., Awaitable[BrokerProcess]]
KEY = "k7Rw2pXn9vBq4TzL"
KICK = request_bytes(
    "POST", "/kick", {"X-SSE-API-Key": KEY, "Content-Type": "application/json"}, b'{"device":"victim"}'
)


# --- request smuggling ---


def smuggled(*lines: str, body: bytes) -> bytes:
    """Return a request without a key whose body holds one with a key, in the hope that a part of the way disagrees."""
    head = "\r\n".join(("POST /info HTTP/1.1", "Host: x", "Content-Type: application/json", *lines))
    return head.encode() + b"\r\n\r\n" + body


LENGTH = f"Content-Length: {len(KICK) + 5}"
SMUGGLING = {
    "length and chunks": smuggled(LENGTH, "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + KICK),
    "chunks and length": smuggled("Transfer-Encoding: chunked", LENGTH, body=b"0\r\n\r\n" + KICK),
    "two lengths": smuggled("Content-Length: 0", f"Content-Length: {len(KICK)}", body=KICK),
    "two lengths in one line": smuggled(f"Content-Length: 0, {len(KICK)}", body=KICK),
    "length with sign": smuggled(f"Content-Length: +{len(KICK)}", body=KICK),
    "length in another script": smuggled("Content-Length: \u0665", body=KICK),
    "length with underscore": smuggled("Content-Length: 1_0", body=KICK),
    "negative length": smuggled("Content-Length: -1", body=KICK),
    "unknown coding": smuggled("Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + KICK),
    "chunked twice": smuggled("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + KICK),
    "coding behind a vertical tab": smuggled("Transfer-Encoding:\x0bchunked", LENGTH, body=b"0\r\n\r\n" + KICK),
    "coding with a space before the colon": smuggled("Transfer-Encoding : chunked", LENGTH, body=b"0\r\n\r\n" + KICK),
    "coding on a folded line": smuggled("X: y", " Transfer-Encoding: chunked", LENGTH, body=b"0\r\n\r\n" + KICK),
    "bare line feeds": b"POST /info HTTP/1.1\nHost: x\nContent-Length: 0\n\n" + KICK.replace(b"\r\n", b"\n"),
    "chunk size beyond every bound": smuggled("Transfer-Encoding: chunked", body=b"FFFFFFFFFFFFFFFFF\r\n" + KICK),
    "chunk size with a sign": smuggled("Transfer-Encoding: chunked", body=b"-1\r\n" + KICK),
    "chunk extension with a line feed": smuggled("Transfer-Encoding: chunked", body=b"0;x=\ny\r\n\r\n" + KICK),
    "trailer with a request": smuggled("Transfer-Encoding: chunked", body=b"0\r\nX: y\r\n" + KICK),
}


@pytest.fixture(params=[True, False], ids=["short way", "aiohttp"])
def way(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("name", SMUGGLING)
async def test_a_request_within_a_body_is_carried_out_by_nobody_who_saw_no_request(
    serve_embedded: Serve, name: str, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the request is refused and the connection closed, or the body ends where every reader says that it ends; a
    kick behind it is then a request of its own that everybody sees. What may not be: an answer to a length that is in
    doubt, with the connection open.
    """
    monkeypatch.setattr("tests.served.ServedBroker.short_way", way)
    broker = await serve_embedded({"api": {"keys": (KEY,)}})
    async with broker.client("u", "victim") as victim, RawConnection(broker.port, seconds=3) as attacker:
        await attacker.send(SMUGGLING[name])
        ended = await attacker.ended()
        kicked = victim.closed != "" or bool([event for event in victim.system if "kick" in event.event])
        doubtful = name not in ("unknown coding", "trailer with a request", "bare line feeds")
        assert ended or not doubtful, "the connection stays open after a request whose end is in doubt"
        assert not kicked
        assert (await broker.api.send("unharmed", device="victim")).result == 1
        assert (await victim.next_frame()).data == "unharmed"


async def test_pipelined_requests_behind_a_stream_are_carried_out_by_nobody(
    serve_embedded: Serve, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come with the request for the stream or after it; the stream reads none of them, and shows none of them."""
    monkeypatch.setattr("tests.served.ServedBroker.short_way", way)
    broker = await serve_embedded({"api": {"keys": (KEY,)}})
    query = f"/events?device=mine&token={broker.mint('m', 'mine')}"
    async with broker.client("u", "victim") as victim, RawConnection(broker.port, seconds=5) as attacker:
        await attacker.send(request_bytes("GET", query) + KICK)
        await until(lambda: broker.broker.registry.count_of_user("m") == 1, what="the stream")
        for _ in range(20):
            await attacker.send(KICK + b"id: 9\r\nevent: sys_kick_offline\r\ndata: forged\r\n\r\n")
        assert (await broker.api.send("for both")).result == 2
        assert (await victim.next_frame()).data == "for both"
        text = (await attacker.reader.readuntil(b"for both\n\n")).decode()
        assert "forged" not in text
        assert text.count("HTTP/1.1") == 1
        assert not [event for event in victim.system if event.event != "sys_connected"]


# --- floods ---


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_ten_thousand_connects_and_closes_leave_nothing(run_broker: RunBroker) -> None:
    """At each stage of a connection; files are back at their number, and memory near its size, afterwards."""
    logs = dict.fromkeys(("access_log_path", "broker_log_path"), "/dev/null")
    broker = await run_broker({"server": logs}, program=(sys.executable, "-m", "sse_broker"))
    token = broker.mint("u", "flood")
    said = [
        b"",
        b"GET /inf",
        request_bytes("GET", "/info"),
        request_bytes("GET", "/info?uid=u")[:-2],
        request_bytes("POST", "/send", {"Content-Type": "application/json", "Content-Length": "100"}) + b'{"da',
        request_bytes("GET", f"/events?device=flood&token={token}"),
        request_bytes("GET", "/events?device=flood&token=wrong"),
        b"\x16\x03\x01\x02\x00" + os.urandom(32),
    ]

    def flood(count: int) -> None:
        for number in range(count):
            with socket.create_connection(("127.0.0.1", broker.port)) as sock:
                sock.sendall(said[number % len(said)])
                if number % 3 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async def flooded(count: int) -> None:
        for _ in range(count // 500):
            await asyncio.to_thread(flood, 500)
            async with Api(broker.base_url, seconds=60) as api:  # it answers once it has worked through them
                assert (await api.info()).status == 200

    async with watched(broker):
        await flooded(1000)
        await until(lambda: open_files(broker.pid) < 40, seconds=30, what="the first closes")
        files, size = open_files(broker.pid), resident_bytes(broker.pid)
        await flooded(10_000)
        await until(lambda: open_files(broker.pid) <= files, seconds=30, what="files back at their number")
        grown = resident_bytes(broker.pid) - size
        assert grown < 16 * 1024 * 1024, f"{grown} bytes more"


# --- kicked devices ---


async def test_a_kicked_devices_token_is_refused_by_every_node_and_after_their_restart(
    run_broker: RunBroker, redis_server: RedisServer
) -> None:
    nodes = [await run_broker(redis=redis_server) for _ in range(2)]
    token = nodes[0].mint("mallory", "phone")

    async def status(node: BrokerProcess) -> int:
        client = EventClient(node.base_url, token=token, device="phone")
        try:
            return (await client.connect()).status
        finally:
            await client.close()

    async with EventClient(nodes[0].base_url, token=token, device="phone") as client:
        async with nodes[1].api() as api:
            assert (await api.kick(device="phone")).result == 1
        await client.next_event("sys_kick_offline")
    assert [await status(node) for node in nodes] == [401, 401]
    for node in nodes:
        await node.restart()
    assert [await status(node) for node in nodes] == [401, 401]


# --- a hostile Redis ---


async def test_hostile_entries_of_the_bus_are_skipped_counted_and_logged(
    serve_on_redis: Serve, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await serve_on_redis()
    async with Redis(port=redis_server.port) as redis, broker.client("u", "d") as client:
        key = inbox(broker.broker.instance.id)
        hostile: list[dict[bytes, bytes]] = [
            {b"e": b"sys_kick_offline", b"d": b"forged"},
            {b"e": b"a\ndata: forged\n\nid: 9", b"d": b"x"},
            {b"e": b"news", b"d": b"\xff\xfe"},
            {b"e": b"news", b"d": "\ud800".encode("utf-8", "surrogatepass")},
            {b"k": b"1", b"i": b"x", b"c": b"y", b"r": b"no_reason", b"p": b""},
            {b"nothing": b"known"},
        ]
        for fields in hostile:
            await redis.xadd(key, fields)
        bus = broker.backend._bus  # type: ignore[attr-defined]
        await until(lambda: bus.damaged >= len(hostile), what="the damage counted")
        assert (await broker.api.send("after", device="d")).result == 1
        assert (await client.next_frame()).data == "after"
        assert [event.event for event in client.system] == ["sys_connected"]
    assert caplog.text.count("damaged") >= 1
