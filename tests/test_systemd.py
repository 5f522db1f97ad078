"""What systemd is told, over a real notify socket, and the sockets that it hands over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_broker.systemd import Notifier, inherited_sockets
from tests.event_client import Api
from tests.waiting import until

# As systemd does it: the socket becomes descriptor 3, and the process id is that of the program.
BECOME_THE_PROGRAM = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "sse_broker", "--port", "1"])
"""


class Manager:
    """The service manager's end of the notify socket; `heard` are the states in order."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hears(self, state: str, times: int = 1) -> bool:
        """Read what has come, and return whether this state was heard so often."""
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.heard.count(state) >= times

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    one = Manager(tmp_path / "notify")
    yield one
    one.close()


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


async def test_the_program_tells_of_its_life(manager: Manager, tmp_path: Path) -> None:
    """Ready once requests are answered; reloading and ready again at SIGHUP; the watchdog is fed; stopping at SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sse_broker", "--port", "0",
        env=_environment(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: manager.hears("READY=1"), seconds=30, what="READY=1")
        assert "STOPPING=1" not in manager.heard
        await until(lambda: manager.hears("WATCHDOG=1", 3), what="three times WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        await until(lambda: manager.hears("READY=1", 2), what="READY=1 after the reload")
        reloading = manager.heard.index("RELOADING=1")
        assert manager.heard[reloading + 1].startswith("MONOTONIC_USEC=")
        assert "READY=1" in manager.heard[reloading:]
        process.send_signal(signal.SIGTERM)
        await until(lambda: manager.hears("STOPPING=1"), what="STOPPING=1")
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_stuck_loop_does_not_feed_the_watchdog(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"})
    notifier.ready()
    await until(lambda: manager.hears("WATCHDOG=1", 2), what="food")
    fed = manager.heard.count("WATCHDOG=1")
    deadline = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < deadline:
        pass  # the loop stands still
    assert not manager.hears("WATCHDOG=1", fed + 1)
    await notifier.close()


async def test_without_a_service_manager_nothing_is_told_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.reloading()
    notifier.stopping()
    await notifier.close()
    gone = Notifier({"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"})
    gone.ready()
    await gone.close()


async def test_a_watchdog_for_another_process_is_not_fed(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
    notifier.ready()
    await asyncio.sleep(0)
    assert manager.hears("READY=1")
    assert not manager.hears("WATCHDOG=1")
    await notifier.close()


async def test_sockets_that_systemd_opened_are_served(manager: Manager) -> None:
    """Socket activation: the descriptor 3 of the program is a socket that listens; no port is bound by the program."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BECOME_THE_PROGRAM, str(listener.fileno()),
        env=_environment(NOTIFY_SOCKET=manager.address),
        pass_fds=[listener.fileno()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: manager.hears("READY=1"), seconds=30, what="READY=1")
        async with Api(f"http://127.0.0.1:{port}") as api:
            answer = await api.info()
        assert answer.result["instances"][0]["address"] == f"127.0.0.1:{port}"
        # Options are of the socket, which the program shares with this test; 22.5 s are one and a half heartbeats.
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 22_500
    finally:
        listener.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


def test_a_socket_that_is_none_of_tcp_is_refused_in_one_line(tmp_path: Path) -> None:
    """`ListenStream=` with a path instead of a port."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "broker.sock"))
        listener.listen()
        command = [sys.executable, "-c", BECOME_THE_PROGRAM, str(listener.fileno())]
        result = subprocess.run(
            command, env=_environment(), pass_fds=[listener.fileno()], capture_output=True, text=True, timeout=60
        )
    assert result.returncode == 1
    assert result.stderr == (
        "sse-broker: a socket that was handed over is none of TCP: a port is needed in ListenStream=\n"
    )


def test_sockets_for_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert inherited_sockets(environ) == []
    assert environ == {}
