"""A child process of a test, with its output in a file. It knows nothing of what the program does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waiting import until


class ChildProcess:
    """One run of a program, ended by its own pid. Not tied to an event loop: a fixture of any scope may own it."""

    def __init__(self, command: Sequence[str], output: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.output = output
        # A test run that is killed leaves no servers behind: the kernel ends them with their parent.
        guard = ["setpriv", "--pdeathsig", "KILL"] if sys.platform == "linux" and shutil.which("setpriv") else []
        with output.open("ab") as sink:
            self._process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=output.parent,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet (a frozen process runs)."""
        return self.exit_code is None

    def text(self) -> str:
        """Return all that the program has printed so far."""
        return self.output.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.running:
            os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP); the kernel goes on accepting its connections and bytes."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self.signal(signal.SIGCONT)

    async def wait(self, *, seconds: float) -> int:
        """Wait for its end and return the exit code.

        Raises: AssertionError with the end of its output if it still runs after `seconds`.
        """
        try:
            await until(lambda: not self.running, seconds=seconds, what=f"end of process {self.pid}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()[-4000:]}") from None
        return self._process.wait()

    async def terminate(self, *, seconds: float = 15) -> tuple[int, float]:
        """Ask it to end (SIGTERM) and return the exit code and how many seconds that took."""
        start = time.monotonic()
        self.signal(signal.SIGTERM)
        code = await self.wait(seconds=seconds)
        return code, time.monotonic() - start

    async def kill(self) -> None:
        """End it at once (SIGKILL), frozen or not."""
        self.signal(signal.SIGKILL)
        await self.wait(seconds=10)
