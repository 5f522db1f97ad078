"""The life of the program as its clients see it: serving, draining, ending; plain and over TLS, on each backend."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from sse_broker.config import ServerConfig
from sse_broker.errors import ConfigError
from sse_broker.lifecycle import Stop
from sse_broker.memory import MemoryBackend
from sse_broker.redis_backend import RedisBackend
from sse_broker.server import make_backend, tls_context
from tests.broker_process import BrokerProcess
from tests.event_client import Api, EventClient
from tests.raw_http import RawConnection, request_bytes
from tests.redis_servers import RedisServer, make_certificate
from tests.served import make_config
from tests.waiting import until

RunBroker = Callable[..., Awaitable[BrokerProcess]]


@pytest.fixture(params=["embedded", "redis"])
def redis_options(request: pytest.FixtureRequest, redis_server: RedisServer) -> dict[str, RedisServer]:
    """What BrokerProcess needs for each backend."""
    return {"redis": redis_server} if request.param == "redis" else {}


async def stalled_client(broker: BrokerProcess, device: str) -> object:
    """Open a stream that reads nothing, with more waiting for it than the kernel takes."""
    client = await broker.client("u", device, receive_buffer_bytes=4096).open()
    client.stop_reading()
    async with broker.api() as api:
        for _ in range(6):
            assert (await api.send("x" * 900_000, device=device)).result == 1
    return client


ROOMY = {"sse": {"max_buffer_bytes": 64 * 1024 * 1024}}

# --- ending ---


async def test_sigterm_ends_each_stream_with_a_word(
    run_broker: RunBroker, redis_options: dict[str, RedisServer]
) -> None:
    """Quickly, when every client takes it; the program ends with 0 and nothing of it is left in the cluster."""
    broker = await run_broker(**redis_options)
    clients = [await broker.client("u", f"d{number}", http=["1.1", "1.0"][number % 2]).open() for number in range(6)]
    code, seconds = await broker.terminate()
    assert code == 0
    assert seconds < 5
    for client in clients:
        end = await client.next_event("sys_instance_close")
        assert end.data == broker.address
        assert end.retry is not None
        assert 1000 <= end.retry <= 5000
        assert await client.wait_closed() == ("clean" if client.http == "1.1" else "eof")
        await client.close()
    text = broker.stderr_text()
    assert "stopping: 6 streams to end" in text
    assert text.count("instance_close") == 6
    if redis_options:
        other = await run_broker(**redis_options)
        async with other.api() as api:
            cluster = (await api.info()).result
        assert (cluster["instance_count"], cluster["device_count"], cluster["user_count"]) == (1, 0, 0)


async def test_sigterm_does_not_wait_for_a_stalled_client_beyond_the_drain(
    run_broker: RunBroker, redis_options: dict[str, RedisServer]
) -> None:
    """Meanwhile no new stream is opened, what is asked on open connections is answered, and others have their end."""
    broker = await run_broker({"server": {"drain_seconds": 3}, **ROOMY}, **redis_options)
    stalled = await stalled_client(broker, "stalled")
    reading = await broker.client("u", "reading").open()
    async with RawConnection(broker.port) as connection:
        await connection.send(request_bytes("GET", "/info"))
        assert (await connection.answer("GET")).status == 200
        start = time.monotonic()
        broker.process.signal(signal.SIGTERM)
        assert (await reading.next_event("sys_instance_close")).data == broker.address
        assert await reading.wait_closed() == "clean"
        await connection.send(request_bytes("GET", f"/events?device=x&token={broker.mint('u')}"))
        answer = await connection.answer("GET")
        assert (answer.status, int(answer.headers["retry-after"]) > 0) == (503, True)
        await connection.send(request_bytes("GET", "/info"))
        assert (await connection.answer("GET")).result["device_count"] == 0
        with pytest.raises(OSError):
            await broker.client("u", "y").connect()
        assert await broker.wait(seconds=10) == 0
        assert 1.5 < time.monotonic() - start < 3.5
    await reading.close()
    await stalled.close()  # type: ignore[attr-defined]


async def test_a_second_signal_ends_it_at_once(run_broker: RunBroker) -> None:
    broker = await run_broker({"server": {"drain_seconds": 60}, **ROOMY})
    stalled = await stalled_client(broker, "stalled")
    broker.process.signal(signal.SIGINT)
    await until(lambda: "stopping" in broker.stderr_text(), what="the drain")
    start = time.monotonic()
    broker.process.signal(signal.SIGINT)
    assert await broker.wait(seconds=10) == 0
    assert time.monotonic() - start < 5
    await stalled.close()  # type: ignore[attr-defined]


async def test_sigterm_while_redis_is_away_ends_within_the_drain(
    run_broker: RunBroker, redis_server: RedisServer
) -> None:
    broker = await run_broker({"server": {"drain_seconds": 3}}, redis=redis_server)
    client = await broker.client("u", "d").open()
    redis_server.freeze()
    try:
        code, seconds = await broker.terminate(seconds=15)
        assert (code, seconds < 4) == (0, True), seconds
        assert (await client.next_event("sys_instance_close")).data == broker.address
    finally:
        redis_server.thaw()
        await client.close()


async def test_streams_go_on_over_a_restart(run_broker: RunBroker, redis_server: RedisServer) -> None:
    """A client returns with its last id, to the same port or to another instance, and misses nothing."""
    broker, other = await run_broker(redis=redis_server), await run_broker(redis=redis_server)
    async with other.api() as api:
        client = await broker.client("u", "d").open()
        await api.send("1", device="d")
        last_id = (await client.next_frame()).id
        await broker.terminate()
        await client.close()
        await api.send("2", uid="u")
        async with other.client("u", "d", last_id=last_id) as client:
            assert (await client.next_frame()).data == "2"
            last_id = client.last_id
        await broker.start()
        await api.send("3")
        async with broker.client("u", "d", last_id=last_id) as client:
            assert (await client.next_frame()).data == "3"


# --- serving ---


async def test_opening_and_closing_a_stream_is_a_line_each(run_broker: RunBroker) -> None:
    """With the reason; a line break in a name forges no line."""
    broker = await run_broker()
    async with broker.api() as api:
        async with broker.client("anna", "phone\nforged", via="query") as client:
            address = client.address
        async with broker.client("ben", "tablet") as client:
            await api.kick(device="tablet", data="sesame")
            await client.wait_closed()
        await until(lambda: broker.stderr_text().count("stream closed") == 2, what="both lines")
    lines = [line for line in broker.stderr_text().splitlines() if "stream " in line]
    assert len(lines) == 4
    assert lines[0].endswith(rf"stream open: user anna, device phone\nforged, {address}")
    assert lines[1].endswith(r"stream closed: user anna, device phone\nforged, disconnect")
    assert "user ben, device tablet" in lines[2]
    assert lines[3].endswith("stream closed: user ben, device tablet, kick_offline")
    assert not [line for line in broker.stderr_text().splitlines() if line.startswith("forged")]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_stream_is_in_the_access_log_while_it_is_open(run_broker: RunBroker, version: str) -> None:
    """On both ways to a stream; aiohttp's handlers have that of HTTP/1.0."""
    broker = await run_broker()
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    target = f"/events?device=d&token={broker.mint('u', 'd')}"
    writer.write(f"GET {target} HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"event: sys_connected")
    line = f'"GET /events?device=d&token=*** HTTP/{version}" 200 '
    await until(lambda: line in broker.stderr_text(), what="the line of the access log")
    async with broker.api() as api:
        assert (await api.info(device="d")).result["online"]
    assert "stream closed" not in broker.stderr_text()
    writer.close()
    await until(lambda: "stream closed" in broker.stderr_text(), what="the end")
    assert broker.stderr_text().count("GET /events") == 1


async def test_on_the_ipv6_address_for_all_it_serves_ipv4_too(run_broker: RunBroker) -> None:
    """And calls such clients by their IPv4 address, also where they are counted."""
    broker = await run_broker({"server": {"host": "::"}, "api": {"allow_anonymous": True}})
    base_url = f"http://127.0.0.1:{broker.port}"
    client = EventClient(base_url, token=broker.mint("u", "d"), device="d")
    async with client, Api(base_url) as api:
        (device,) = (await api.info(uid="u")).result["devices"]
        assert device["device_address"] == client.address
        assert client.address.startswith("127.0.0.1:")
        assert client.events[0].data == client.address


async def test_it_serves_an_ipv6_address(run_broker: RunBroker) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    broker = BrokerProcess({"server": {"host": "::1"}})
    broker.launch()
    try:
        await until(lambda: "demo page" in broker.stderr_text(), seconds=20, what="its address in the log")
        base_url = f"http://[::1]:{broker.port}"
        assert f"demo page: {base_url}/demo" in broker.stderr_text()
        async with aiohttp.ClientSession() as session:
            for address in (f"[::1]:{broker.port}", "::1", "[::1]"):
                async with session.get(f"{base_url}/info", params={"ip": address}) as response:
                    result = (await response.json())["result"]
                    assert (result["online"], result["address"]) == (True, f"[::1]:{broker.port}"), address
        assert (await broker.terminate())[0] == 0
        broker.assert_clean_output()
    finally:
        await broker.discard()


def test_the_backend_follows_the_configuration() -> None:
    assert isinstance(make_backend(make_config()), MemoryBackend)
    assert isinstance(make_backend(make_config({"redis": {"addrs": ("127.0.0.1:1",)}})), RedisBackend)


async def test_asking_twice_to_stop_means_now() -> None:
    stop = Stop()
    first, second = asyncio.create_task(stop.wait()), asyncio.create_task(stop.wait_again())
    stop.request()
    await asyncio.wait_for(first, 5)
    assert not second.done()
    stop.request()
    await asyncio.wait_for(second, 5)


# --- TLS ---


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.crt, server.crt and server.key."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificate(folder)
    return folder


async def test_streams_and_sends_work_over_tls(run_broker: RunBroker, certificates: Path) -> None:
    """Frames of every size, an end with its word, and a client's leaving; also behind other requests."""
    tls = {"tls_cert": str(certificates / "server.crt"), "tls_key": str(certificates / "server.key")}
    broker = await run_broker({"server": tls})
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    assert broker.base_url.startswith("https://")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def call(path: str, **fields: object) -> object:
            async with session.post(broker.base_url + path, json=fields) as response:
                assert response.status == 200, await response.text()
                return (await response.json())["result"]

        async with broker.client("u", "d", tls=context) as client, broker.client("u", "e", tls=context) as leaving:
            for text in ("x", "y" * 900_000, "z"):
                assert await call("/send", data=text, uid="u") == 2
                assert (await client.next_frame()).data == text
            await leaving.close()

            async def left() -> bool:
                return await call("/send", data="end", uid="u") == 1

            await until(left, what="the leaving noticed")
            await call("/kick", device="d", data="bye")
            assert (await client.next_event("sys_kick_offline")).data == "bye"
            assert await client.wait_closed() == "clean"
        async with broker.client("u", "d", tls=context) as client:
            code, seconds = await broker.terminate()
            assert (code, seconds < 8) == (0, True), seconds
            assert (await client.next_event("sys_instance_close")).data == broker.address


async def test_a_tls_client_that_says_no_word_more_keeps_nothing_from_ending(
    run_broker: RunBroker, certificates: Path
) -> None:
    """Its connection is kept alive, and closing it waits for an answer; nothing of it is left when the program ends."""
    tls = {"tls_cert": str(certificates / "server.crt"), "tls_key": str(certificates / "server.key")}
    broker = await run_broker({"server": tls})
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))

    def ask() -> ssl.SSLSocket:
        mute = context.wrap_socket(socket.create_connection((broker.host, broker.port)), server_hostname=broker.host)
        mute.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        assert mute.recv(1000).startswith(b"HTTP/1.1 200 ")
        return mute

    mute = await asyncio.to_thread(ask)
    try:
        code, seconds = await broker.terminate()
        assert (code, seconds < 8) == (0, True), seconds
    finally:
        mute.close()


async def test_plain_http_on_a_tls_port_is_no_trouble(run_broker: RunBroker, certificates: Path) -> None:
    tls = {"tls_cert": str(certificates / "server.crt"), "tls_key": str(certificates / "server.key")}
    broker = await run_broker({"server": tls})
    async with RawConnection(broker.port) as connection:
        await connection.send(request_bytes("GET", "/info"))
        assert await connection.ended()


def test_tls_is_1_2_or_newer(certificates: Path) -> None:
    server = ServerConfig(tls_cert=str(certificates / "server.crt"), tls_key=str(certificates / "server.key"))
    context = tls_context(server)
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(ServerConfig()) is None


@pytest.mark.parametrize(
    ("cert", "key"), [("absent.crt", "server.key"), ("server.crt", "ca.key"), ("ca.key", "server.key")]
)
def test_a_certificate_that_can_not_be_used_stops_the_start(certificates: Path, cert: str, key: str) -> None:
    server = ServerConfig(tls_cert=str(certificates / cert), tls_key=str(certificates / key))
    with pytest.raises(ConfigError) as caught:
        tls_context(server)
    assert str(certificates / cert) in caught.value.message
    assert "\n" not in caught.value.message


def test_an_encrypted_key_stops_the_start_and_asks_nobody(certificates: Path) -> None:
    """OpenSSL would ask at the terminal for its password."""
    encrypted = certificates / "encrypted.key"
    command = ["openssl", "pkey", "-in", "server.key", "-aes256", "-passout", "pass:sesame", "-out", str(encrypted)]
    subprocess.run(command, cwd=certificates, check=True, capture_output=True)
    server = ServerConfig(tls_cert=str(certificates / "server.crt"), tls_key=str(encrypted))
    with pytest.raises(ConfigError):
        tls_context(server)
