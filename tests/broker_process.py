"""The broker as people run it: a process with a configuration file. Knows the contract, not the broker's code."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import jwt
import tomlkit

from tests.event_client import Api, EventClient
from tests.processes import ChildProcess
from tests.waiting import free_port, until

ROOT = Path(__file__).resolve().parents[1]
SECRET = "q7Wm2c9ZtK4xVn8bRd3sYf6hJp1gLa5eQ0uTiOw"
TROUBLE = re.compile(
    r"Traceback \(most recent call last\)|Task was destroyed|never retrieved|never awaited|Exception in callback"
    r"|(?:Resource|Runtime|Deprecation|PendingDeprecation)Warning"
)


class RedisKind(Protocol):
    """What a broker needs to know of a Redis: RedisServer, SentinelSet and RedisCluster fit."""

    @property
    def config(self) -> dict[str, Any]:
        """The `[redis]` table."""

    @property
    def ca_file(self) -> Path:
        """The certificate of its authority, if it speaks TLS."""


class BrokerProcess:
    """One broker on a free port, from start to end. Use with `async with`, which ends in `stop`.

    `config` holds tables laid over the defaults of the tests: a fixed secret, 127.0.0.1, a free port. `redis` is one of
    the servers of the tests, or give `redis_addrs`. The port stays the same over restarts.
    """

    def __init__(
        self,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        redis: RedisKind | None = None,
        redis_addrs: Sequence[str] = (),
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        program: Sequence[str] = (sys.executable, "-X", "dev", "-m", "sse_broker"),
    ) -> None:
        self.config: dict[str, dict[str, Any]] = {
            "server": {"host": "127.0.0.1", "port": port or free_port()},
            "jwt": {"secret": SECRET},
        }
        if redis is not None or redis_addrs:
            self.config["redis"] = redis.config if redis else {"addrs": list(redis_addrs)}
        for table, keys in (config or {}).items():
            self.config.setdefault(table, {}).update(keys)
        self.host, self.port = str(self.config["server"]["host"]), int(self.config["server"]["port"])
        self._folder = tempfile.TemporaryDirectory(prefix="broker-")
        self.folder = Path(self._folder.name)
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("SSE_BROKER_")}
        self._env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        if redis is not None and redis.config.get("tls"):
            self._env["SSL_CERT_FILE"] = str(redis.ca_file)
        self._env |= env or {}
        self._command = [*program, "-c", str(self.config_file), *arguments]
        self._process: ChildProcess | None = None
        self._expected_trouble: list[re.Pattern[str]] = []

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.discard()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.stop()
        else:
            await self.discard()

    @property
    def config_file(self) -> Path:
        """The configuration file, written anew at each start."""
        return self.folder / "config.toml"

    @property
    def address(self) -> str:
        """The instance address, `ip:port`."""
        return f"{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"{'https' if self.config['server'].get('tls_cert') else 'http'}://{self.address}"

    @property
    def process(self) -> ChildProcess:
        """The current process."""
        assert self._process is not None, "the broker was never started"
        return self._process

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether a process is there (frozen counts)."""
        return self._process is not None and self._process.running

    def stderr_text(self) -> str:
        """Return all that was printed so far, over all starts, standard output included."""
        return self._process.text() if self._process else ""

    def launch(self) -> None:
        """Start the process and do not wait for anything."""
        assert not self.running
        self.config_file.write_text(tomlkit.dumps(self.config))
        self._process = ChildProcess(self._command, self.folder / "output.txt", env=self._env)

    async def start(self, *, seconds: float = 60) -> None:
        """Start it and wait until it accepts connections.

        Raises: AssertionError with its output if it ends before, or takes longer than `seconds`.
        """
        self.launch()

        async def answers() -> bool:
            assert self.running, f"the broker ended with {self.process.exit_code}:\n{self.stderr_text()[-4000:]}"
            try:
                _, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                return False
            writer.close()
            return True

        try:
            await until(answers, seconds=seconds, what=f"broker on {self.address}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.stderr_text()[-4000:]}") from None

    async def wait(self, *, seconds: float = 20) -> int:
        """Wait for its end and return the exit code."""
        return await self.process.wait(seconds=seconds)

    async def terminate(self, *, seconds: float = 20) -> tuple[int, float]:
        """Send SIGTERM, wait for the end, and return the exit code and the seconds that it took."""
        return await self.process.terminate(seconds=seconds)

    async def kill(self) -> None:
        """End it with SIGKILL; `start` brings it back."""
        await self.process.kill()

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP)."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.thaw()

    async def restart(self) -> None:
        """Drain and end it (SIGTERM), and start it again on the same port."""
        code, _ = await self.terminate()
        assert code == 0, f"exit code {code}:\n{self.stderr_text()[-4000:]}"
        await self.start()

    def expect_trouble(self, pattern: str) -> None:
        """Let lines of the output that match `pattern` pass, where a test provokes them on purpose."""
        self._expected_trouble.append(re.compile(pattern))

    def assert_clean_output(self) -> None:
        """Check that no traceback, lost task, leaked resource or other warning stands in the output."""
        lines = self.stderr_text().splitlines()
        for number, line in enumerate(lines):
            if TROUBLE.search(line) and not any(known.search(line) for known in self._expected_trouble):
                around = "\n".join(lines[max(0, number - 5) : number + 40])
                raise AssertionError(f"the broker on {self.address} printed:\n{around}")

    async def stop(self) -> None:
        """End it if it still runs (exit code 0 expected), check its output, and remove its folder."""
        try:
            if self.running:
                self.thaw()
                await self.terminate()
            code = self.process.exit_code
            assert code in (0, -signal.SIGKILL), f"exit code {code}:\n{self.stderr_text()[-4000:]}"
            self.assert_clean_output()
        finally:
            await self.discard()

    async def discard(self) -> None:
        """End it at once and remove its folder, with no check."""
        if self.running:
            await self.kill()
        self._folder.cleanup()

    # Using it

    def api(self, key: str | None = None) -> Api:
        """Return a client of its endpoints, for `async with`."""
        return Api(self.base_url, key)

    def mint(self, uid: str, device: str | None = None, *, ttl: float = 300, secret: str = "") -> str:
        """Make a token as a back end that shares the secret would, without asking the broker."""
        now = time.time()
        # The extra claim makes each token another one, so that a kick does not revoke those minted in the same second.
        claims: dict[str, Any] = {"uid": uid, "iat": int(now), "exp": int(now + ttl), "jti": secrets.token_hex(8)}
        if device is not None:
            claims["device_name"] = device
        return jwt.encode(claims, secret or self.config["jwt"]["secret"], algorithm="HS256")

    def client(self, uid: str, device: str, **options: Any) -> EventClient:
        """Return a client with a fresh token, not yet connected; `options` are those of EventClient."""
        return EventClient(self.base_url, token=self.mint(uid, device), device=device, **options)
