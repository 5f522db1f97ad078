"""Networks of a test's own: hosts in network namespaces, joined by switches whose ports can be made to swallow every packet.

A cut is silence, as from a dead switch: no reset, no refusal, no lost carrier. Nothing of the machine's own network is
touched, and nothing stays behind: the kernel removes a namespace with its last process, and these end with the test run.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ChildProcess
from tests.waiting import until

CLONE_NEWNET = 0x40000000
# What a port of a bridge does with packets (ip-link(8), bridge_slave state).
DISABLED, FORWARDING = "0", "3"


def why_not() -> str:
    """Return why networks can not be made here; empty text if they can."""
    missing = [name for name in ("ip", "bridge", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"no {', '.join(missing)} here (tests/install_tools.sh)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"network namespaces can not be made: {tried.stderr.strip()}" if tried.returncode else ""


class Network:
    """Hosts and switches. `start` and `stop` own them; `switches` gives each switch its net, such as `10.1.0`."""

    def __init__(self, switches: dict[str, str]) -> None:
        self._switches = switches
        self._folder = tempfile.TemporaryDirectory(prefix="network-")
        self._holders: dict[str, ChildProcess] = {}

    async def start(self) -> None:
        """Make the switches."""
        await self._hold("")
        for switch in self._switches:
            self._run("", "ip", "link", "add", switch, "type", "bridge")
            self._run("", "ip", "link", "set", switch, "up")

    async def stop(self) -> None:
        """Remove all."""
        for holder in self._holders.values():
            await holder.kill()
        self._folder.cleanup()

    async def add(self, host: str, number: int, *switches: str) -> None:
        """Add a host that has this number in the nets of these switches; its name has up to seven letters."""
        await self._hold(host)
        self._run(host, "ip", "link", "set", "lo", "up")
        for switch in switches:
            inside, port = ("netns", str(self._holders[host].pid)), f"{switch}-{host}"
            pair = ("ip", "link", "add", port, "type", "veth", "peer", "name", switch, *inside)
            self._run("", *pair)
            self._run("", "ip", "link", "set", port, "master", switch, "up")
            self._run(host, "ip", "address", "add", f"{self.address(switch, number)}/24", "dev", switch)
            self._run(host, "ip", "link", "set", switch, "up")

    def address(self, switch: str, number: int) -> str:
        """Return the address of a number in the net of a switch."""
        return f"{self._switches[switch]}.{number}"

    def inside(self, host: str) -> tuple[str, ...]:
        """Return the beginning of a command that then runs on a host; the process keeps its id."""
        return ("nsenter", f"--net={self._path(host)}")

    def cut(self, host: str, *switches: str) -> None:
        """Have the ports of a host swallow everything, in both directions."""
        for switch in switches:
            self._run("", "bridge", "link", "set", "dev", f"{switch}-{host}", "state", DISABLED)

    def heal(self, host: str, *switches: str) -> None:
        """End a cut."""
        for switch in switches:
            self._run("", "bridge", "link", "set", "dev", f"{switch}-{host}", "state", FORWARDING)

    @contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """Have this thread be on a host: every socket that it makes meanwhile is there."""
        with open("/proc/thread-self/ns/net") as home, open(self._path(host)) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    async def _hold(self, host: str) -> None:
        """Start a process that does nothing but have a namespace of its own."""
        output = Path(self._folder.name) / f"{host or 'switches'}.txt"
        holder = self._holders[host] = ChildProcess(["unshare", "--net", "sleep", "infinity"], output)
        ours = os.readlink("/proc/self/ns/net")

        def apart() -> bool:
            assert holder.running, holder.text()
            return os.readlink(self._path(host)) != ours

        await until(apart, what="a network namespace")

    def _path(self, host: str) -> str:
        return f"/proc/{self._holders[host].pid}/ns/net"

    def _run(self, host: str, *command: str) -> None:
        done = subprocess.run([*self.inside(host), *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _enter(namespace: int) -> None:
    """See setns(2), which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
