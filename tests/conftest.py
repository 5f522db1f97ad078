"""Fixtures that several test modules share: real Redis servers, brokers, clients. They are ended whatever happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from sse_broker import redis_lane
from tests.backends import Servers, Site
from tests.broker_process import BrokerProcess
from tests.built import build, end_wine
from tests.cutting_proxy import CuttingProxy
from tests.event_client import EventClient
from tests.house import House, MakeHouse
from tests.lifetimes import started
from tests.machine import Machine
from tests.redis_servers import RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.served import Serve, ServedBroker
from tests.valkey import valkey_program
from tests.witness import watched

# How long one example takes says nothing on a machine that has other work too.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

# The mode of these processes; who starts a broker says whether it is that of the broker.
os.environ.pop("PYTHONDEVMODE", None)

# Files whose tests take the longest, in this order, so that they do not begin last.
LONGEST = (
    "test_exe",
    "test_bundle",
    "test_rpm",
    "test_container",
    "test_torture",
    "test_hygiene",
    "test_workers",
    "test_demo_page",
    "test_supply_chain",
    "test_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long; where several processes share the work, each file is one's (`make test`)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a skip fail in CI: what is missing there has to be installed. And have half surrogate pairs, which tests send and log,
    written as escapes: no process can tell another of them.
    """
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"in CI no test is skipped: {report.longrepr}"
    report.sections = [(name, _encodable(text)) for name, text in report.sections]
    if report.failed and (text := str(report.longrepr)) != (clean := _encodable(text)):
        report.longrepr = clean
    return report


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def module_redis_server() -> Iterator[RedisServer]:
    """One server for a module; tests take `redis_server`."""
    yield from started(RedisServer())


@pytest.fixture
async def redis_server(module_redis_server: RedisServer) -> RedisServer:
    """A running, empty Redis, alone; a test may freeze, kill or restart it."""
    module_redis_server.thaw()
    if not module_redis_server.running:
        await module_redis_server.start()
    await module_redis_server.flush()
    return module_redis_server


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[CuttingProxy]:
    """A way to the Redis of `redis_server` that can be cut."""
    async with CuttingProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def session_sentinel_set() -> Iterator[SentinelSet]:
    """One set for the session; tests take `sentinel_set`."""
    yield from started(SentinelSet())


@pytest.fixture
async def sentinel_set(session_sentinel_set: SentinelSet) -> SentinelSet:
    """A whole, empty set of a master, a replica and three Sentinels; a test may break it."""
    await session_sentinel_set.heal()
    await session_sentinel_set.flush()
    return session_sentinel_set


@pytest.fixture(scope="session")
def session_redis_cluster() -> Iterator[RedisCluster]:
    """One cluster for the session; tests take `redis_cluster`."""
    yield from started(RedisCluster())


@pytest.fixture
async def redis_cluster(session_redis_cluster: RedisCluster) -> RedisCluster:
    """A whole, empty Redis Cluster of three masters and three replicas; a test may break it."""
    await session_redis_cluster.heal()
    await session_redis_cluster.flush()
    return session_redis_cluster


@pytest.fixture(scope="session")
def session_valkey_server() -> Iterator[RedisServer]:
    """One Valkey for the session; tests take `valkey_server`."""
    yield from started(RedisServer(program=valkey_program()))


@pytest.fixture
async def valkey_server(session_valkey_server: RedisServer) -> RedisServer:
    """A running, empty Valkey, alone."""
    await session_valkey_server.flush()
    return session_valkey_server


@pytest.fixture(scope="session")
def session_valkey_sentinel_set() -> Iterator[SentinelSet]:
    """One set for the session; tests take `valkey_sentinel_set`."""
    yield from started(SentinelSet(program=valkey_program()))


@pytest.fixture
async def valkey_sentinel_set(session_valkey_sentinel_set: SentinelSet) -> SentinelSet:
    """A whole, empty set of Valkeys, a master and a replica, and three Sentinels of Valkey."""
    await session_valkey_sentinel_set.heal()
    await session_valkey_sentinel_set.flush()
    return session_valkey_sentinel_set


@pytest.fixture(scope="session")
def session_valkey_cluster() -> Iterator[RedisCluster]:
    """One cluster for the session; tests take `valkey_cluster`."""
    yield from started(RedisCluster(program=valkey_program()))


@pytest.fixture
async def valkey_cluster(session_valkey_cluster: RedisCluster) -> RedisCluster:
    """A whole, empty cluster of Valkeys, three masters and three replicas."""
    await session_valkey_cluster.heal()
    await session_valkey_cluster.flush()
    return session_valkey_cluster


@pytest.fixture
async def run_broker() -> AsyncIterator[Callable[..., Awaitable[BrokerProcess]]]:
    """A function that starts a broker, with the arguments of BrokerProcess; at the end each is stopped and checked."""
    brokers: list[BrokerProcess] = []

    async def run(*arguments: Any, **options: Any) -> BrokerProcess:
        broker = BrokerProcess(*arguments, **options)
        brokers.append(broker)
        await broker.start()
        return broker

    yield run
    problems = [error for error in await asyncio.gather(*(b.stop() for b in brokers), return_exceptions=True) if error]
    if problems:
        raise problems[0]


@pytest.fixture
async def open_stream() -> AsyncIterator[Callable[..., Awaitable[EventClient]]]:
    """A function that opens a stream, with the arguments of EventClient; each is closed at the end."""
    clients: list[EventClient] = []

    async def open_(*arguments: Any, **options: Any) -> EventClient:
        client = EventClient(*arguments, **options)
        clients.append(client)
        return await client.open()

    yield open_
    await asyncio.gather(*(client.close() for client in clients))


@pytest.fixture(params=["short way", "aiohttp's way"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test run with each of the two ways that a request may take through the HTTP server."""
    monkeypatch.setattr(ServedBroker, "short_way", request.param == "short way")


@pytest.fixture(params=["embedded", "redis"])
async def serve(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[Serve]:
    """A function that serves a broker within the test's process, on each backend, with the arguments of ServedBroker.

    Those of one test are one cluster on Redis. At the end each is stopped and its log looked at.
    """
    async with AsyncExitStack() as stack:

        async def start(*arguments: Any, **options: Any) -> ServedBroker:
            redis = redis_server if request.param == "redis" else None
            return await stack.enter_async_context(ServedBroker(*arguments, **{"redis": redis} | options))

        yield start


@pytest.fixture
async def serve_embedded() -> AsyncIterator[Serve]:
    """Like `serve`, without Redis."""
    async with AsyncExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_async_context(ServedBroker(*arguments, **options))


@pytest.fixture
async def serve_on_redis(redis_server: RedisServer) -> AsyncIterator[Serve]:
    """Like `serve`, on Redis alone."""
    async with AsyncExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_async_context(
            ServedBroker(*arguments, **{"redis": redis_server} | options)
        )


# The kinds of backend over which the contract suite runs; a kind of Redis is named like the fixture of its servers. All of
# them: TEST_BACKENDS="memory redis_server sentinel_set redis_cluster valkey_server valkey_sentinel_set valkey_cluster", which
# takes some minutes. What is marked as core runs over the first five anyway.
BACKENDS = os.environ.get("TEST_BACKENDS", "memory redis_server").split()
CORE_BACKENDS = list(dict.fromkeys([*BACKENDS, "sentinel_set", "redis_cluster", "valkey_server"]))


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark."""
    config.addinivalue_line("markers", "core: run over every kind of Redis, not only over those that are asked for")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have tests of the contract run over each kind."""
    kinds = CORE_BACKENDS if metafunc.definition.get_closest_marker("core") else BACKENDS
    if "any_servers" in metafunc.fixturenames:
        metafunc.parametrize("any_servers", kinds, indirect=True)
    if "shared_servers" in metafunc.fixturenames:
        metafunc.parametrize("shared_servers", [kind for kind in kinds if kind != "memory"], indirect=True)


@pytest.fixture
def any_servers(request: pytest.FixtureRequest) -> Servers | None:
    """The servers of each kind of backend in turn; None for the embedded one."""
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have calls of Redis fail later than after two seconds: for tests of something else, on a machine that has other work."""
    monkeypatch.setattr(redis_lane, "CALL_SECONDS", 20.0)
    monkeypatch.setattr(redis_lane, "REPLY_SECONDS", 20.0)


@pytest.fixture
async def site(any_servers: Servers | None, patience: None) -> AsyncIterator[Site]:
    """An empty cluster on each kind of backend in turn; at the end its instances are closed."""
    async with Site(any_servers) as site:
        yield site


@pytest.fixture
def shared_servers(request: pytest.FixtureRequest) -> Servers:
    """The servers of each kind of backend that several instances share."""
    servers: Servers = request.getfixturevalue(request.param)
    return servers


@pytest.fixture
async def shared_proxy(shared_servers: Servers) -> AsyncIterator[CuttingProxy]:
    """A way to a single Redis that can be cut; named before `shared_site`, it is there until instances have closed."""
    if not isinstance(shared_servers, RedisServer):
        pytest.skip("the proxy stands before a single server")
    async with CuttingProxy(shared_servers.port) as proxy:
        yield proxy


@pytest.fixture
async def shared_site(shared_servers: Servers, patience: None) -> AsyncIterator[Site]:
    """An empty cluster of several instances, on each kind of Redis in turn."""
    async with Site(shared_servers) as site:
        yield site


@pytest.fixture
async def make_house() -> AsyncIterator[MakeHouse]:
    """A function that starts a house; each is drained and closed at the end."""
    houses: list[House] = []

    async def start(**options: int) -> House:
        house = House(**options)
        houses.append(house)
        await house.broker.start()
        return house

    yield start
    for house in houses:
        await house.broker.drain(0)
        await house.broker.close()


@pytest.fixture
async def house(make_house: MakeHouse) -> House:
    """A house with the usual limits."""
    return await make_house()


# What people install. Each takes up to some minutes where nothing is built yet: tests that use one have a longer timeout.


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The folder with the program for Linux."""
    return build("bundle")


@pytest.fixture(scope="session")
def exe() -> Iterator[Path]:
    """The program for Windows."""
    yield build("exe")
    end_wine()


@pytest.fixture(scope="session")
def rpm() -> Path:
    """The rpm, made from the bundle."""
    return build("rpm")


@pytest.fixture(scope="session")
def deb() -> Path:
    """The deb, made from the bundle."""
    return build("deb")


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    """A computer of its own with a running systemd."""
    async with Machine() as started:
        yield started


@pytest.fixture(scope="module", params=["embedded", "redis"])
def module_broker(request: pytest.FixtureRequest, module_redis_server: RedisServer) -> Iterator[BrokerProcess]:
    """One broker process for a module, on each backend; tests take `watched_broker`."""
    broker = BrokerProcess(redis=module_redis_server if request.param == "redis" else None)
    try:
        asyncio.run(broker.start())
        yield broker
        asyncio.run(broker.stop())
    finally:
        asyncio.run(broker.discard())


@pytest.fixture
async def watched_broker(module_broker: BrokerProcess) -> AsyncIterator[BrokerProcess]:
    """A running broker, of which an open stream and the log are looked at after the test (see `witness`)."""
    async with watched(module_broker) as process:
        yield process
