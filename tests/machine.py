"""A computer of its own for tests that install a service: this machine's disk under a layer that takes every change, with
its own processes and a real systemd, which ends with the test. Needs root. Knows nothing of brokers.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import ChildProcess
from tests.waiting import until

# No mount and no process is left behind however the test ends: the kernel ends what is in here with its first process.
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
# Nothing that this machine has set to start is to start in there: only systemd and its journal. A control group of its
# own keeps it apart from another one at the same time.
BOOT = """
set -eu
for top in CGROUPS; do
    [ ! -f "$top/cgroup.procs" ] || { mkdir "$top/$2"; echo 0 > "$top/$2/cgroup.procs"; }
done
mount -t tmpfs none "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/root"
rm -rf "$1"/root/etc/systemd/system/*
echo 0123456789abcdef0123456789abcdef > "$1/root/etc/machine-id"
exec systemd-nspawn --quiet --directory "$1/root" --boot --register=no --keep-unit --console=pipe \
    --kill-signal=SIGRTMIN+3 --machine "$2" systemd.unit=basic.target
"""
CGROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")


class Machine:
    """Use with `async with`. It shares the network of this machine, so a service on a loopback port can be reached."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="machine-")
        self._name = Path(self._folder.name).name.replace("_", "0")
        self._process: ChildProcess | None = None
        self._init = 0

    @property
    def root(self) -> Path:
        """Its disk, as a path of this machine."""
        return Path(f"/proc/{self._init}/root")

    async def __aenter__(self) -> Self:
        folder = Path(self._folder.name)
        (folder / "disk").mkdir()
        self._process = ChildProcess(
            [
                *NAMESPACES,
                "sh",
                "-c",
                BOOT.replace("CGROUPS", " ".join(CGROUPS)),
                "sh",
                str(folder / "disk"),
                self._name,
            ],
            folder / "output.txt",
        )
        try:
            await until(self._booted, seconds=60, what="boot of the machine", pause_seconds=0.1)
        except BaseException as error:
            text = self._process.text()
            await self._end()
            raise AssertionError(f"{error}\n{text[-4000:]}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    def run(self, *command: str | Path, seconds: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end, output and errors together. Raises: AssertionError if it fails."""
        result = subprocess.run(
            ["nsenter", "--target", str(self._init), "--all", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            check=False,
        )
        assert result.returncode == 0 or not check, f"{command}: {result.returncode}\n{result.stdout[-4000:]}"
        return result

    def put(self, file: Path) -> str:
        """Copy a file into it and return where it lies there."""
        (self.root / "root" / file.name).write_bytes(file.read_bytes())
        return f"/root/{file.name}"

    def _booted(self) -> bool:
        assert self._process is not None
        assert self._process.running, f"systemd-nspawn ended with {self._process.exit_code}"
        if not self._init:
            nspawn = first_process(self._process.pid)
            self._init = first_process(nspawn) if nspawn else 0
            if not self._init:
                return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    async def _end(self) -> None:
        assert self._process is not None
        await self._process.kill()
        await until(self._cgroups_removed, what="end of the machine's control groups", pause_seconds=0.05)
        self._folder.cleanup()

    def _cgroups_removed(self) -> bool:
        tops = [Path(top, self._name) for top in CGROUPS]
        for top in filter(Path.exists, tops):
            for folder, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):  # its last process has not ended yet
                    os.rmdir(folder)
        return not any(map(Path.exists, tops))


def first_process(pid: int) -> int:
    """Return the child of a process that is an init of its own processes, 0 if there is none yet."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        if status["PPid"] == str(pid) and status["NSpid"].split()[-1] == "1":
            return int(folder.name)
    return 0
