"""The configuration read again at SIGHUP, and TLS: handshakes, the bound on slow readers, every end, new certificates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomlkit

from tests.broker_process import BrokerProcess
from tests.event_client import EventClient
from tests.redis_servers import make_certificate
from tests.waiting import until

RunBroker = Callable[..., Awaitable[BrokerProcess]]
KEY, OTHER_KEY = "k7Rw2pXn9vBq4TzL", "z9Rw2pXn9vBq4TzL"
NEW_SECRET = "n3Wm2c9ZtK4xVn8bRd3sYf6hJp1gLa5eQ0uTiOw"


def said(broker: BrokerProcess, text: str, times: int = 1) -> Callable[[], bool]:
    return lambda: broker.stderr_text().count(text) >= times


async def hang_up(broker: BrokerProcess, changes: dict[str, dict[str, Any]] | str, expect: str) -> None:
    """Write another configuration, send SIGHUP, and wait for what the log says of it."""
    times = broker.stderr_text().count(expect) + 1
    if isinstance(changes, str):
        broker.config_file.write_text(changes)
    else:
        for table, keys in changes.items():
            broker.config.setdefault(table, {}).update(keys)
        broker.config_file.write_text(tomlkit.dumps(broker.config))
    os.kill(broker.pid, signal.SIGHUP)
    await until(said(broker, expect, times), what=expect)


async def status(broker: BrokerProcess, key: str = "", **headers: str) -> int:
    async with broker.api(key or None) as api:
        return (await api.request("GET", "/info", headers=headers)).status


# --- reading again ---


async def test_api_keys_secrets_origins_and_limits_change_without_a_restart(run_broker: RunBroker) -> None:
    broker = await run_broker({"api": {"keys": [KEY]}})
    old_token = broker.mint("u", "d")
    async with EventClient(broker.base_url, token=old_token, device="d") as client:
        changes = {
            "api": {"keys": [OTHER_KEY], "named_keys": ["shop:send:shop-7Rw2pXn9vBq4"]},
            "jwt": {"secret": NEW_SECRET},
            "server": {"cors_origins": ["https://app.example"]},
            "limits": {"batch_messages": 2},
        }
        await hang_up(broker, changes, "the configuration was read again")
        assert [await status(broker, key) for key in (KEY, OTHER_KEY, "shop-7Rw2pXn9vBq4")] == [401, 200, 403]
        async with broker.api(OTHER_KEY) as api:
            assert (await api.send("open streams stay", uid="u")).result == 1
            assert (await client.next_frame()).data == "open streams stay"
            answer = await api.request("GET", "/info", headers={"Origin": "https://app.example"})
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert (await api.request("POST", "/send", json={"messages": [{"data": 1}] * 3})).status == 413
            fresh = (await api.token("u", "e")).result
        assert (await EventClient(broker.base_url, token=old_token, device="d").connect()).status == 401
        async with EventClient(broker.base_url, token=fresh, device="e"):
            pass


async def test_a_former_secret_is_good_while_it_is_kept(run_broker: RunBroker) -> None:
    """The rotation as the documentation has it: new secret in front, old one behind, later the old one goes."""
    broker = await run_broker()
    token = broker.mint("u", "d")
    old = broker.config["jwt"]["secret"]
    await hang_up(
        broker, {"jwt": {"secret": NEW_SECRET, "previous_secrets": [old]}}, "the configuration was read again"
    )
    async with EventClient(broker.base_url, token=token, device="d"):
        pass
    await hang_up(broker, {"jwt": {"previous_secrets": []}}, "the configuration was read again")
    assert (await EventClient(broker.base_url, token=token, device="d").connect()).status == 401


@pytest.mark.parametrize(
    "text",
    [
        "[api]\nkeys = [''",
        "[api]\nkeys = ['']",
        "[api]\nkey = ['x']",
        "\0",
        "[jwt]\npublic_keys = ['/nowhere']\nsecret = 'x'",
    ],
)
async def test_a_bad_file_is_refused_with_one_line_and_the_old_one_stays(run_broker: RunBroker, text: str) -> None:
    broker = await run_broker({"api": {"keys": [KEY]}})
    await hang_up(broker, text, "the configuration is not read again, the former one stays")
    assert broker.stderr_text().count(" ERROR ") == 1
    assert [await status(broker, key) for key in (KEY, OTHER_KEY)] == [200, 401]


async def test_a_file_that_is_gone_is_refused_too(run_broker: RunBroker) -> None:
    broker = await run_broker({"api": {"keys": [KEY]}})
    text = broker.config_file.read_text()
    broker.config_file.unlink()
    os.kill(broker.pid, signal.SIGHUP)
    await until(said(broker, "there is no such file"), what="the refusal")
    assert await status(broker, KEY) == 200
    broker.config_file.write_text(text)


async def test_what_counts_from_the_next_start_on_is_named(run_broker: RunBroker) -> None:
    broker = await run_broker()
    await hang_up(
        broker, {"sse": {"heartbeat_interval": 7}}, "these keys count from the next start on: sse.heartbeat_interval"
    )


async def test_api_keys_are_not_given_up_for_an_address_that_counts_later(run_broker: RunBroker) -> None:
    """On this machine alone no key is needed, but what listens still does so on every address."""
    broker = await run_broker({"server": {"host": "0.0.0.0"}, "api": {"keys": [KEY]}})
    changes: dict[str, dict[str, Any]] = {"server": {"host": "127.0.0.1"}, "api": {"keys": []}}
    await hang_up(broker, changes, "the configuration is not read again, the former one stays: api.keys is not set")
    assert [await status(broker, key) for key in (KEY, "")] == [200, 401]


async def test_tokens_of_a_random_secret_stay_good(run_broker: RunBroker) -> None:
    broker = await run_broker({"jwt": {"secret": ""}})
    async with broker.api() as api:
        token = (await api.token("u", "d", ttl=60)).result
    await hang_up(broker, {"limits": {"batch_messages": 2}}, "the configuration was read again")
    async with EventClient(broker.base_url, token=token, device="d"):
        pass


# --- TLS ---


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca.crt, server.crt and server.key."""
    make_certificate(tmp_path)
    return tmp_path


def tls_table(folder: Path) -> dict[str, Any]:
    return {"server": {"tls_cert": str(folder / "server.crt"), "tls_key": str(folder / "server.key")}}


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.crt"))


async def handshake(broker: BrokerProcess, context: ssl.SSLContext) -> tuple[str | None, int]:
    """Shake hands; return the version and the serial number of the certificate."""
    _, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=context)
    tls = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    return tls.version(), int(tls.getpeercert()["serialNumber"], 16)


async def test_tls_1_2_and_1_3_shake_hands_and_older_do_not(run_broker: RunBroker, certificates: Path) -> None:
    broker = await run_broker(tls_table(certificates))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trusting(certificates)
        context.minimum_version = context.maximum_version = version
        assert (await handshake(broker, context))[0] == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    command = ["openssl", "s_client", "-connect", broker.address, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]
    shaken = await asyncio.to_thread(subprocess.run, command, input=b"", capture_output=True, timeout=20)
    assert shaken.returncode != 0
    assert b"New, (NONE)" in shaken.stdout or b"no protocols available" in shaken.stderr
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(certificates))) as session:
        async with session.get(broker.base_url + "/info") as response:
            assert response.status == 200


async def test_a_slow_reader_is_cut_off_over_tls_and_nobody_waits(run_broker: RunBroker, certificates: Path) -> None:
    """The bound counts what TLS has not sent yet."""
    config = tls_table(certificates) | {"sse": {"max_buffer_bytes": 256 * 1024}}
    config["server"]["max_body_bytes"] = 128 * 1024
    broker = await run_broker(config)
    context = trusting(certificates)
    stalled = broker.client("u", "stalled", tls=context, receive_buffer_bytes=4096)
    async with broker.client("u", "reader", tls=context) as reader:
        await stalled.open()
        stalled.stop_reading()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            for number in range(400):
                async with session.post(
                    broker.base_url + "/send", json={"uid": "u", "data": f"{number} " + "x" * 50_000}
                ) as answer:
                    count = (await answer.json())["result"]
                assert (await reader.next_frame()).data.startswith(f"{number} ")  # type: ignore[union-attr]
                if count == 1:
                    break
            assert count == 1, "the slow reader was never cut off"
            # What may wait: the bound, one frame, and what kernel and TLS hold besides (4 MB at most here).
            assert number * 50_000 < 256 * 1024 + 50_000 + 6_000_000
            async with session.get(broker.base_url + "/info", params={"device": "stalled"}) as response:
                assert (await response.json())["result"]["online"] is False
    await stalled.close()


async def test_every_end_comes_over_tls(run_broker: RunBroker, certificates: Path) -> None:
    broker = await run_broker(tls_table(certificates))
    context = trusting(certificates)
    first = await broker.client("u", "d", tls=context).open()
    second = await broker.client("u", "d", tls=context).open()
    assert (await first.next_event("sys_extrude_offline")).data == second.address
    assert await first.wait_closed() == "clean"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.post(broker.base_url + "/kick", json={"device": "d", "data": "bye"}) as response:
            assert response.status == 200
    assert (await second.next_event("sys_kick_offline")).data == "bye"
    assert await second.wait_closed() == "clean"
    await first.close()
    await second.close()


async def test_a_new_certificate_is_served_after_sighup_and_streams_stay(
    run_broker: RunBroker, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broker = await run_broker(tls_table(certificates))
    old = trusting(certificates)
    _, old_serial = await handshake(broker, old)
    renewed = tmp_path_factory.mktemp("renewed")
    make_certificate(renewed)
    async with broker.client("u", "d", tls=old) as client:
        for name in ("server.crt", "server.key"):
            shutil.copy(renewed / name, certificates / name)
        await hang_up(broker, {}, "the configuration was read again")
        _, serial = await handshake(broker, trusting(renewed))
        assert serial != old_serial
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(broker, old)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(renewed))) as session:
            async with session.post(broker.base_url + "/send", json={"uid": "u", "data": "still open"}) as response:
                assert response.status == 200
        assert (await client.next_frame()).data == "still open"


async def test_tls_is_neither_turned_on_nor_off_while_it_runs_and_that_is_said(
    run_broker: RunBroker, certificates: Path
) -> None:
    """A listener speaks TLS or does not. What else was changed with it comes into force."""
    warning = "these keys count from the next start on: server.tls_cert, server.tls_key"
    plain = await run_broker({"api": {"keys": [KEY]}})
    await hang_up(plain, tls_table(certificates) | {"api": {"keys": [OTHER_KEY]}}, warning)
    del plain.config["server"]["tls_cert"]
    assert [await status(plain, key) for key in (KEY, OTHER_KEY)] == [401, 200]
    secure = await run_broker(tls_table(certificates))
    before = await handshake(secure, trusting(certificates))
    await hang_up(secure, {"server": {"tls_cert": "", "tls_key": ""}}, warning)
    assert await handshake(secure, trusting(certificates)) == before
    await hang_up(secure, {}, warning)
    assert await handshake(secure, trusting(certificates)) == before


async def test_a_certificate_without_its_key_is_refused_and_the_old_one_served(
    run_broker: RunBroker, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broker = await run_broker(tls_table(certificates))
    before = await handshake(broker, trusting(certificates))
    other = tmp_path_factory.mktemp("other")
    make_certificate(other)
    shutil.copy(other / "server.crt", certificates / "server.crt")
    await hang_up(broker, {}, "the configuration is not read again, the former one stays")
    assert await handshake(broker, trusting(certificates)) == before


async def test_handshakes_that_stop_half_way_hold_nobody_up(run_broker: RunBroker, certificates: Path) -> None:
    broker = await run_broker(tls_table(certificates))
    context = trusting(certificates)
    held = [socket.create_connection(("127.0.0.1", broker.port)) for _ in range(200)]
    for number, sock in enumerate(held):
        sock.send((b"\x16\x03\x01\x02\x00\x01", b"", b"GET / HTTP/1.1\r\n\r\n", b"\x80" * 100)[number % 4])
    async with broker.client("u", "d", tls=context) as client:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            async with session.post(broker.base_url + "/send", json={"data": "served"}) as response:
                assert (await response.json())["result"] == 1
        assert (await client.next_frame()).data == "served"
    for sock in held:
        with contextlib.suppress(OSError):
            sock.close()
