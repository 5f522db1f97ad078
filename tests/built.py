"""What `make bundle`, `make exe`, `make rpm` and `make deb` build, for tests to run; and how a program runs under Wine.

Knows the build by its command only. A build takes a while: at most once for each state of the sources, however often
the tests run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.broker_process import ROOT, BrokerProcess

BUILD_SECONDS = 1500
WINE_FOLDER = ROOT / "build" / "wine"
WINE_ENVIRONMENT = {
    "WINEPREFIX": str(WINE_FOLDER / "prefix"),
    "WINEARCH": "win64",
    "WINEDEBUG": "-all",
    "WINEDLLOVERRIDES": "mscoree=;mshtml=;winemenubuilder.exe=",
    "DISPLAY": "",
}
# A Windows program's output has to go through a pipe: a file that is appended to is no valid handle under Wine 8.
WINE_COMMAND = ("bash", "-c", 'exec wine "$@" > >(exec cat) 2>&1', "wine")


def build(target: str, *, version: str = "") -> Path:
    """Build a target unless it is up to date, and return where it lies; a package may be given another version."""
    command = [sys.executable, str(ROOT / "packaging" / "build.py"), target]
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
        env=os.environ | ({"SSE_BROKER_PACKAGE_VERSION": version} if version else {}),
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    return Path(result.stdout.splitlines()[-1])


class WineBroker(BrokerProcess):
    """The broker's exe under Wine. Ctrl-C stands for SIGTERM, which Windows does not have: Wine makes it of SIGINT.

    The process that is started only unpacks the program, and waits for a second one which is the broker.
    """

    def __init__(self, exe: Path, config: dict[str, dict[str, Any]] | None = None, **options: Any) -> None:
        super().__init__(config, program=(*WINE_COMMAND, str(exe)), env=WINE_ENVIRONMENT, **options)
        self._exe = exe

    async def terminate(self, *, seconds: float = 30) -> tuple[int, float]:
        """Press Ctrl-C, wait for the end, and return the exit code and the seconds that it took."""
        start = time.monotonic()
        for pid in wine_pids(self._exe):
            os.kill(pid, signal.SIGINT)
        return await self.wait(seconds=seconds), time.monotonic() - start

    async def kill(self) -> None:
        """End both of its processes at once."""
        kill_wine(self._exe)
        await super().kill()


def wine_pids(exe: Path) -> list[int]:
    """Return the processes that Windows's view calls by this path: the broker itself, not what unpacked it. It may be another
    test's: no two tests that start one program may run at once.
    """
    name = "Z:" + str(exe).replace("/", "\\")
    return [pid for pid, words in _processes() if words[:1] == [name]]


def kill_wine(exe: Path) -> None:
    """End the broker's process."""
    for pid in wine_pids(exe):
        os.kill(pid, signal.SIGKILL)


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found.append((int(folder.name), [word.decode(errors="replace") for word in words if word]))
    return found


def wine(*command: str | Path, seconds: float = 60, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program under Wine to its end, with its output through a pipe."""
    return subprocess.run(
        ["wine", *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        env=os.environ | WINE_ENVIRONMENT,
        cwd=cwd,
        check=False,
    )


def wine_python() -> Path:
    """Return the Windows Python with which the exe was built."""
    (found,) = WINE_FOLDER.glob("python-*/python.exe")
    return found


def end_wine() -> None:
    """End the server process of this folder's Wine, which would else linger for some seconds."""
    environ, nothing = os.environ | WINE_ENVIRONMENT, subprocess.DEVNULL  # not pipes, which the server would hold open
    subprocess.run(["wineserver", "--kill"], env=environ, timeout=30, check=False, stdout=nothing, stderr=nothing)
