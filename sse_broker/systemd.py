"""What systemd is told, and what it hands over: readiness, reloading, stopping, the watchdog, and sockets that it opened.
Nothing happens where the service manager did not ask for it.

The protocol is datagrams of NAME=VALUE lines to one socket (sd_notify(3)) and inherited descriptors from 3 on
(sd_listen_fds(3)): a few lines, for which the libraries at hand are bindings to C that wheels do not carry.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3


class Notifier:
    """Tells the service manager how this process is doing; without one it does nothing.

    `watchdog_seconds`: how long the service manager lets a process stand still; 0: it does not look.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds(environ)
        self._task: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """Say that requests are answered, and begin to feed the watchdog from the loop, which a stuck loop does not do."""
        self._tell("READY=1")
        if self._address and self.watchdog_seconds and self._task is None:
            self._task = asyncio.create_task(self._feed(self.watchdog_seconds / 2), name="watchdog")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the end has begun. The watchdog is fed until the process is gone."""
        self._tell("STOPPING=1")

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _feed(self, seconds: float) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(seconds)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError as error:
            log.debug("the service manager is not told %s: %s", state.partition("=")[0], error)


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process (socket activation); none, mostly.

    The variables are removed, so that no child takes them for its own.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        with suppress(OSError):
            sock = socket.socket(fileno=descriptor)
            sock.set_inheritable(False)
            sock.setblocking(False)
            sockets.append(sock)
    return sockets


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isdigit() else 0
