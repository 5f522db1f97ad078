"""The processes of a benchmark: the broker, its Redis, the references and load clients are started, asked and ended here. It knows how
to run them and what their files are, and nothing of what is measured.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
OUT = BENCH / "out"
SECRET = "a-secret-for-benchmarks-and-nothing-else"
HOST = "127.0.0.1"
# A load client with 15,000 streams, its publishers and the usual few files.
FILES_NEEDED = 15_400
START_SECONDS = 20
STOP_SECONDS = 15
TOKEN_SECONDS = 86_400

Result = dict[str, Any]


class BenchError(Exception):
    """A benchmark could not be run, or what it ran answered wrongly."""


# --- tools and inputs ---


def prepare() -> None:
    """Make bench/out/, and let this process and its children open as many files as is allowed. Raises: BenchError."""
    OUT.mkdir(exist_ok=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < FILES_NEEDED:
        raise BenchError(f"the limit of open files is {hard}: 15,000 streams need {FILES_NEEDED} (ulimit -n)")


def compile_tool(name: str, sources: list[Path]) -> Path:
    """Compile C sources into bench/out/ unless that is newer than they are; return the program. Raises: BenchError."""
    program = OUT / name
    newest = max(path.stat().st_mtime for path in [*sources, *sources[0].parent.glob("*.h")])
    if not program.exists() or program.stat().st_mtime < newest:
        compiler = shutil.which(os.environ.get("CC", "gcc"))
        if compiler is None:
            raise BenchError("gcc is missing: the references and the load client are written in C")
        command: list[str | Path] = [
            compiler,
            "-O2",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-o",
            program,
            *(s for s in sources if s.suffix == ".c"),
        ]
        subprocess.run(command, check=True)
    return program


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def mint(uid: str, device: str) -> str:
    """Return a token as a back end that shares the secret would mint it (HS256, RFC 7519)."""
    now = int(time.time())
    claims = {"uid": uid, "device_name": device, "iat": now, "exp": now + TOKEN_SECONDS}
    signed = ".".join(
        _base64(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    return f"{signed}.{_base64(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


def write_tokens(prefix: str, count: int) -> Path:
    """Write a load client's file of `count` devices, each of its own user; return its path."""
    path = OUT / f"tokens-{prefix}-{count}.tsv"
    with path.open("w") as file:
        for number in range(count):
            device, uid = f"{prefix}-device-{number:05}", f"{prefix}-user-{number:05}"
            file.write(f"{device}\t{uid}\t{mint(uid, device)}\n")
    return path


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


# --- processes ---


class Process:
    """A started program. `pids` are its own and its children's, once it is up."""

    def __init__(self, name: str, command: list[str | Path], port: int) -> None:
        self.name = name
        self.port = port
        self.log_path = OUT / f"{name}-{port}.log"
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pids(self) -> list[int]:
        """Itself and its descendants."""
        found = [self.popen.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    def wait_until_up(self) -> None:
        """Return once the port takes connections. Raises: BenchError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.popen.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            time.sleep(0.05)
        raise BenchError(f"{self.name} did not start: {self.log_path.read_text()[-1000:]}")

    def stop(self) -> None:
        """End it, by force if it does not listen."""
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, all threads, from its clock (the id is made as clock_getcpuclockid(3) does)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def running(name: str, command: list[str | Path], port: int) -> Iterator[Process]:
    """Run a server for as long as the context lasts. Raises: BenchError."""
    process = Process(name, command, port)
    try:
        process.wait_until_up()
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def send_loop() -> Iterator[Process]:
    """Run the bare C send loop."""
    program, port = compile_tool("send_loop", [BENCH / "send_loop.c"]), free_port()
    with running("send_loop", [program, str(port)], port) as process:
        yield process


@contextlib.contextmanager
def minimal_server() -> Iterator[Process]:
    """Run the minimal aiohttp server."""
    port = free_port()
    with running("minimal", [sys.executable, BENCH / "minimal_server.py", str(port)], port) as process:
        yield process


@contextlib.contextmanager
def redis_server() -> Iterator[Process]:
    """Run a Redis that keeps nothing on disk."""
    program, port = shutil.which("redis-server"), free_port()
    if program is None:
        raise BenchError("redis-server is missing")
    options = ["--bind", HOST, "--save", "", "--appendonly", "no", "--dir", str(OUT), "--maxclients", "1000"]
    with running("redis", [program, "--port", str(port), *options], port) as process:
        yield process


@contextlib.contextmanager
def broker(
    redis: Process | None = None,
    *,
    workers: int = 1,
    heartbeat_seconds: int = 60,
    stall_file: Path | None = None,
    server_lines: str = "",
    tables: str = "",
) -> Iterator[Process]:
    """Run a broker as users do, on the embedded backend or on the given Redis; its logs go to a file.

    `server_lines` are further keys of `[server]`, `tables` further tables.
    Heartbeats are rare by default, since most scenarios measure something else. With `stall_file` its loop is watched.
    """
    port = free_port()
    config = OUT / f"broker-{port}.toml"
    text = f'[server]\nhost = "{HOST}"\nport = {port}\nworkers = {workers}\n{server_lines}'
    text += f'[jwt]\nsecret = "{SECRET}"\n{tables}'
    text += f"[sse]\nheartbeat_interval = {heartbeat_seconds}\n"
    if redis is not None:
        text += f'[redis]\naddrs = ["{HOST}:{redis.port}"]\n'
    config.write_text(text)
    program: list[str | Path] = ["-m", "sse_broker"] if stall_file is None else [BENCH / "stall_watch.py", stall_file]
    with running("broker", [sys.executable, *program, "-c", config], port) as process:
        yield process


def read_stalls(server: Process, stall_file: Path) -> Result:
    """Return what the watch on a broker's loop has seen since it was asked last. Raises: BenchError."""
    stall_file.unlink(missing_ok=True)
    server.popen.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + START_SECONDS
    while not stall_file.exists():
        if time.monotonic() > deadline:
            raise BenchError("the watched broker does not answer its signal")
        time.sleep(0.01)
    result: Result = json.loads(stall_file.read_text())
    return result


# --- load clients ---


class LoadClient:
    """A load client with its tokens, connected to one server: one command in, one result out."""

    def __init__(self, server: Process, tokens: Path, redis: Process | None = None, *, urgent: bool = False) -> None:
        program = compile_tool("load_client", sorted((BENCH / "load").glob("*.c")))
        command: list[str | Path] = [program, HOST, str(server.port), tokens]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if urgent:
            # A probe must not wait for a core behind the client that makes the load; without the right to, it will.
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, self._popen.pid, -15)
        pids = ",".join(map(str, server.pids))
        self.ask(f"pids server={pids}" + (f" redis={redis.popen.pid}" if redis else ""))

    def begin(self, command: str) -> None:
        """Start a command without waiting for its end."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(command + "\n")
        self._popen.stdin.flush()

    def result(self) -> Result:
        """Wait for the end of the command begun last. Raises: BenchError."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise BenchError("the load client ended; its message stands above")
        result: Result = json.loads(line)
        if "error" in result:
            raise BenchError(f"load client: {result['error']}")
        return result

    def ask(self, command: str) -> Result:
        """Run a command to its end. Raises: BenchError."""
        self.begin(command)
        return self.result()

    def close(self) -> None:
        """End it; its streams end with it."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@contextlib.contextmanager
def load_client(
    server: Process, tokens: Path, redis: Process | None = None, *, urgent: bool = False
) -> Iterator[LoadClient]:
    """Run a load client for as long as the context lasts."""
    client = LoadClient(server, tokens, redis, urgent=urgent)
    try:
        yield client
    finally:
        client.close()
