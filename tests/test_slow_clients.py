"""Clients that hold a connection and give nothing: slow heads, slow bodies, crowds. And those that are slow for a reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sse_broker.slow_clients import SlowClients
from tests.raw_http import RawConnection, request_bytes
from tests.served import ServedBroker
from tests.waiting import until


class Watched:
    """A broker with a look-out whose looks are the test's."""

    def __init__(self, broker: ServedBroker) -> None:
        self.broker = broker
        self.slow_clients = SlowClients(broker.http, broker.gate, broker.config.server.trusted_networks)
        self.ended = 0

    async def look_for(self, seconds: float) -> None:
        """Look again and again for so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            self.slow_clients.look()
            await asyncio.sleep(0.02)

    @property
    def closed(self) -> int:
        return self.broker.gate.counters.slow_clients


@pytest.fixture(params=[True, False], ids=["short way", "aiohttp"])
async def watch(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A function that serves a broker with these limits and looks after its connections."""
    brokers: list[ServedBroker] = []

    async def start(**limits: Any) -> Watched:
        given = {"head_seconds": 0.3, "body_seconds": 0.3, "exempt": ()} | limits
        broker = ServedBroker({"limits": given})
        broker.short_way = request.param
        brokers.append(broker)
        return Watched(await broker.__aenter__())

    yield start
    for broker in brokers:
        await broker.__aexit__(None, None, None)


@pytest.mark.parametrize("said", [b"", b"G", b"GET /info HTTP/1.1\r\n", b"GET /info HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"])
async def test_a_head_that_does_not_come_ends_the_connection(watch: Any, said: bytes) -> None:
    watched = await watch()
    async with RawConnection(watched.broker.port, seconds=5) as client:
        await client.send(said)
        await watched.look_for(0.6)
        assert await client.ended()
    assert watched.closed == 1


async def test_a_head_that_drips_ends_the_connection(watch: Any) -> None:
    """Slowloris: a byte now and then keeps no door open."""
    watched = await watch()
    async with RawConnection(watched.broker.port, seconds=5) as client:
        for byte in b"GET /info HTTP/1.1\r\nX-Padding: ":
            await client.send(bytes([byte]))
            await watched.look_for(0.04)
            if watched.closed:
                break
        assert watched.closed == 1
        assert await client.ended()


@pytest.mark.parametrize("length", [20, 200_000])
@pytest.mark.parametrize("path", ["/send", "/nowhere"])
async def test_a_body_that_stands_still_ends_the_connection(watch: Any, length: int, path: str) -> None:
    watched = await watch()
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    async with RawConnection(watched.broker.port, seconds=8) as client:
        await client.send(request_bytes("POST", path, headers) + b'{"data": ')
        await watched.look_for(0.8)
        assert await client.ended()
    if path == "/send":
        assert watched.closed == 1


async def test_a_body_that_moves_is_waited_for(watch: Any) -> None:
    watched = await watch(body_seconds=0.4)
    headers = {"Content-Type": "application/json", "Content-Length": "24"}
    async with RawConnection(watched.broker.port, seconds=5) as client:
        await client.send(request_bytes("POST", "/send", headers))
        for part in (b'{"da', b'ta":', b' "he', b"llo ", b"worl", b'd"}\n'):
            await client.send(part)
            await watched.look_for(0.2)
        assert (await client.answer()).status == 200
    assert watched.closed == 0


async def test_lines_that_stand_still_end_the_connection_and_what_came_was_sent(watch: Any) -> None:
    watched = await watch()
    headers = {"Content-Type": "application/x-ndjson", "Content-Length": "100000"}
    async with watched.broker.client("u", "d") as listener, RawConnection(watched.broker.port, seconds=8) as client:
        await client.send(request_bytes("POST", "/send", headers) + b'{"data": "one"}\n' * 128)
        assert (await listener.next_frame()).data == "one"
        await watched.look_for(0.8)
        assert await client.ended()
    assert watched.closed == 1


async def test_a_connection_that_waits_between_two_requests_is_left_alone(watch: Any) -> None:
    watched = await watch()
    async with RawConnection(watched.broker.port, seconds=5) as client:
        await client.send(request_bytes("GET", "/info"))
        assert (await client.answer("GET")).status == 200
        await watched.look_for(0.8)
        await client.send(request_bytes("GET", "/info"))
        assert (await client.answer("GET")).status == 200
    assert watched.closed == 0


async def test_a_stream_is_none_of_its_business(watch: Any) -> None:
    watched = await watch()
    async with watched.broker.client("u", "d") as client:
        await watched.look_for(0.8)
        await watched.broker.api.send("still here")
        assert (await client.next_frame()).data == "still here"
    assert watched.closed == 0


async def test_a_crowd_from_one_address_is_thinned_out_and_the_oldest_go_first(watch: Any) -> None:
    watched = await watch(head_seconds=60, connections_per_address=10)
    clients = [RawConnection(watched.broker.port, seconds=5) for _ in range(30)]
    try:
        for client in clients:
            await client.__aenter__()
            await watched.look_for(0.01)
        await until(lambda: watched.slow_clients.look() or watched.closed >= 20, what="the crowd's end")
        assert all(await asyncio.gather(*(client.ended() for client in clients[:15])))
        await clients[-1].send(request_bytes("GET", "/info"))
        assert (await clients[-1].answer("GET")).status == 200
        assert (await watched.broker.api.send("served")).status == 200
    finally:
        for client in clients:
            await client.close()


async def test_exempt_addresses_and_zero_have_no_limit(watch: Any) -> None:
    for limits in ({"exempt": ("127.0.0.0/8",), "connections_per_address": 2}, {"connections_per_address": 0}):
        watched = await watch(head_seconds=0, body_seconds=0, **limits)
        clients = [RawConnection(watched.broker.port) for _ in range(8)]
        try:
            for client in clients:
                await client.__aenter__()
            await watched.look_for(0.3)
            assert watched.closed == 0
        finally:
            for client in clients:
                await client.close()


async def test_nothing_is_remembered_of_connections_that_are_gone(watch: Any) -> None:
    watched = await watch()
    for _ in range(20):
        async with RawConnection(watched.broker.port) as client:
            await client.send(b"GET /")
            watched.slow_clients.look()

    def forgotten() -> bool:
        watched.slow_clients.look()
        return len(watched.slow_clients._known) <= 1  # the api's own

    await until(forgotten, what="the connections' end")


async def test_it_looks_by_itself_until_it_is_closed(watch: Any) -> None:
    watched = await watch()
    watched.slow_clients.start()
    async with RawConnection(watched.broker.port, seconds=10) as client:
        assert await client.ended()
    watched.slow_clients.close()
    assert watched.closed == 1
