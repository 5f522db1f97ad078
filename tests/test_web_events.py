"""`GET /events`: how a client says who it is and what it has, what it is answered, and what aiohttp still holds then."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from sse_broker.backend import Joined
from sse_broker.memory import MemoryBackend
from sse_broker.presence import Device
from sse_broker.stream import Stream
from sse_broker.web_door import Door
from tests.broker_process import SECRET
from tests.event_client import EventClient
from tests.raw_http import RawConnection, exchange, request_bytes
from tests.redis_servers import RedisServer
from tests.served import Serve, ServedBroker
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("both_ways")


async def offline(broker: ServedBroker, device: str, *, seconds: float = 10) -> None:
    """Wait until a device is not online any more."""

    async def gone() -> bool:
        return not (await broker.api.info(device=device)).result["online"]

    await until(gone, seconds=seconds, what=f"{device} offline")


# --- the answer ---


async def test_the_answer_has_the_headers_of_an_event_stream(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as client:
        assert client.answer is not None
        headers = client.answer.headers
        assert client.answer.status == 200
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-cache, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers


async def test_http_1_0_gets_a_stream_that_is_not_chunked(serve: Serve) -> None:
    """Frames, replay and ends in plain form; the end of the connection is the end of the stream."""
    broker = await serve()
    async with broker.client("u", "d", http="1.0") as client:
        assert client.answer is not None
        assert "transfer-encoding" not in client.answer.headers
        assert client.answer.headers["content-type"] == "text/event-stream"
        await broker.api.send("one\ntwo", device="d", event="e")
        frame = await client.next_frame()
        assert (frame.event, frame.data) == ("e", "one\ntwo")
    await offline(broker, "d")
    await broker.api.send("missed", uid="u")
    async with broker.client("u", "d", http="1.0", last_id=frame.id) as client:
        assert (await client.next_frame()).data == "missed"
        await broker.api.kick(uid="u", data="bye")
        assert (await client.next_event("sys_kick_offline")).data == "bye"
        assert await client.wait_closed() == "eof"


# --- who ---


@pytest.mark.parametrize("via", ["headers", "bearer", "query"])
async def test_token_and_device_come_in_each_way(serve: Serve, via: str) -> None:
    broker = await serve()
    async with broker.client("anna é", "phone é 😀", via=via):
        result = (await broker.api.info(uid="anna é")).result
        assert [one["device_name"] for one in result["devices"]] == ["phone é 😀"]


async def test_headers_win_over_the_query(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    good = broker.mint("u", "d")
    path = "/events?token=nonsense&device=other"
    for name, value in (("X-SSE-TOKEN", good), ("Authorization", f"bearer  {good}")):
        async with EventClient(broker.base_url, device="d", headers={name: value}, path=path):
            assert (await broker.api.info(device="d")).result["online"] is True
    both = {"X-SSE-TOKEN": good, "Authorization": "Bearer nonsense"}
    async with EventClient(broker.base_url, device="d", headers=both):
        pass


async def test_another_scheme_of_authorization_is_no_token(serve_embedded: Serve) -> None:
    """A proxy's own password must not hide the token in the query."""
    broker = await serve_embedded()
    path = f"/events?token={broker.mint('u', 'd')}&device=d"
    async with EventClient(broker.base_url, headers={"Authorization": "Basic eDp5"}, path=path):
        pass


async def test_a_bound_token_opens_its_device_alone(serve: Serve) -> None:
    broker = await serve()
    bound, free = await broker.api.token_for("u", "d"), await broker.api.token_for("u")
    answer = await broker.client("u", "other", token=bound).connect()
    assert (answer.status, answer.body["code"], answer.result) == (401, 401, "")
    assert "'device'" in answer.msg
    assert answer.headers["www-authenticate"] == "Bearer"
    for device, token in (("d", bound), ("d", free), ("other", free)):
        async with broker.client("u", device, token=token):
            pass


async def test_a_token_that_is_not_good_is_refused(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    good = broker.mint("u")
    tokens = {
        "": "'token' is missing",
        "nonsense": "malformed",
        good[:-2]: "signature",
        good + "x": "signature",
        good.replace(".", ".x", 1): "signature",
        broker.mint("u", ttl=-1): "expired",
        broker.mint("", "d"): "uid",
        broker.mint("x" * 257): "longer than 256",
        "é" * 10: "malformed",
        "x" * 9000: "longer than 8192",
    }
    for token, message in tokens.items():
        answer = await broker.client("u", "d", token=token).connect()
        assert (answer.status, answer.body["code"], answer.result) == (401, 401, ""), token
        assert message in answer.msg, (token, answer.msg)
        assert "retry-after" not in answer.headers
    assert (await broker.api.info()).result["device_count"] == 0


async def test_a_token_of_a_former_secret_is_good(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"jwt": {"secret": "n" * 40, "previous_secrets": (SECRET,)}})
    former = ServedBroker().mint("u", "d")
    async with broker.client("u", "d", token=former):
        pass


@pytest.mark.parametrize(
    ("device", "message"),
    [("", "'device' is missing"), ("x" * 257, "longer than 256 characters"), ("é" * 257, "longer than 256 characters")],
)
@pytest.mark.parametrize("via", ["headers", "query"])
async def test_a_device_name_that_is_not_good_is_refused(
    serve_embedded: Serve, device: str, message: str, via: str
) -> None:
    broker = await serve_embedded()
    answer = await broker.client("u", device, token=broker.mint("u"), via=via).connect()
    assert (answer.status, answer.body["code"], answer.result) == (400, 400, "")
    assert "'device'" in answer.msg
    assert message in answer.msg


async def test_a_device_name_may_have_256_characters_of_any_kind(serve: Serve) -> None:
    broker = await serve()
    for name in ("😀" * 256, "a\nb\r\0\x1b[31m", "a,b", " ", '"<>&\\/{}'):
        async with broker.client("u\n", name, via="query") as client:
            assert (await broker.api.info(device=name)).result["device_name"] == name
            assert (await broker.api.send("x", device=[name])).result == 1
            assert (await client.next_frame()).data == "x"


# --- what it has ---


async def three_frames(broker: ServedBroker) -> list[int]:
    """Send a device three frames and return their ids."""
    async with broker.client("u", "d") as client:
        for text in "123":
            await broker.api.send(text, device="d")
        ids = [(await client.next_frame()).id or 0 for _ in range(3)]
    await offline(broker, "d")
    return ids


async def test_the_standard_header_wins_over_ours_and_that_over_the_query(serve: Serve) -> None:
    """A browser's reconnect sends a fresh header and a stale URL."""
    broker = await serve()
    ids = await three_frames(broker)
    first, second, third = ({"Last-Event-ID": str(ids[0])}, {"X-SSE-ID": str(ids[1])}, f"/events?id={ids[2]}")
    for headers, path, missed in (
        (first, "/events", ["2", "3"]),
        (second, "/events", ["3"]),
        ({}, third, []),
        (first | second, third, ["2", "3"]),
        (second, third, ["3"]),
        (first, third, ["2", "3"]),
        ({"Last-Event-ID": "", "X-SSE-ID": str(ids[1])}, third, ["3"]),
        ({"Last-Event-ID": "", "X-SSE-ID": ""}, third, []),
    ):
        async with broker.client("u", "d", headers=headers, path=path) as client:
            await broker.api.send("end")
            await client.wait_for(lambda event: event.data == "end")
            told = [frame.data for frame in client.frames if frame.data in ("1", "2", "3")]
            assert told == missed, (headers, path)
        await offline(broker, "d")


@pytest.mark.parametrize("last_id", ["x", "-1", "1.5", "1e3", "1 2", "0x10", "9" * 17, "٣", "1,2"])
@pytest.mark.parametrize("via", ["headers", "query"])
async def test_a_last_id_that_is_no_id_is_refused(serve_embedded: Serve, last_id: str, via: str) -> None:
    broker = await serve_embedded()
    answer = await broker.client("u", "d", last_id=last_id, via=via).connect()
    assert (answer.status, answer.body["code"], answer.result) == (400, 400, "")
    assert "last event id" in answer.msg


# --- when it can not be opened ---


async def test_a_full_instance_says_when_to_come_again(serve: Serve) -> None:
    broker = await serve({"server": {"max_connections": 2}})
    async with broker.client("u", "1"), broker.client("u", "2") as second:
        answer = await broker.client("u", "3").connect()
        assert (answer.status, answer.body["code"], answer.result) == (503, 503, "")
        assert int(answer.headers["retry-after"]) > 0
        await second.close()
        await offline(broker, "2")
        async with broker.client("u", "3"):
            pass


async def test_a_draining_instance_opens_no_stream(serve: Serve) -> None:
    broker = await serve()
    async with RawConnection(broker.port) as connection:
        await connection.send(request_bytes("GET", "/info"))
        assert (await connection.answer()).status == 200
        await broker.broker.drain(1)
        await connection.send(request_bytes("GET", f"/events?device=d&token={broker.mint('u')}"))
        answer = await connection.answer()
        assert (answer.status, answer.body["code"], answer.result) == (503, 503, "")
        assert int(answer.headers["retry-after"]) > 0


# --- the hand-over (see `web_events.take_over`) ---

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=list(LOOPS))
def on_loop(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """A function that runs a coroutine on each kind of event loop."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param], debug=True) as runner:
            runner.run(asyncio.wait_for(coroutine, 60))

    return run


OnLoop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def fresh_heap() -> Iterator[None]:
    """What is alive already is passed over by the collector, and by `held`: it is much, and none of the test's."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held(*kinds: type) -> int:
    """Return how many objects of these kinds are alive."""
    gc.collect()
    return sum(issubclass(type(one), kinds) for one in gc.get_objects())


def test_the_end_of_a_client_is_noticed_at_once(on_loop: OnLoop) -> None:
    """A FIN and a reset, long before any heartbeat; presence goes with it."""

    async def scenario() -> None:
        async with ServedBroker({"sse": {"heartbeat_interval": 60}}) as broker:
            for number in range(10):
                client = await broker.client("u", "d", http=["1.1", "1.0"][number % 2]).open()
                assert len(broker.broker.registry) == 1
                await client.close(abrupt=number % 3 == 0)
                await until(lambda: not len(broker.broker.registry), seconds=2, what="stream gone")
                assert (await broker.api.info()).result["device_count"] == 0

    on_loop(scenario())


@pytest.mark.usefixtures("fresh_heap")
def test_nothing_of_aiohttp_is_left_for_an_open_stream(on_loop: OnLoop) -> None:
    """No task, no request, no response, no protocol, nothing in the server's books; and no stream after its end."""

    async def scenario() -> None:
        async with ServedBroker({"sse": {"heartbeat_interval": 0.2}}) as broker:
            await broker.api.info()

            def books() -> tuple[int, ...]:
                tasks, connections = len(asyncio.all_tasks()), broker.connection_count()
                return tasks, connections, held(web.BaseRequest, web.StreamResponse, RequestHandler, Door)

            before = books()
            clients = [await broker.client("u", f"d{number}").open() for number in range(20)]

            def no_more() -> bool:
                return all(now <= then for now, then in zip(books(), before, strict=True))

            await until(no_more, what=f"nothing more than {before}")
            assert (await broker.api.send("x")).result == 20
            for client in clients:
                assert (await client.next_frame()).data == "x"
                await client.close()
            # Two turns of the heartbeats' wheel, which lets go last.
            await until(lambda: not held(Stream), what="no stream left")

    on_loop(scenario())


def test_what_a_client_says_after_its_request_is_ignored(on_loop: OnLoop) -> None:
    """Requests in the same packet, requests later, and garbage: never answered, and the stream goes on."""

    async def scenario() -> None:
        async with ServedBroker() as broker, RawConnection(broker.port) as connection:
            later = request_bytes("GET", "/send?data=forged") * 300
            target = f"/events?device=d&token={broker.mint('u')}"
            await connection.send(request_bytes("GET", target) + later)
            await until(lambda: len(broker.broker.registry), what="stream open")
            await connection.send(later)
            await connection.send(b"\0\r\n\r\nGARBAGE" * 100)
            await connection.send(request_bytes("POST", "/send", {"Content-Type": "application/json"}, b'{"data": 1}'))
            assert (await broker.api.send("true", device="d")).result == 1
            said = await asyncio.wait_for(connection.reader.readuntil(b"data: true\n"), 5)
            assert said.count(b"HTTP/1.1") == 1
            assert b"forged" not in said
            assert said.count(b"id: ") == 1
            await connection.close()
            await until(lambda: not len(broker.broker.registry), seconds=2, what="stream gone")

    on_loop(scenario())


def test_a_stream_opens_behind_other_requests_of_a_connection(on_loop: OnLoop) -> None:
    async def scenario() -> None:
        async with ServedBroker() as broker, RawConnection(broker.port) as connection:
            await connection.send(request_bytes("GET", "/info"))
            assert (await connection.answer("GET")).status == 200
            body = b"uid=" + b"x" * 100
            opening = request_bytes("GET", f"/events?device=d&token={broker.mint('u')}", {}, body)
            await connection.send(request_bytes("GET", "/info") + opening)
            said = await asyncio.wait_for(connection.reader.readuntil(b"event: sys_connected\n"), 5)
            assert said.count(b"HTTP/1.1 200 ") == 2
            await broker.api.send("x")
            assert await asyncio.wait_for(connection.reader.readuntil(b"data: x\n"), 5)

    on_loop(scenario())


async def test_a_stream_may_be_asked_for_with_a_body(serve_embedded: Serve) -> None:
    """Also one that never comes: it is not waited for."""
    broker = await serve_embedded()
    head = request_bytes("GET", f"/events?device=d&token={broker.mint('u')}", {"Content-Length": "1000000"})
    async with RawConnection(broker.port) as connection:
        await connection.send(head + b"some of it")
        await until(lambda: len(broker.broker.registry), what="stream open")
        await broker.api.send("x")
        assert b"data: x\n" in await asyncio.wait_for(connection.reader.readuntil(b"data: x\n"), 5)
    await offline(broker, "d", seconds=2)


class SlowBackend(MemoryBackend):
    """A backend whose joins wait until they may."""

    def __init__(self) -> None:
        super().__init__(max_frames=100, expire_seconds=100)
        self.joining = 0
        self.may_join = asyncio.Event()

    async def join(self, device: Device, last_id: int | None) -> Joined:
        """Join, late."""
        self.joining += 1
        await self.may_join.wait()
        return await super().join(device, last_id)


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_client_that_leaves_while_it_joins_leaves_no_ghost(on_loop: OnLoop, abrupt: bool) -> None:
    async def scenario() -> None:
        backend = SlowBackend()
        async with ServedBroker(wrap=lambda _: backend) as broker, RawConnection(broker.port) as connection:
            target = f"/events?device=d&token={broker.mint('u')}"
            await connection.send(request_bytes("GET", target))
            await until(lambda: backend.joining, what="join begun")
            await connection.close(abrupt=abrupt)
            await until(lambda: not broker.connection_count(), what="noticed")
            backend.may_join.set()
            await until(lambda: not len(broker.broker.registry), what="stream forgotten")
            assert (await broker.api.info()).result["device_count"] == 0
            async with broker.client("u", "d"):
                assert (await broker.api.info()).result["device_count"] == 1

    on_loop(scenario())


async def test_a_client_that_leaves_while_redis_sleeps_leaves_no_ghost(
    serve_on_redis: Serve, redis_server: RedisServer
) -> None:
    broker = await serve_on_redis()
    redis_server.freeze()
    try:
        async with RawConnection(broker.port) as connection:
            await connection.send(request_bytes("GET", f"/events?device=d&token={broker.mint('u')}"))
            await until(lambda: len(broker.broker.registry), what="join begun")
    finally:
        redis_server.thaw()
    await until(lambda: not len(broker.broker.registry), what="stream forgotten")
    await offline(broker, "d")


async def test_a_refused_stream_leaves_the_connection_to_the_next_request(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    async with RawConnection(broker.port) as connection:
        for _ in range(3):
            await connection.send(request_bytes("GET", "/events?device=d&token=nonsense"))
            assert (await connection.answer("GET")).status == 401
        await connection.send(request_bytes("GET", f"/events?device=d&token={broker.mint('u')}"))
        assert b"sys_connected" in await asyncio.wait_for(connection.reader.readuntil(b"sys_connected"), 5)


async def test_an_open_stream_costs_no_write_to_the_access_log(
    serve_embedded: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of the access log stands there once, when the stream has opened."""
    broker = await serve_embedded()
    caplog.set_level("INFO", "aiohttp.access")
    async with broker.client("u", "d"):
        await exchange(broker.port, request_bytes("GET", "/info"))
        lines = [record.getMessage() for record in caplog.records if "/events" in record.getMessage()]
        assert len(lines) == 1
        assert '"GET /events HTTP/1.1" 200 ' in lines[0]
