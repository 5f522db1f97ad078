"""Several workers on one port, each a whole broker process and an instance of its own in the cluster. This is their parent: it
holds the port's number, starts them, starts those anew that die or stand still, passes signals on, and ends when all have
drained. It serves nothing itself and knows nothing of what they do.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sse_broker import logs
from sse_broker.config import Config
from sse_broker.control_line import DRAIN, NOW, READY, RELOAD, REOPEN, ParentEnd
from sse_broker.errors import BrokerError, ConfigError, StartError
from sse_broker.lifecycle import Stop, say_where
from sse_broker.listener import public_address, reserve
from sse_broker.reload import taken_over
from sse_broker.systemd import Notifier, inherited_sockets

log = logging.getLogger(__name__)

EXIT_BAD_CONFIGURATION = 2
# A worker that lived shorter than this died at once: the next one is started later each time.
SHORT_LIFE_SECONDS = 10.0
RESTART_SECONDS = (0.2, 10.0)
# Beyond the time that a worker may take to drain, before it is killed.
GRACE_SECONDS = 5.0
# A worker whose loop does not turn for so long is killed, where no service manager's watchdog says another time.
STUCK_SECONDS = 30.0


def run(
    config: Config, on_ready: Callable[[str], None] | None = None, read: Callable[[], Config] | None = None
) -> None:
    """Keep `server.workers` workers running until SIGTERM or SIGINT. Raises: ConfigError, StartError.

    `on_ready` is called with the base URL once all of them answer; `read` gives the configuration anew at SIGHUP.
    """
    asyncio.run(Workers(config, on_ready, read).serve())


class Workers:
    """The parent's side of everything. `serve` is its whole life."""

    def __init__(
        self, config: Config, on_ready: Callable[[str], None] | None = None, read: Callable[[], Config] | None = None
    ) -> None:
        self._config = config
        # What `port = 0` has become; the configuration stays as it was read, to be compared with what is read again.
        self._port = config.server.port
        self._on_ready = on_ready
        self._read = read or (lambda: config)
        self._stop = Stop()
        self._notifier = Notifier()
        self._stuck_seconds = self._notifier.watchdog_seconds or STUCK_SECONDS
        self._lines: dict[int, ParentEnd] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._all_serving = asyncio.Event()

    async def serve(self) -> None:
        """Start the workers, keep them until a signal comes, and end them. Raises: ConfigError, StartError."""
        log_files = logs.setup(self._config.server)
        try:
            self._stop.on_hangup(log_files.reopen)
            self._stop.on_hangup(self._reload)
            self._stop.install()
            server = self._config.server
            for sock in (inherited := inherited_sockets()):
                sock.close()
            if inherited:
                raise ConfigError("server.workers above 1 can not take sockets that systemd opened: remove one of both")
            holders = reserve(server.host, server.port)
            try:
                self._port = holders[0].getsockname()[1]
                await self._serve(public_address(holders))
            finally:
                for holder in holders:
                    holder.close()
        finally:
            log_files.close()

    async def _serve(self, address: str) -> None:
        keepers = [
            asyncio.create_task(self._keep(number), name=f"worker {number}")
            for number in range(1, self._config.server.workers + 1)
        ]
        started = asyncio.create_task(self._all_serving.wait(), name="all serving")
        stopped = asyncio.create_task(self._stop.wait(), name="first signal")
        try:
            await asyncio.wait({started, stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                self._notifier.ready()
                url = say_where(address, self._config)
                if self._on_ready is not None:
                    self._on_ready(url)
                await asyncio.wait({stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._notifier.stopping()
            self._stop.drain()
            await self._end(keepers)
            await self._notifier.close()
            for task in (started, stopped):
                task.cancel()
            await asyncio.gather(started, stopped, return_exceptions=True)
        # Each is asked, so that of several the others do not end up in the log as errors that nobody looked at.
        failures = [failure for keeper in keepers if (failure := keeper.exception())]
        if failures:
            raise failures[0]

    async def _end(self, keepers: Sequence["asyncio.Task[None]"]) -> None:
        """Have every worker drain, or end at once after a second signal or when one could not be started."""
        failed = any(keeper.done() and keeper.exception() for keeper in keepers)
        self._say(NOW if failed else DRAIN)
        forced = asyncio.create_task(self._stop.wait_again(), name="second signal")
        done = asyncio.create_task(asyncio.wait(keepers), name="all ended")
        seconds = self._config.server.drain_seconds + GRACE_SECONDS
        await asyncio.wait({forced, done}, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        if forced.done():
            self._say(NOW)
            await asyncio.wait({done}, timeout=GRACE_SECONDS)
        for number, process in self._processes.items():
            log.warning("worker %d does not end; it is killed", number)
            process.kill()
        forced.cancel()
        await asyncio.gather(forced, done, return_exceptions=True)

    def _reload(self) -> None:
        """Read the configuration again, once for all workers; those that start later get it too."""
        self._notifier.reloading()
        try:
            self._reload_config()
        finally:
            self._notifier.ready()

    def _reload_config(self) -> None:
        try:
            self._config = taken_over(self._config, self._read())
        except BrokerError as error:
            log.error("the configuration is not read again, the former one stays: %s", error.message)
            self._say(REOPEN)
            return
        for number, line in self._lines.items():
            line.say_config(self._orders(), number)
            line.say(RELOAD)

    def _orders(self) -> Config:
        """Return the configuration for the workers: all of them on one port."""
        return replace(self._config, server=replace(self._config.server, port=self._port))

    def _say(self, word: str) -> None:
        for line in self._lines.values():
            line.say(word)

    async def _keep(self, number: int) -> None:
        """Run one worker after the other. Raises: ConfigError, StartError when the very first can not be started."""
        pause = RESTART_SECONDS[0]
        first = True
        while not self._stop.requested:
            began = time.monotonic()
            why = await self._run_one(number, raises=first)
            if self._stop.requested:
                return
            first = False
            lived = time.monotonic() - began
            pause = RESTART_SECONDS[0] if lived > SHORT_LIFE_SECONDS else pause
            log.warning("worker %d %s; the next is started in %.1f s", number, why, pause)
            try:
                await asyncio.wait_for(self._stop.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, RESTART_SECONDS[1])

    async def _run_one(self, number: int, *, raises: bool) -> str:
        """Run a worker to its end and return what became of it. Raises: what kept it from serving, if wanted."""
        try:
            line, process = await self._spawn(number)
        except OSError as error:
            # Too many files or processes for now, or an upgrade that is replacing the program.
            why = f"could not be started: {error.strerror or error}"
            if raises:
                raise StartError(f"worker {number} {why}") from None
            return why
        try:
            self._processes[number] = process
            if self._stop.requested:
                line.say(DRAIN)
            word = await self._hear(line, process)
            if word == READY:
                log.info("worker %d serves, process %d", number, process.pid)
                self._serves(number)
                word = await self._hear(line, process)
            code = await self._ended(process)
            why = word or (f"signal {-code}" if code < 0 else f"exit code {code}")
        finally:
            del self._lines[number]
            self._processes.pop(number, None)
            await line.close()
        if raises and number not in self._serving and not self._stop.requested:
            raise _failure(number, code, word, why)
        return f"ended: {why}"

    async def _spawn(self, number: int) -> tuple[ParentEnd, asyncio.subprocess.Process]:
        """Return a new worker and the line to it, which is in `_lines`. Raises: OSError."""
        line, theirs = await ParentEnd.open(self._orders(), number)
        self._lines[number] = line
        try:
            with theirs:
                # A group of its own, so that Ctrl-C in a terminal reaches the parent alone, which passes it on.
                process = await asyncio.create_subprocess_exec(
                    *_command(), stdin=theirs.fileno(), process_group=0, env=_environment()
                )
        except BaseException:
            del self._lines[number]
            await line.close()
            raise
        return line, process

    def _serves(self, number: int) -> None:
        self._serving.add(number)
        if len(self._serving) == self._config.server.workers:
            self._all_serving.set()

    async def _hear(self, line: ParentEnd, process: asyncio.subprocess.Process) -> str:
        """Return the worker's next word; kill one that stands still, since nobody is served by it and its port's share waits."""
        try:
            return await line.hear(self._stuck_seconds)
        except TimeoutError:
            process.kill()
            return f"it stood still for {self._stuck_seconds:g} s and was killed"

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit code of a worker that hung up; one that does not end is killed."""
        try:
            return await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except TimeoutError:
            process.kill()
            return await process.wait()


def _failure(number: int, code: int, word: str, why: str) -> BrokerError:
    kind = ConfigError if code == EXIT_BAD_CONFIGURATION else StartError
    return kind(word or f"worker {number} could not be started: {why}")


def _environment() -> dict[str, str]:
    """Return the environment of a worker: the service manager hears of the parent alone."""
    own = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
    return {name: value for name, value in os.environ.items() if name not in own}


def _command() -> list[str]:
    """Return the command of a worker: this program again."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "--worker"]
    flags = ["-X", "dev"] if sys.flags.dev_mode else []
    return [sys.executable, *flags, "-m", "sse_broker", "--worker"]
