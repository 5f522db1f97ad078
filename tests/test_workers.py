"""Several workers on one port: spread, replaced when they die, drained together. Real processes and a real Redis."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import tomlkit

from tests.broker_process import ROOT, BrokerProcess
from tests.event_client import Api, EventClient
from tests.redis_servers import RedisServer, make_certificate
from tests.waiting import free_port
from tests.worker_group import NO_SHARED_PORT, RunBroker, all_serve, has_instances, judged, patiently, pids, tables

KEYS = ("k7Rw2pXn9vBq4TzL", "m3Hs8dYf5cJw6GtQ")
OpenStream = Callable[..., Awaitable[EventClient]]

pytestmark = NO_SHARED_PORT


async def test_connections_spread_and_info_counts_them_together(
    redis_server: RedisServer, open_stream: OpenStream
) -> None:
    """Port 0 is one free port for all of them."""
    admin_port = free_port()
    broker = BrokerProcess(tables(admin_port=admin_port), redis=redis_server, arguments=["--port", "0"])
    try:
        broker.launch()
        await patiently(lambda: "demo page" in broker.stderr_text(), what="a start")
        found = re.search(r"demo page: http://127\.0\.0\.1:(\d+)/", broker.stderr_text())
        assert found
        broker.port = int(found[1])
        await all_serve(broker)
        for number in range(60):
            await open_stream(broker.base_url, token=broker.mint(f"u{number}", f"d{number}"), device=f"d{number}")
        async with broker.api() as api:
            cluster = (await api.info()).result
            assert (cluster["instance_count"], cluster["device_count"]) == (3, 60)
            counts = [instance["device_count"] for instance in cluster["instances"]]
            assert sum(counts) == 60
            # One of three gets none of 60 once in ten thousand million tries.
            assert min(counts) > 0
            assert {instance["address"] for instance in cluster["instances"]} == {broker.address}
            assert (await api.info(ip=broker.address)).result["device_count"] == 60
            assert (await api.info(ip="127.0.0.1")).result["device_count"] == 60
        ready = [await _ready(admin_port + number) for number in range(3)]
        assert ready == [200] * 3
        assert broker.stderr_text().count("demo page") == 1
    finally:
        await broker.stop()


async def _ready(port: int) -> int:
    async with Api(f"http://127.0.0.1:{port}") as api:
        return (await api.request("GET", "/readyz")).status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_ends_is_replaced_and_nobody_misses_anything(
    redis_server: RedisServer, run_broker: RunBroker, number: signal.Signals
) -> None:
    """A keep-alive connection to it may break in the middle of a send; that send has no answer, and no verdict."""
    broker = await run_broker(tables(), redis=redis_server)
    await all_serve(broker)
    first = pids(broker)
    async with judged(broker, redis_server, devices=12, workers=3) as (recorder, _, api):
        for step in range(30):
            await recorder.send(api, users=[f"u{step % 4}"] if step % 3 else ())
            if step == 10:
                os.kill(min(first), number)
        await patiently(lambda: len(pids(broker) - first) == 1, what="a new worker")
    assert len(pids(broker)) == 3


async def test_a_worker_that_stands_still_is_killed_and_replaced(
    redis_server: RedisServer, run_broker: RunBroker
) -> None:
    """A process that lives and does nothing, which no end of a line tells of. What it was sent is not lost."""
    broker = await run_broker(tables(2), redis=redis_server, env={"WATCHDOG_USEC": "4000000"})
    await all_serve(broker, 2)
    first = pids(broker)
    async with judged(broker, redis_server, devices=16, workers=2) as (recorder, devices, api):
        with recorder.fault(after=5):
            os.kill(min(first), signal.SIGSTOP)
            await patiently(lambda: pids(broker) - first, what="a new worker")
            await patiently(lambda: has_instances(api, 2), what="two instances")
    assert max(first) in pids(broker), "the other one was left alone"
    assert {len(device.visits) for device in devices} >= {1, 2}
    assert "ended: it stood still for 4 s and was killed; the next is started" in broker.stderr_text()


async def test_while_one_worker_drains_every_connection_is_served(
    redis_server: RedisServer, run_broker: RunBroker
) -> None:
    """What waits in the backlog of a socket that closes would be reset by the kernel."""
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    first = pids(broker)
    failures: Counter[str] = Counter()
    done = asyncio.Event()

    async def knock() -> int:
        count = 0
        while not done.is_set():
            count += 1
            step = "connecting"
            try:
                reader, writer = await asyncio.open_connection(broker.host, broker.port)
                step = "connected"
                writer.write(b"GET /token?uid=u HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
                failures.update([] if b'"msg": "success"' in answer else [f"answer {answer!r:.80}"])
            except OSError as error:
                failures.update([f"{step}: {type(error).__name__}"])
        return count

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(knock()) for _ in range(8)]
        for pid in sorted(first):
            known = pids(broker)
            os.kill(pid, signal.SIGTERM)
            await patiently(lambda known=known: pids(broker) - known, what="a new worker")
            await patiently(lambda: broker.stderr_text().count(" serves, process ") >= 2 + len(pids(broker) - first))
        done.set()
    assert sum(task.result() for task in tasks) > 100
    # A handshake that is under way as the socket closes, which only the kernel could hand on.
    assert set(failures) <= {"connecting: ConnectionResetError", "connected: ConnectionResetError"}
    assert failures.total() <= 1


async def test_sigterm_drains_them_all(
    redis_server: RedisServer, run_broker: RunBroker, open_stream: OpenStream
) -> None:
    """Service managers signal the workers too; that must not count as the second signal, which forces."""
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    names = [f"d{n}" for n in range(20)]
    clients = [await open_stream(broker.base_url, token=broker.mint("u", d), device=d) for d in names]
    workers = pids(broker)
    for pid in workers | {broker.pid}:
        os.kill(pid, signal.SIGTERM)
    assert await broker.wait(seconds=60) == 0
    for client in clients:
        assert (await client.next_event("sys_instance_close")).retry is not None
        assert await client.wait_closed() == "clean"
    assert not any(_alive(pid) for pid in workers)
    assert await redis_server.ask("KEYS", "*nodes") == []


async def test_a_second_signal_does_not_wait_for_slow_clients(
    redis_server: RedisServer, run_broker: RunBroker, open_stream: OpenStream
) -> None:
    config = tables(2, drain_seconds=60)
    config["sse"] = {"heartbeat_interval": 15, "max_buffer_bytes": 64 << 20}
    broker = await run_broker(config, redis=redis_server)
    await all_serve(broker, 2)
    client = await open_stream(broker.base_url, token=broker.mint("u", "d"), device="d", receive_buffer_bytes=4096)
    client.stop_reading()
    async with broker.api() as api:
        for _ in range(12):
            await api.send("x" * 500_000, uid=["u"])
        assert (await api.info(device="d")).result["online"]
    broker.process.signal(signal.SIGTERM)
    await patiently(lambda: "stopping: 1 streams" in broker.stderr_text())
    assert broker.running
    broker.process.signal(signal.SIGTERM)
    assert await broker.wait(seconds=10) == 0


async def test_workers_whose_parent_is_killed_drain(
    redis_server: RedisServer, run_broker: RunBroker, open_stream: OpenStream
) -> None:
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    client = await open_stream(broker.base_url, token=broker.mint("u", "d"), device="d")
    workers = pids(broker)
    assert len(workers) == 2
    await broker.kill()
    assert await client.next_event("sys_instance_close")
    await patiently(lambda: not any(_alive(pid) for pid in workers), what="the end of the workers")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_sighup_reopens_the_logs_of_all_and_reads_the_configuration_once(
    redis_server: RedisServer, run_broker: RunBroker, tmp_path: Path
) -> None:
    """Each worker takes over what was read, and so does one that is started later."""
    logs = {f"{name}_log_path": str(tmp_path / name) for name in ("broker", "access", "error")}
    broker = await run_broker(tables(2, **logs) | {"api": {"keys": [KEYS[0]]}}, redis=redis_server)
    await patiently(lambda: "demo page" in (tmp_path / "broker").read_text(), what="a start")
    first = pids(broker)
    for name in ("broker", "access", "error"):
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    broker.config["api"]["keys"] = [KEYS[1]]
    broker.config["sse"]["heartbeat_interval"] = 7
    broker.config_file.write_text(tomlkit.dumps(broker.config))
    broker.process.signal(signal.SIGHUP)

    def moved() -> bool:
        names = {str(Path(entry).resolve()) for pid in [*first, broker.pid] for entry in _open_files(pid)}
        return {str(tmp_path / n) for n in ("broker", "access", "error")} <= names and not any(
            name.endswith(".1") for name in names
        )

    await patiently(moved, what="new files everywhere")
    await patiently(lambda: _all_answer(broker), what="the new key everywhere")
    os.kill(min(first), signal.SIGKILL)
    text = tmp_path / "broker"
    await patiently(lambda: " serves, process " in text.read_text(), what="a new worker")
    assert await _all_answer(broker)
    await broker.terminate()
    assert "worker 1 sse_broker" in text.read_text()
    assert "worker 2 sse_broker" in text.read_text()
    warning = "these keys count from the next start on: sse.heartbeat_interval"
    assert (tmp_path / "error").read_text().count(warning) == 1
    assert broker.stderr_text() == ""


async def test_tls_that_counts_from_the_next_start_on_is_not_served_by_a_later_worker(
    redis_server: RedisServer, run_broker: RunBroker, tmp_path: Path
) -> None:
    """Else some connections to the one port would find TLS and others none."""
    make_certificate(tmp_path)
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    tls = {"tls_cert": str(tmp_path / "server.crt"), "tls_key": str(tmp_path / "server.key")}
    changed = broker.config | {"server": broker.config["server"] | tls, "api": {"keys": [KEYS[1]]}}
    broker.config_file.write_text(tomlkit.dumps(changed))
    broker.process.signal(signal.SIGHUP)
    warning = "these keys count from the next start on: server.tls_cert, server.tls_key"
    await patiently(lambda: warning in broker.stderr_text(), what="the warning")
    await patiently(lambda: _all_answer(broker), what="the new key everywhere")
    first = pids(broker)
    os.kill(min(first), signal.SIGKILL)
    await patiently(lambda: broker.stderr_text().count(" serves, process ") == 3, what="a new worker")
    assert await _all_answer(broker)


async def test_a_port_that_was_chosen_is_no_change_of_the_configuration(redis_server: RedisServer) -> None:
    """`port = 0` read again is what it was."""
    broker = BrokerProcess(tables(2, port=0), redis=redis_server)
    try:
        broker.launch()
        await patiently(lambda: "demo page" in broker.stderr_text(), what="a start")
        for changes in ({"api": {"keys": [KEYS[0]]}}, {"server": broker.config["server"] | {"port": 1}}):
            times = broker.stderr_text().count("the configuration was read again")
            broker.config_file.write_text(tomlkit.dumps(broker.config | changes))
            broker.process.signal(signal.SIGHUP)
            await patiently(
                lambda times=times: broker.stderr_text().count("the configuration was read again") == times + 2
            )
        (warning,) = [line for line in broker.stderr_text().splitlines() if "next start on" in line]
        assert warning.endswith(": server.port")
    finally:
        await broker.stop()


async def _all_answer(broker: BrokerProcess) -> bool:
    """Whether the workers take the second key, asked so often that each of two is among them."""
    found = set()
    for _ in range(20):
        async with broker.api(KEYS[1]) as api:
            found.add((await api.info()).status)
    return found == {200}


def _open_files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.exists()]


def test_the_workers_argument_is_not_for_people() -> None:
    command = [sys.executable, "-X", "dev", "-m", "sse_broker", "--worker"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=30)
    assert result.returncode == 2
    assert result.stderr == "sse-broker: --worker is what the program says to itself; set server.workers instead\n"
