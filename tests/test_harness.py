"""The harness itself: the client reads strictly, servers die and come back. Checked against a stub, not the broker."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from tests.broker_process import BrokerProcess
from tests.devices import Device
from tests.event_client import Api, EventClient
from tests.event_parser import Event, EventParser, StreamViolation
from tests.history import End, decide
from tests.recorder import Recorder
from tests.redis_servers import Access, RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.waiting import free_port, port_is_free, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD_10 = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CONNECTED = b"event: sys_connected\ndata: 127.0.0.1:1\nretry: 1000\n\n"


def chunk(data: bytes) -> bytes:
    """Return one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def stub() -> AsyncIterator[Callable[[Script], Awaitable[str]]]:
    """A function that serves a script (request head, reader, writer) and gives its URL."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(script: Script) -> str:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            tasks.add(task)
            try:
                await script(await reader.readuntil(b"\r\n\r\n"), reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(run, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield serve
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# The parser


def parse(stream: bytes) -> list[Event]:
    return EventParser().feed(stream)


def test_each_line_end_ends_a_line_and_data_lines_are_joined() -> None:
    stream = b"\xef\xbb\xbfid: 7\rdata: a\r\ndata:b\n\r\nevent: x\ndata:\n\n: note\ndata:  y: z\n\n"
    first, second, third = parse(stream)
    assert first == Event(id=7, data="a\nb")
    assert second == Event(event="x", data="")
    assert third == Event(data=" y: z", comments=("note",))


def test_a_block_without_data_has_none() -> None:
    assert parse(b"retry: 5\n\n: only a comment\n\n") == [Event(retry=5)]


def test_unicode_line_separators_do_not_end_lines() -> None:
    (event,) = parse("data: a\u2028b\x85c\x0bd\x00e\n\n".encode())
    assert event.data == "a\u2028b\x85c\x0bd\x00e"


FORBIDDEN = [b"nonsense: 1\n\n", b" data: x\n\n", b"id: 1\nid: 2\n\n", b"event: a\nevent: b\ndata:\n\n"]
FORBIDDEN += [b"id: 01\n\n", b"id: x\n\n", b"id:\n\n", b"id: 1\x00\n\n", b"retry: -1\n\n"]
FORBIDDEN += [b"data: \xff\n\n", b"data: \xed\xa0\x80\n\n"]
PIECES = [b"id: 3\n", b"data: \xc3\xa9\r\n", b"data:\r", b"data: e\r", b"\n", b"\r\n\r\n", b":c\n"]


@pytest.mark.parametrize("stream", FORBIDDEN)
def test_the_parser_refuses_what_a_broker_must_never_write(stream: bytes) -> None:
    with pytest.raises(StreamViolation):
        parse(stream)


@given(st.lists(st.sampled_from(PIECES)), st.data())
def test_the_parser_does_not_care_where_the_bytes_are_cut(pieces: list[bytes], data: st.DataObject) -> None:
    stream = re.sub(rb"(id: 3\n)+", b"id: 3\n", b"".join(pieces))
    try:
        whole = parse(stream)
    except StreamViolation:
        return
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, found = EventParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert found == whole


# The client


async def test_the_client_reads_chunks_however_they_fall(stub: Callable[[Script], Awaitable[str]]) -> None:
    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"GET /events HTTP/1.1" in head
        assert b"X-SSE-TOKEN: t\r\n" in head
        assert b"Last-Event-ID: 4\r\n" in head
        answer = (
            HEAD + chunk(CONNECTED + b"id: 5\nda") + chunk(b"ta: x\n\n:heartbeat\n\nid: 6\ndata: \n\n") + b"0\r\n\r\n"
        )
        for start in range(len(answer)):
            writer.write(answer[start : start + 1])
            await asyncio.sleep(0)

    async with EventClient(await stub(script), token="t", device="d", last_id=4) as client:
        assert await client.next_event() == Event(event="sys_connected", data="127.0.0.1:1", retry=1000)
        assert (await client.next_frame()).data == "x"
        assert await client.next_event() == Event(id=6, data="")
        assert await client.wait_closed() == "clean"
    assert [frame.id for frame in client.frames] == [5, 6]
    assert len(client.system) == client.heartbeats == 1
    assert client.last_id == 6


async def test_the_client_tells_how_a_stream_ended(stub: Callable[[Script], Awaitable[str]]) -> None:
    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        old = b"HTTP/1.0\r\n" in head
        writer.write(HEAD_10 + CONNECTED if old else HEAD + chunk(CONNECTED))
        kind = head.partition(b"X-Kind: ")[2].partition(b"\r\n")[0]
        await reader.read(1)
        if kind == b"reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif kind == b"clean":
            writer.write(b"0\r\n\r\n")
        elif kind == b"violation":
            writer.write(chunk(b"unknown: field\n"))
            await reader.read(1)

    url = await stub(script)
    for kind, http, end in (("reset", "1.1", "reset"), ("clean", "1.1", "clean"), ("eof", "1.1", "eof"),
                            ("eof", "1.0", "eof"), ("violation", "1.1", "violation")):  # fmt: skip
        async with EventClient(url, http=http, headers={"X-Kind": kind}) as client:
            client.send_bytes(b"x")
            assert await client.wait_closed() == end
            with pytest.raises(StreamViolation if kind == "violation" else AssertionError):
                await client.next_event("never")


async def test_an_answer_that_is_no_stream_is_read_to_its_end(stub: Callable[[Script], Awaitable[str]]) -> None:
    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 22\r\n\r\n")
        writer.write(b'{"code": 401,')
        await asyncio.sleep(0)
        writer.write(b' "msg":1}')

    client = EventClient(await stub(script))
    answer = await client.connect()
    await client.close()
    assert (answer.status, answer.body) == (401, {"code": 401, "msg": 1})


async def test_a_client_that_vanishes_acknowledges_nothing(stub: Callable[[Script], Awaitable[str]]) -> None:
    gone: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
    vanished = asyncio.Event()

    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(CONNECTED))
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        await vanished.wait()
        writer.write(chunk(b":heartbeat\n\n"))
        try:
            await reader.read()
        except OSError as error:
            gone.set_result(error)

    async with EventClient(await stub(script)) as client:
        client.vanish()
        vanished.set()
        assert isinstance(await asyncio.wait_for(gone, 10), TimeoutError)
        assert client.heartbeats == 0
        assert not client.closed


async def test_a_client_that_does_not_read_fills_the_buffers(stub: Callable[[Script], Awaitable[str]]) -> None:
    full = asyncio.Event()

    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(CONNECTED))
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        writer.write(chunk(b"id: 1\ndata: " + b"x" * 500_000 + b"\n\n"))
        assert writer.transport.get_write_buffer_size() > 300_000
        full.set()
        await reader.read(1)

    async with EventClient(await stub(script), receive_buffer_bytes=4096) as client:
        client.stop_reading()
        client.send_bytes(b"x")
        await asyncio.wait_for(full.wait(), 5)
        assert not client.frames
        client.resume_reading()
        assert len((await client.next_frame()).data or "") == 500_000


async def test_five_hundred_clients_at_once(stub: Callable[[Script], Awaitable[str]]) -> None:
    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(CONNECTED) + b"".join(chunk(b"id: %d\ndata: x\n\n" % number) for number in range(9)))
        await reader.read(1)

    url = await stub(script)
    clients = [EventClient(url, token="t", device=f"d{number}") for number in range(500)]
    try:
        await asyncio.gather(*(client.open(seconds=30) for client in clients))
        await until(lambda: all(len(client.frames) == 9 for client in clients))
    finally:
        await asyncio.gather(*(client.close() for client in clients))


# Waiting


async def test_until_says_what_it_waited_for() -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError, match="the moon"):
        await until(lambda: 0, seconds=0.1, what="the moon")
    with pytest.raises(AssertionError, match="hung"):
        await until(asyncio.Event().wait, seconds=0.1, what="a question without answer")
    assert time.monotonic() - start < 5


def test_free_ports_are_free() -> None:
    port = free_port(partner_offset=10_000)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port + 10_000)


# Redis


@pytest.mark.parametrize(
    "access", [Access(), Access(password="secret-1"), Access("app", "secret-2"), Access("app", "secret-3", tls=True)],
    ids=["open", "password", "user", "tls"],
)  # fmt: skip
async def test_a_server_keeps_its_data_over_restarts_when_asked(access: Access) -> None:
    async with RedisServer(access=access, persist=True) as server:
        await server.ask("SET", "key", "kept")
        await server.kill()
        assert port_is_free(server.port)
        await server.start()
        assert await server.ask("GET", "key") == "kept"
        await server.restart()
        assert await server.ask("GET", "key") == "kept"
        await server.flush()
        assert await server.ask("GET", "key") is None
        if access.password:
            async with server.client(password="wrong") as redis:
                with pytest.raises(RedisError):
                    await redis.ping()


async def test_a_frozen_server_answers_after_it_thaws() -> None:
    async with RedisServer() as server, server.client(socket_timeout=0.2) as redis:
        assert await redis.ping()
        server.freeze()
        with pytest.raises(RedisError):
            await redis.ping()
        server.thaw()
        await server.ready()
        assert await redis.ping()


async def test_cut_clients_cuts_them() -> None:
    async with RedisServer() as server, server.client() as redis:
        blocked = asyncio.ensure_future(redis.xread({"stream": "$"}, block=0))
        async with redis.pubsub() as listener:
            await listener.subscribe("channel")
            await until(lambda: server.ask("PUBSUB", "NUMSUB", "channel"))
            await until(lambda: _blocked(server), what="a blocked reader")
            assert await server.cut_clients() >= 2
        blocked.cancel()
        await asyncio.wait([blocked])


async def _blocked(server: RedisServer) -> bool:
    async with server.client() as redis:
        return bool((await redis.info("clients"))["blocked_clients"])


async def test_the_api_client_gives_status_and_json(stub: Callable[[Script], Awaitable[str]]) -> None:
    async def script(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"Authorization: Bearer k" in head
        writer.write(
            b"HTTP/1.1 503 No\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: 15\r\n\r\n"
        )
        writer.write(b'{"result": "r"}')

    async with Api(await stub(script), "k") as api:
        answer = await api.send("x", uid=["a"])
        assert (answer.status, answer.result, answer.headers["retry-after"]) == (503, "r", "1")


async def test_sentinels_promote_the_replica_of_a_killed_master() -> None:
    async with SentinelSet() as servers:
        old = await servers.master()
        assert (await servers.failover()).addr != old.addr
        await servers.heal()
        assert (await old.ask("ROLE"))[0] == "slave"


async def test_a_cluster_replaces_a_killed_master_and_moves_a_slot() -> None:
    async with RedisCluster() as cluster:
        async with cluster.client() as redis:
            for number in range(30):
                await redis.set(f"{{sse}}{number}", "kept")
        slot = await cluster.slot_of("{sse}")
        first = await cluster.owner(slot)
        second = await cluster.migrate_slot(slot)
        third = await cluster.failover(slot)
        assert len({first.addr, second.addr, third.addr}) == 3
        async with cluster.client() as redis:
            assert [await redis.get(f"{{sse}}{number}") for number in range(30)] == ["kept"] * 30
        await cluster.heal()
        await cluster.flush()
        async with cluster.client() as redis:
            assert await redis.get("{sse}1") is None


# Devices and the recorder, against a real broker


async def test_devices_come_back_and_the_recorded_run_is_good(
    run_broker: Callable[..., Awaitable[BrokerProcess]],
) -> None:
    broker = await run_broker({"sse": {"heartbeat_interval": 1}})
    devices = [Device(f"d{n}", f"u{n % 2}", [broker.base_url], broker.mint, draw=random.Random(n)) for n in range(6)]
    recorder = Recorder(devices)
    async with broker.api() as api:
        try:
            for device in devices:
                device.start()
            for step in range(40):
                device = devices[step % 6]
                await recorder.send(
                    api, users=["u0"] if step % 3 else (), devices=[device.name] if step % 3 == 2 else ()
                )
                if step % 4 == 1:
                    await until(partial(getattr, device, "connected"))
                    await (device.drop, partial(device.drop, abrupt=True), device.move, device.vanish)[step // 4 % 4]()
            await recorder.settle(api)
            history = recorder.history(presence_seconds=3, cache_frames=100)
            history.online_at_end = await recorder.online(api)
        finally:
            await recorder.stop()
    assert decide(history) == []
    assert {End.DROPPED, End.EXTRUDE, End.VANISHED} <= {session.end for session in history.sessions}
    resumed = [session for session in history.sessions if session.asked_id]
    assert any(session.frames for session in resumed)
    for session in resumed:
        session.frames.clear()
    assert {finding.kind for finding in decide(history)} == {"lost"}
