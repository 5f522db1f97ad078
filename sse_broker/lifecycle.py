"""What a broker in one process and the parent of several workers share: the signals that end it, and the lines that say where
it is. It knows nothing of what is served.
"""

import asyncio
import logging
import signal
from collections.abc import Callable

from sse_broker.config import Config
from sse_broker.windows_console import ConsoleHandler

log = logging.getLogger(__name__)


class Stop:
    """Signals, as the loop sees them: SIGTERM and SIGINT end the program, a second one at once; SIGHUP has logs reopened and
    the configuration read again.
    """

    def __init__(self) -> None:
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._console: ConsoleHandler | None = None
        self._on_hangup: list[Callable[[], None]] = []

    def install(self) -> None:
        """Take over the process's signals."""
        loop = asyncio.get_running_loop()
        self._console = ConsoleHandler(lambda: loop.call_soon_threadsafe(self.request))
        if self._console.install():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def on_hangup(self, callback: Callable[[], None]) -> None:
        """Have something done at SIGHUP, after what was asked for before."""
        self._on_hangup.append(callback)

    def hang_up(self) -> None:
        """Do what is to be done at SIGHUP."""
        for callback in self._on_hangup:
            callback()

    def request(self) -> None:
        """Ask for the end; asking twice means now."""
        (self._second if self._first.is_set() else self._first).set()

    def drain(self) -> None:
        """Ask for the end; asking twice changes nothing."""
        self._first.set()

    def at_once(self) -> None:
        """Ask for the end, now."""
        self._first.set()
        self._second.set()

    @property
    def requested(self) -> bool:
        """Whether the end was asked for."""
        return self._first.is_set()

    async def wait(self) -> None:
        """Return when the end was asked for."""
        await self._first.wait()

    async def wait_again(self) -> None:
        """Return when it was asked for twice."""
        await self._second.wait()


def say_where(address: str, config: Config) -> str:
    """Log where the broker is, for whoever started it, and return its base URL."""
    url = f"{'https' if config.server.tls_cert else 'http'}://{address}"
    log.info("serving on %s, backend: %s", address, "Redis" if config.redis.addrs else "embedded")
    log.info("demo page: %s/demo   API page: %s/", url, url)
    return url
