"""The program for Windows: one exe, built and run under Wine, from the command line and by double click."""

from __future__ import annotations

import configparser
import math
import os
import pty
import re
import shutil
import subprocess
import termios
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sse_broker.version import VERSION
from tests.broker_process import ROOT, BrokerProcess
from tests.built import WINE_COMMAND, WINE_ENVIRONMENT, WineBroker, kill_wine, wine, wine_pids, wine_python
from tests.event_client import Api
from tests.processes import ChildProcess
from tests.smoke import check_own_key, own_key, smoke
from tests.waiting import free_port, until

# The build counts as part of the first test.
pytestmark = pytest.mark.timeout(1600)
# A program under Wine needs some seconds to start, on a busy machine many.
START_SECONDS = 60

EXAMPLE = (ROOT / "etc" / "config.toml").read_bytes().replace(b"\n", b"\r\n")
PRESS_AGAIN_SECONDS = 10.0


@pytest.fixture
def own_exe(exe: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the exe in a folder of its own."""
    copy = tmp_path / "desktop" / "sse-broker.exe"
    copy.parent.mkdir()
    shutil.copy(exe, copy)
    yield copy
    kill_wine(copy)


@contextmanager
def double_clicked(exe: Path, *arguments: str, **variables: str) -> Iterator[ChildProcess]:
    """Start the exe as a double click does, but with pipes for a window; Ctrl-C ends it."""
    process = ChildProcess(
        [*WINE_COMMAND, str(exe), *arguments], exe.parent / "output.txt", env=os.environ | WINE_ENVIRONMENT | variables
    )
    try:
        yield process
    finally:
        kill_wine(exe)
        process.signal(9)


async def ctrl_c(exe: Path, process: ChildProcess) -> int:
    """Press Ctrl-C and return the exit code."""
    for pid in wine_pids(exe):
        os.kill(pid, 2)
    return await process.wait(seconds=60)


async def start(broker: BrokerProcess) -> BrokerProcess:
    """Start a broker under Wine."""
    await broker.start(seconds=START_SECONDS)
    return broker


# From the command line


async def test_the_exe_passes_the_smoke_suite(exe: Path, tmp_path: Path) -> None:
    private, config = own_key(tmp_path)
    broker = WineBroker(exe, config)
    try:
        await start(broker)
        await check_own_key(broker, private)
        await smoke(broker)
        broker.assert_clean_output()
    finally:
        await broker.discard()


def test_the_exe_tells_its_version(exe: Path) -> None:
    result = wine(exe, "--version")
    assert (result.returncode, result.stdout) == (0, f"sse-broker {VERSION}\n")


def test_a_wrong_configuration_is_one_line_and_code_2(exe: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[server]\nport = 'x'\n")
    result = wine(exe, "-c", "bad.toml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (
        2,
        "sse-broker: bad.toml: server.port must be a whole number, not text\n",
    )


async def test_a_taken_port_is_one_line_and_code_1(exe: Path) -> None:
    broker = WineBroker(exe)
    try:
        await start(broker)
        result = wine(exe, "--port", str(broker.port))
        assert result.returncode == 1, result.stdout
        assert re.search(rf"^sse-broker: can not listen on 127\.0\.0\.1:{broker.port}: ", result.stdout, re.MULTILINE)
    finally:
        await broker.discard()


# By double click


async def test_a_double_click_leaves_a_configuration_and_opens_the_demo(own_exe: Path, tmp_path: Path) -> None:
    """The browser is a script that notes what it is asked to open."""
    opened, browser, port = tmp_path / "opened.txt", tmp_path / "browser", free_port()
    browser.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    browser.chmod(0o755)
    key = r"HKCU\Software\Wine\WineBrowser"
    assert wine("reg", "add", key, "/v", "Browsers", "/d", browser, "/f").returncode == 0
    with double_clicked(own_exe, SSE_BROKER_SERVER_PORT=str(port)) as process:
        await until(lambda: opened.exists() and opened.read_text(), seconds=START_SECONDS, what="page in the browser")
        assert opened.read_text() == f"http://127.0.0.1:{port}/demo\n"
        assert own_exe.with_name("config.toml").read_bytes() == EXAMPLE
        async with Api(f"http://127.0.0.1:{port}") as api:
            assert (await api.request("GET", "/demo")).status == 200
        assert await ctrl_c(own_exe, process) == 0
        for part in (r"change them in Z:\\.*\\desktop\\config.toml", "backend: embedded", f"127.0.0.1:{port}/demo"):
            assert re.search(part, process.text()), part


async def test_the_configuration_beside_it_is_obeyed_and_kept(own_exe: Path) -> None:
    port = free_port()
    text = f"# mine\n[server]\nport = {port}\n"
    own_exe.with_name("config.toml").write_text(text)
    with double_clicked(own_exe, "--no-browser") as process:
        await until(lambda: f"Demo: http://127.0.0.1:{port}/demo" in process.text(), seconds=START_SECONDS)
        assert own_exe.with_name("config.toml").read_text() == text
        assert await ctrl_c(own_exe, process) == 0
        assert "change them" not in process.text()


async def test_over_an_error_the_window_stays_open(own_exe: Path) -> None:
    """On a console of its own: the line that helps stands there until Enter is pressed."""
    own_exe.with_name("config.toml").write_text("[server]\nport = 'x'\n")
    with on_console(own_exe) as (process, console, seen):
        await until(lambda: "Press Enter" in seen(), seconds=START_SECONDS)
        assert "server.port must be a whole number" in seen()
        assert process.poll() is None
        await press(b"\r", process, console)
        assert process.returncode == 2


async def test_ctrl_c_on_its_console_ends_it(own_exe: Path) -> None:
    own_exe.with_name("config.toml").write_text(f"[server]\nport = {free_port()}\n")
    with on_console(own_exe, "--no-browser") as (process, console, seen):
        await until(lambda: "To stop, press Ctrl-C" in seen(), seconds=START_SECONDS)
        await press(b"\x03", process, console)
        assert process.returncode == 0
        assert "stopped" in seen()


# The console


@contextmanager
def on_console(exe: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Callable[[], str]]]:
    """Start the exe on a console that it has for itself: the process, the keyboard, and what the screen has shown."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 400))  # wide, so that no line is broken
    os.set_blocking(ours, False)
    shown = bytearray()

    def seen() -> str:
        with suppress(OSError):  # nothing new, or the end
            while more := os.read(ours, 65536):
                shown.extend(more)
        return shown.decode(errors="replace")

    process = subprocess.Popen(
        ["setsid", "--ctty", "wine", str(exe), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | WINE_ENVIRONMENT | {"TERM": "xterm"},
    )
    os.close(theirs)
    try:
        yield process, ours, seen
    finally:
        kill_wine(exe)
        process.kill()
        process.wait(10)
        os.close(ours)


async def press(key: bytes, process: subprocess.Popen[bytes], console: int) -> None:
    """Press a key, and again as a person would, until the program has ended: Wine's console loses one now and then."""
    pressed_at = -math.inf

    def ended() -> bool:
        nonlocal pressed_at
        if time.monotonic() - pressed_at > PRESS_AGAIN_SECONDS:
            pressed_at = time.monotonic()
            os.write(console, key)
        return process.poll() is not None

    await until(ended, seconds=START_SECONDS, pause_seconds=0.1, what="the end")


CLOSE = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sse_broker import config, server, windows_console

handlers = []
install = windows_console.ConsoleHandler.install

def remember(self):
    handlers.append(self)
    return install(self)

windows_console.ConsoleHandler.install = remember

def close_when_told():
    while not Path("close").exists():
        time.sleep(0.05)
    handlers[0].handle(windows_console.CTRL_CLOSE)
    print("the handler returned, and Windows ended the process")

def on_ready(url):
    threading.Thread(target=close_when_told, daemon=True).start()

server.run(config.load(Path(sys.argv[3])), on_ready)  # the arguments: folder, -c, file
print("ended in order")
"""


async def test_closing_the_window_drains(exe: Path, tmp_path: Path) -> None:
    """Wine 8 ends a process whose window is closed without asking it, so here the handler is called by hand; that it is
    really installed is what the test with Ctrl-C shows.
    """
    script = tmp_path / "close.py"
    script.write_text(CLOSE)
    broker = BrokerProcess(env=WINE_ENVIRONMENT, program=(*WINE_COMMAND, str(wine_python()), str(script), str(ROOT)))
    try:
        await start(broker)
        async with broker.client("ann", "phone") as stream:
            (broker.folder / "close").touch()
            assert (await stream.next_event("sys_instance_close")).data == broker.address
            assert await stream.wait_closed() == "clean"
        assert await broker.wait() == 0
        await until(lambda: broker.stderr_text().endswith("ended in order\n"), what="last words")
    finally:
        await broker.discard()


# The release


def test_the_zip_holds_program_configuration_and_read_me(exe: Path) -> None:
    with zipfile.ZipFile(exe.with_name(f"sse-broker-{VERSION}-windows.zip")) as archive:
        assert sorted(archive.namelist()) == [
            "sse-broker/README.txt",
            "sse-broker/config.toml",
            "sse-broker/sse-broker.exe",
        ]
        assert archive.read("sse-broker/sse-broker.exe") == exe.read_bytes()
        assert archive.read("sse-broker/config.toml") == EXAMPLE
        text = archive.read("sse-broker/README.txt").decode()
        assert text.count("\r\n") == text.count("\n") > 5
        assert "--no-browser" in text


def test_the_pins_are_what_setup_cfg_asks_for() -> None:
    """Each library that the program needs on Windows or on Linux has a pinned version within the wanted range."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = (ROOT / "packaging" / "pins.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    extra = parser["options.extras_require"]["public-keys"].strip()
    for line in [*parser["options"]["install_requires"].strip().splitlines(), extra]:
        wanted = Requirement(line)
        (pin,) = (pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(wanted.name))
        (exact,) = pin.specifier
        assert wanted.specifier.contains(exact.version), line
        assert str(pin.marker) == str(wanted.marker), line
