"""A real Redis server of a test, on a free port and in a temporary folder. It knows nothing of the broker.

No persistence unless asked for; ended by its pid. It is not tied to an event loop: a fixture of any scope may own it,
and each client that it hands out belongs to the caller.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.lifetimes import Lifetime
from tests.processes import ChildProcess
from tests.waiting import free_port, until


@dataclass(frozen=True, slots=True)
class Access:
    """How clients get in: a password, an ACL user besides, TLS. The same for every server of a set."""

    username: str = ""
    password: str = ""
    tls: bool = False

    def server_lines(self) -> list[str]:
        """Return the configuration lines of a server."""
        if not self.password:
            return []
        if not self.username:
            return [f"masterauth {self.password}", f"requirepass {self.password}"]
        user = f"user {self.username} on >{self.password} ~* &* +@all"
        return [f"masterauth {self.password}", f"masteruser {self.username}", user, "user default off"]

    def client_options(self, ca_file: Path) -> dict[str, Any]:
        """Return the keyword arguments of a redis-py client."""
        options: dict[str, Any] = {"username": self.username or None, "password": self.password or None}
        if self.tls:
            options |= {"ssl": True, "ssl_ca_certs": str(ca_file)}
        return options


def make_certificate(folder: Path) -> None:
    """Make ca.crt and a certificate for 127.0.0.1 and localhost (server.crt, server.key), valid for two days."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ca = ["-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    leaf = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    leaf += ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "authorityKeyIdentifier=keyid"]
    for name, extra in (("ca", ca), ("server", [*leaf, "-CA", "ca.crt", "-CAkey", "ca.key"])):
        command = ["openssl", "req", "-x509", *new_key, *extra, "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


class RedisServer(Lifetime):
    """One server process: start, stop, kill, freeze; the port stays the same over restarts.

    `persist` keeps the data over restarts (an append-only file, synced at every write). `lines` are further
    configuration lines. `program` is redis-server or valkey-server. With another `host` than this machine, `before` is what
    makes a command run there.
    """

    def __init__(
        self,
        *,
        access: Access | None = None,
        persist: bool = False,
        lines: Sequence[str] = (),
        program: str = "redis-server",
        partner_offset: int = 0,
        arguments: Sequence[str] = (),
        certificates: Path | None = None,
        host: str = "127.0.0.1",
        before: Sequence[str] = (),
    ) -> None:
        self.host, self._before = host, list(before)
        self.port = free_port(partner_offset=partner_offset)
        self.access = access or Access()
        self.program = program
        self._arguments = list(arguments)
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.folder = Path(self._folder.name)
        self._certificates = certificates or self.folder
        self._process: ChildProcess | None = None
        sync = ["appendonly yes", "appendfsync always"] if persist else ["appendonly no"]
        self._lines = [f"bind {host}", "protected-mode no", f"dir {self.folder}", "daemonize no", *self._port_lines()]
        if "--sentinel" not in self._arguments:
            self._lines += ['save ""', *sync, "repl-diskless-sync-delay 0", *self.access.server_lines()]
        self._lines += lines

    def _port_lines(self) -> list[str]:
        if not self.access.tls:
            return [f"port {self.port}"]
        files = [
            f"tls-{key} {self._certificates / name}"
            for key, name in (("cert-file", "server.crt"), ("key-file", "server.key"), ("ca-cert-file", "ca.crt"))
        ]
        return [
            "port 0",
            f"tls-port {self.port}",
            *files,
            "tls-auth-clients no",
            "tls-replication yes",
            "tls-cluster yes",
        ]

    def add_lines(self, lines: Sequence[str]) -> None:
        """Add configuration lines, before the first start."""
        self._lines += lines

    @property
    def addr(self) -> str:
        """The address as `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def addrs(self) -> list[str]:
        """The addresses for the broker's configuration."""
        return [self.addr]

    @property
    def config(self) -> dict[str, Any]:
        """The broker's `[redis]` table for this server."""
        return redis_table(self.addrs, self.access)

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority, with TLS."""
        return self._certificates / "ca.crt"

    @property
    def process(self) -> ChildProcess:
        """The current process."""
        assert self._process is not None, "the server was never started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether a process is there (frozen counts)."""
        return self._process is not None and self._process.running

    def client(self, **options: Any) -> Redis:
        """Return a new client that decodes text and tries each command once; `async with server.client() as redis`."""
        settings: dict[str, Any] = {"decode_responses": True, "retry": Retry(NoBackoff(), 0)}
        settings |= {**self.access.client_options(self.ca_file), **options}
        return Redis(host=self.host, port=self.port, **settings)

    async def ask(self, *command: str | int) -> Any:
        """Run one command on a connection of its own and return the answer."""
        async with self.client() as redis:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        """Start the process and wait until it answers (also while it still loads or has no master)."""
        assert not self.running
        if self.access.tls and not self.ca_file.exists():
            await asyncio.to_thread(make_certificate, self._certificates)
        self._launch()
        await self.ready()

    def _launch(self) -> None:
        config = self.folder / "redis.conf"
        if not config.exists():  # Sentinels rewrite theirs
            config.write_text("\n".join(self._lines) + "\n")
        command = [*self._before, self.program, str(config), *self._arguments]
        self._process = ChildProcess(command, self.folder / "output.txt")

    async def ready(self) -> None:
        """Wait until the server answers PING.

        Raises: AssertionError with its output if it ended or stays silent.
        """

        async def answers() -> bool:
            assert self.running, f"{self.program} ended at once:\n{self.process.text()[-2000:]}"
            try:
                return bool(await self.ask("PING"))
            except (RedisError, OSError):
                return False

        await until(answers, what=f"answer of {self.program} on {self.addr}")

    async def stop(self) -> None:
        """End the process for good and remove its folder."""
        await self.kill()
        self._folder.cleanup()

    async def kill(self) -> None:
        """End the process with SIGKILL; `start` brings it back, with its data only if `persist` was given."""
        if self._process is not None:
            await self._process.kill()

    async def restart(self) -> None:
        """End the process in an orderly way (SIGTERM) and start it again on the same port."""
        await self.process.terminate()
        await self.start()

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP): connections stay open and nothing is answered."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.thaw()

    async def flush(self) -> None:
        """Remove all data."""
        await self.ask("FLUSHALL")

    async def cut_clients(self) -> int:
        """Cut every client connection, of commands and of subscriptions, and return how many there were."""
        async with self.client() as redis:
            normal = await redis.client_kill_filter(_type="normal")
            pubsub = await redis.client_kill_filter(_type="pubsub")
        return int(normal) + int(pubsub)


def redis_table(addrs: Sequence[str], access: Access, *, sentinel: str = "") -> dict[str, Any]:
    """Return a `[redis]` table of the broker's configuration, without keys that keep their default."""
    table: dict[str, Any] = {"addrs": list(addrs), "username": access.username, "password": access.password}
    table |= {"sentinel": sentinel, "tls": access.tls}
    return {key: value for key, value in table.items() if value}
