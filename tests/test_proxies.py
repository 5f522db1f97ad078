"""Behind nginx, HAProxy and Caddy, with the configurations of docs/proxies.md: what a browser sees through each of them."""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from sse_broker.config import Config
from tests.broker_process import BrokerProcess
from tests.event_client import Api, EventClient
from tests.http2_client import Http2Connection, Http2Stream
from tests.proxies import IDLE, PROXY, VANISHED, Proxy, block
from tests.redis_servers import RedisServer
from tests.waiting import until

KINDS = ["nginx", "haproxy", "caddy"]
# Clients have an address of their own, other than that of the proxies.
CLIENT, LIAR = "127.0.0.7", "203.0.113.9"
FORGED = {"X-Forwarded-For": LIAR, "X-Real-IP": LIAR, "Forwarded": f"for={LIAR}"}
# For what only time shows: the document's times, and the heartbeat, about thirty times as quick.
QUICK_HEARTBEAT, QUICK_IDLE_SECONDS = 0.5, 2
QUICK = {IDLE: f"{QUICK_IDLE_SECONDS}s", VANISHED: "1500"}
DEFAULT_HEARTBEAT = 15


def configuration(**sse: Any) -> dict[str, dict[str, Any]]:
    """Return what the document has brokers configured, for a proxy on 127.0.0.1."""
    assert tomllib.loads(block("toml"))["server"] == {"host": "0.0.0.0", "trusted_proxies": [PROXY]}
    return {"server": {"trusted_proxies": ["127.0.0.1"]}, "sse": sse}


async def each(brokers: list[BrokerProcess], call: Callable[[BrokerProcess], Awaitable[None]]) -> None:
    await asyncio.gather(*map(call, brokers))


@pytest.fixture(scope="module")
def brokers(module_redis_server: RedisServer) -> Iterator[list[BrokerProcess]]:
    """Two brokers on one Redis, with the default heartbeat, and a third that is quick and alone."""
    three = [BrokerProcess(configuration(), redis=module_redis_server) for _ in range(2)]
    three.append(BrokerProcess(configuration(heartbeat_interval=QUICK_HEARTBEAT)))
    try:
        asyncio.run(each(three, BrokerProcess.start))
        yield three
        asyncio.run(each(three, BrokerProcess.stop))
    finally:
        asyncio.run(each(three, BrokerProcess.discard))


@contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    """Start a proxy, and end it however the tests go."""
    try:
        asyncio.run(proxy.start())
        yield proxy
        assert proxy.process.running, proxy.logs()
    finally:
        asyncio.run(proxy.stop())


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, brokers: list[BrokerProcess]) -> Iterator[Proxy]:
    """Each proxy in front of the cluster of two."""
    with running(Proxy(request.param, [broker.address for broker in brokers[:2]])) as proxy:
        yield proxy


class Door:
    """How clients get to the brokers: through a proxy, over one version of HTTP. `broker` makes the tokens."""

    def __init__(self, proxy: Proxy, broker: BrokerProcess, http: str, stack: AsyncExitStack) -> None:
        self.proxy, self.broker, self.http, self._stack = proxy, broker, http, stack

    async def open(self, uid: str, device: str, **options: Any) -> EventClient | Http2Stream:
        """Open a stream; it is closed at the end of the test. `options`: those of both kinds of client."""
        options |= {"token": self.broker.mint(uid, device), "device": device}
        if self.http == "HTTP/1.1":
            client = EventClient(self.proxy.base_url, source_ip=CLIENT, tls=self.proxy.tls, **options)
            return await self._stack.enter_async_context(client)
        line = await self._stack.enter_async_context(Http2Connection(self.proxy.base_url, self.proxy.tls, CLIENT))
        return await self._stack.enter_async_context(Http2Stream(line, **options))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is closed at the end of a test."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def door(request: pytest.FixtureRequest, proxy: Proxy, brokers: list[BrokerProcess], stack: AsyncExitStack) -> Door:
    """Each version of HTTP through each proxy."""
    return Door(proxy, brokers[0], request.param, stack)


@pytest.fixture
async def api(brokers: list[BrokerProcess], stack: AsyncExitStack) -> Api:
    """The first broker itself."""
    return await stack.enter_async_context(brokers[0].api())


async def device_of(api: Api, device: str) -> dict[str, Any]:
    """Return what the cluster knows of a device."""
    result: dict[str, Any] = (await api.info(device=device)).result
    return result


async def offline(api: Api, device: str) -> bool:
    return not (await device_of(api, device))["online"]


async def test_each_frame_arrives_at_once(door: Door, api: Api) -> None:
    stream = await door.open("ann", "phone")
    delays = []
    for number in range(8):
        start = time.monotonic()
        assert (await api.send(f"frame {number}", uid="ann")).result == 1
        assert (await stream.next_frame(seconds=5)).data == f"frame {number}"
        delays.append(time.monotonic() - start)
    # A machine with other work may be late now and then; what waits for a full buffer or a timer is late each time.
    assert min(delays) < 0.03, delays


async def test_the_last_event_id_passes_and_what_was_missed_is_replayed(door: Door, api: Api) -> None:
    stream = await door.open("ann", "tablet")
    await api.send("seen", device="tablet")
    seen = await stream.next_frame()
    await stream.close()
    await api.send("missed", device="tablet")
    assert (await (await door.open("ann", "tablet", last_id=seen.id)).next_frame()).data == "missed"


async def test_the_address_is_the_clients_and_no_client_can_forge_it(door: Door, api: Api) -> None:
    for headers in ({}, FORGED, {"X-Real-IP": LIAR}, {"X-Forwarded-For": f"{LIAR}, 127.0.0.1"}):
        await door.open("ann", "laptop", headers=headers)
        assert (await device_of(api, "laptop"))["device_address"] == CLIENT, headers


async def test_who_is_no_proxy_is_not_believed(brokers: list[BrokerProcess], api: Api) -> None:
    async with brokers[0].client("ann", "liar", headers=FORGED, source_ip=CLIENT) as stream:
        assert stream.events[0].data == stream.address
        assert (await device_of(api, "liar"))["device_address"] == stream.address


async def test_a_client_that_leaves_is_offline_at_once(door: Door, api: Api) -> None:
    """Not only when the next heartbeat can't be written."""
    stream = await door.open("ann", "desk")
    assert (await device_of(api, "desk"))["online"]
    await stream.close()
    await until(lambda: offline(api, "desk"), seconds=DEFAULT_HEARTBEAT / 5, what="the device offline")


async def test_many_streams_share_one_http_2_connection(
    proxy: Proxy, brokers: list[BrokerProcess], api: Api, stack: AsyncExitStack
) -> None:
    """A browser opens six connections at most."""
    line = await stack.enter_async_context(Http2Connection(proxy.base_url, proxy.tls, CLIENT))
    streams = [Http2Stream(line, token=brokers[0].mint("ben"), device=f"tab {number}") for number in range(20)]
    await asyncio.gather(*map(stack.enter_async_context, streams))
    assert (await api.send("to all tabs", uid="ben")).result == 20
    assert {frame.data for frame in await asyncio.gather(*(one.next_frame() for one in streams))} == {"to all tabs"}


async def test_no_token_is_in_the_logs(proxy: Proxy, brokers: list[BrokerProcess], api: Api) -> None:
    token = brokers[0].mint("ann", "watch")
    async with EventClient(proxy.base_url, token=token, device="watch", via="query", tls=proxy.tls):
        pass
    if proxy.kind != "caddy":  # which writes no access log
        await until(lambda: " /events " in proxy.logs(), what="a line of the access log")
    assert "token=" not in proxy.logs()


@pytest.mark.parametrize("end", [BrokerProcess.terminate, BrokerProcess.kill])
async def test_a_broker_that_stops_or_dies_behind_it_costs_no_frame(
    proxy: Proxy, brokers: list[BrokerProcess], stack: AsyncExitStack, end: Callable[[BrokerProcess], Awaitable[Any]]
) -> None:
    """Each client that was on it comes back at once, through the same proxy, and is never answered anything but 200."""
    going, staying = brokers[:2]
    doors = [Door(proxy, going, http, stack) for http in ("HTTP/1.1", "HTTP/1.1", "HTTP/2", "HTTP/2")]
    api = await stack.enter_async_context(staying.api())
    streams: list[EventClient | Http2Stream] = []
    moving: list[int] = []

    async def both_have_some() -> bool:
        """Open the streams; after a broker's return it takes a moment until proxies trust it again."""
        streams[:] = [await door.open("cid", f"device {number}") for number, door in enumerate(doors)]
        homes = [(await device_of(api, f"device {number}"))["instance_address"] for number in range(4)]
        moving[:] = [number for number in range(4) if homes[number] == going.address]
        return {doors[number].http for number in moving} == {"HTTP/1.1", "HTTP/2"}

    await until(both_have_some, pause_seconds=0.2, what="streams of both kinds on the broker that is to end")
    assert (await api.send("before", uid="cid")).result == 4
    seen = [(await stream.next_frame()).id for stream in streams]
    await end(going)
    try:
        await api.send("meanwhile", uid="cid")
        for number in moving:
            await streams[number].wait_closed()
            back = await doors[number].open("cid", f"device {number}", last_id=seen[number])
            assert (await back.next_frame()).data == "meanwhile"
    finally:
        await going.start()


async def test_silent_streams_stay_open_and_haproxy_gives_up_who_vanished(
    brokers: list[BrokerProcess], stack: AsyncExitStack
) -> None:
    """Silent for longer than the proxy waits: heartbeats pass through it, and count. All at once, since it takes its time."""
    broker = brokers[2]
    proxies: dict[str, Proxy] = {}
    streams: list[EventClient | Http2Stream] = []
    for kind in KINDS:
        proxy = proxies[kind] = Proxy(kind, [broker.address] * 2, QUICK)
        stack.push_async_callback(proxy.stop)
        await proxy.start()
        doors = [Door(proxy, broker, http, stack) for http in ("HTTP/1.1", "HTTP/2")]
        streams += [await door.open("dan", f"{kind} {door.http}") for door in doors]
    vanished = await Door(proxies["haproxy"], broker, "HTTP/1.1", stack).open("eve", "far")
    first = streams[0]
    assert isinstance(first, EventClient)
    assert isinstance(vanished, EventClient)
    vanished.vanish()
    beats = round(1.7 * QUICK_IDLE_SECONDS / QUICK_HEARTBEAT)
    await until(lambda: first.heartbeats >= beats, what="heartbeats")
    assert first.heartbeat_times[beats - 1] - first.events[0].seen_at > 1.3 * QUICK_IDLE_SECONDS
    async with broker.api() as api:
        assert (await api.send("still there", uid="dan")).result == len(streams)
        assert {(await stream.next_frame()).data for stream in streams} == {"still there"}
        await until(lambda: offline(api, "far"), what="the device offline")


def test_the_times_are_more_than_two_heartbeats() -> None:
    assert int(IDLE[:-1]) > 2 * Config().sse.heartbeat_interval
    assert Config().sse.heartbeat_interval == DEFAULT_HEARTBEAT
    assert int(VANISHED[:-1]) == 3 * DEFAULT_HEARTBEAT
    assert VANISHED in block("haproxy")
