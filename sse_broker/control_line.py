"""The line between the parent of several workers and each of them: a socket that is the worker's standard input. The parent
says with what configuration to run and when to drain; the worker says when it serves, or why not, and all the while that its
loop turns. The end of the line tells either that the other is dead. It knows words, and nothing of what is done about them.
"""

import asyncio
import contextlib
import json
import os
import socket
import typing
from collections.abc import Callable, Mapping
from typing import Any

from sse_broker.config import Config, schema
from sse_broker.errors import ConfigError

READY = "ready"
# Said by a worker's loop every ALIVE_SECONDS, from its start to its end; it is no word that `hear` returns.
ALIVE = "alive"
ALIVE_SECONDS = 1.0
DRAIN, NOW, REOPEN, RELOAD = "drain", "now", "reopen", "reload"


class ParentEnd:
    """The parent's end of one worker's line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._alive = False

    @classmethod
    async def open(cls, config: Config, number: int) -> tuple["ParentEnd", socket.socket]:
        """Return this end, with the worker's orders already written, and the worker's, to be its standard input.

        Raises: OSError.
        """
        mine, theirs = socket.socketpair()
        try:
            end = cls(*await asyncio.open_connection(sock=mine))
        except BaseException:
            mine.close()
            theirs.close()
            raise
        end.say_config(config, number)
        return end, theirs

    def say_config(self, config: Config, number: int) -> None:
        """Send the configuration, at first and when it was read again."""
        self.say(json.dumps({"number": number, "config": to_tables(config)}))

    def say(self, word: str) -> None:
        """Send a word; one that nobody hears any more is no error."""
        self._writer.write(f"{word}\n".encode())

    async def hear(self, silent_seconds: float) -> str:
        """Return the next word; empty text when the worker is gone.

        Raises: TimeoutError once the worker's loop, heard before, was silent for so long.
        """
        while (word := await self._line(silent_seconds)) == ALIVE:
            self._alive = True
        return word

    async def _line(self, silent_seconds: float) -> str:
        # After the time has passed there is a second look, as it may be this process that stood still.
        for seconds in (silent_seconds, 2 * ALIVE_SECONDS):
            with contextlib.suppress(TimeoutError):
                # A worker that was not heard yet is still being started.
                async with asyncio.timeout(seconds if self._alive else None):
                    return await self._read()
        raise TimeoutError

    async def _read(self) -> str:
        try:
            return (await self._reader.readline()).decode(errors="replace").strip()
        except OSError:
            return ""

    async def close(self) -> None:
        """Hang up: the worker drains."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class WorkerEnd:
    """The worker's end. `number` counts the workers from 1, `config` is what to run with, as last heard."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._heard = b""
        while b"\n" not in self._heard:
            part = sock.recv(65536)
            if not part:
                raise ValueError("the line is dead")
            self._heard += part
        first, _, self._heard = self._heard.partition(b"\n")
        orders = json.loads(first)
        self.number = int(orders["number"])
        self.config = from_tables(orders["config"])

    @classmethod
    def take(cls) -> "WorkerEnd":
        """Make standard input the line, and leave nothing there. Raises: ConfigError when no parent is on it."""
        try:
            sock = socket.socket(fileno=os.dup(0))
        except OSError:
            raise _not_for_people() from None
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        try:
            return cls(sock)
        except (OSError, ValueError, LookupError):
            sock.close()
            raise _not_for_people() from None

    def say(self, word: str) -> None:
        """Send a word to the parent, if there still is one."""
        with contextlib.suppress(OSError):
            self._socket.sendall(f"{word}\n".encode())

    async def stay_alive(self) -> None:
        """Tell the parent again and again that this loop turns; end it by cancelling."""
        while True:
            self.say(ALIVE)
            await asyncio.sleep(ALIVE_SECONDS)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def obey(self, orders: Mapping[str, Callable[[], None]]) -> None:
        """Do from now on what the parent says: `orders` by word; the one named by the empty text when it is gone."""
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._hear, orders)
        self._carry_out(orders)

    def _hear(self, orders: Mapping[str, Callable[[], None]]) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        self._carry_out(orders)
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            orders[""]()

    def _carry_out(self, orders: Mapping[str, Callable[[], None]]) -> None:
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self.config = from_tables(json.loads(line)["config"])
            else:
                orders[line.decode()]()


def _not_for_people() -> ConfigError:
    return ConfigError("--worker is what the program says to itself; set server.workers instead")


def to_tables(config: Config) -> dict[str, Any]:
    """Return a configuration as plain tables."""
    tables = {}
    for table, keys in schema().items():
        values = getattr(config, table)
        tables[table] = {key: getattr(values, key) for key in keys}
    return tables


def from_tables(tables: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the configuration of plain tables."""
    parts = {}
    for table, kind in typing.get_type_hints(Config).items():
        parts[table] = kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in tables[table].items()})
    return Config(**parts)
