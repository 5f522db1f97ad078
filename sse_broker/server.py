"""The life of one instance: sockets, backend, broker and HTTP server come up in order and go down in the reverse, and
signals are obeyed. It knows every part and none of their insides.
"""

import asyncio
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from aiohttp import web

from sse_broker import logs
from sse_broker.access import access_of, public_keys_of
from sse_broker.backend import Backend
from sse_broker.broker import Broker
from sse_broker.config import Config, with_random_secret
from sse_broker.control_line import DRAIN, NOW, READY, RELOAD, REOPEN, WorkerEnd
from sse_broker.errors import BrokerError, StartError
from sse_broker.file_limits import file_limit
from sse_broker.gate import Gate
from sse_broker.http_server import HttpServer
from sse_broker.lifecycle import Stop, say_where
from sse_broker.listener import adopt, listen, public_address
from sse_broker.memory import MemoryBackend
from sse_broker.metrics import Metrics
from sse_broker.redis_backend import RedisBackend
from sse_broker.reload import Reloader, tls_context
from sse_broker.slow_clients import SlowClients
from sse_broker.systemd import Notifier, inherited_sockets
from sse_broker.web_api import Api
from sse_broker.web_jwks import JwkSet
from sse_broker.web_ops import admin_application

log = logging.getLogger(__name__)

OnReady = Callable[[str], None]
ReadConfig = Callable[[], Config]

# Descriptors kept free of streams: for back ends, Redis, logs.
SPARE_FILES = 200
# Unacknowledged for this many heartbeat intervals, a peer is gone: one interval until something is sent, then this.
PEER_TIMEOUT_HEARTBEATS = 1.5
# How long connections that were just accepted have for sending their request, once nothing is accepted any more.
LINGER_SECONDS = 0.2
ADMIN_PEER_TIMEOUT_SECONDS = 30.0
# For a backend that has not started, or whose time the streams took.
MIN_CLOSE_SECONDS = 0.5


def run(
    config: Config, on_ready: OnReady | None = None, read: ReadConfig | None = None, line: WorkerEnd | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; call `on_ready` with the base URL once requests are answered.

    `read` gives the configuration anew at SIGHUP. With a `line`, as one of several workers. Raises: StartError.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config, on_ready, read, line))


async def serve(
    config: Config, on_ready: OnReady | None = None, read: ReadConfig | None = None, line: WorkerEnd | None = None
) -> None:
    """Start everything, wait for a signal to end, and stop everything. Raises: StartError."""
    log_files = logs.setup(config.server, f"worker {line.number}" if line else "")
    stop = Stop()
    stop.on_hangup(log_files.reopen)
    stop.install()
    if line:
        orders = {DRAIN: stop.drain, NOW: stop.at_once, REOPEN: log_files.reopen, RELOAD: stop.hang_up}
        line.obey(orders | {"": stop.drain})
    alive = asyncio.create_task(line.stay_alive(), name="alive") if line else None
    try:
        async with AsyncExitStack() as closing:
            server = _Server(config, stop, read or (lambda: config), line, closing)
            await server.startup()
            await server.main_loop(on_ready)
    except BrokerError:
        raise
    except Exception:
        log.exception("the broker ends on an error of its own")
        raise
    finally:
        if alive is not None:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)
        log_files.close()


class _Server:
    """One instance: what it is made of, and how it starts. How each part ends is put on `closing` when the part is there; the end
    begins with the drain, and an error at any point ends as much.
    """

    def __init__(
        self, config: Config, stop: Stop, read: ReadConfig, line: WorkerEnd | None, closing: AsyncExitStack
    ) -> None:
        self._has_secret = bool(config.jwt.secret)
        self._config = config = with_random_secret(config)
        self._stop = stop
        self._line = line
        self._closing = closing
        self._deadline = 0.0
        self._ssl_context = tls_context(config.server)
        self._public_keys = public_keys_of(config)
        self._gate = Gate(access_of(config, self._public_keys))
        self._reloader = Reloader(config, read, self._gate, self._public_keys, self._ssl_context)
        self._notifier = Notifier()
        self._sockets = open_sockets(config, share_port=line is not None)
        for sock in self._sockets:
            closing.callback(sock.close)
        self._broker = make_broker(config, make_backend(config), public_address(self._sockets))

    async def startup(self) -> None:
        """Begin to serve. Raises: StartError."""
        config, closing = self._config, self._closing
        if not self._has_secret:
            log.warning("jwt.secret is not set: tokens are signed with a random secret that ends with this process")
        jwks = None
        if config.jwt.jwks_url:
            jwks = JwkSet(config.jwt.jwks_url, self._public_keys, config.jwt.jwks_refresh)
            closing.push_async_callback(jwks.close)
            await jwks.start()
        closing.push_async_callback(self._notifier.close)
        closing.push_async_callback(self._close_broker)
        await self._broker.start()
        self._http = HttpServer(Api(self._broker, self._gate, config, jwks))
        closing.push_async_callback(self._http.close)
        await self._http.start(self._sockets, self._ssl_context)
        if config.server.admin_port:
            await self._start_admin(config.server.admin_port + (self._line.number - 1 if self._line else 0))

    async def _start_admin(self, port: int) -> None:
        sockets = listen(self._config.server.host, port, peer_timeout_seconds=ADMIN_PEER_TIMEOUT_SECONDS)
        application = admin_application(self._broker, Metrics(self._broker, self._gate.counters))
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        self._closing.push_async_callback(runner.cleanup)
        await runner.setup()
        for sock in sockets:
            await web.SockSite(runner, sock).start()

    async def main_loop(self, on_ready: OnReady | None) -> None:
        """Say that requests are answered, and return when the end is asked for."""
        slow_clients = SlowClients(self._http, self._gate, self._config.server.trusted_networks)
        self._closing.push_async_callback(self._drain)
        self._closing.callback(slow_clients.close)
        self._stop.on_hangup(self._reload)
        _spare_garbage_collector()
        slow_clients.start()
        if self._line:
            self._line.say(READY)
        else:
            url = say_where(self._broker.instance.address, self._config)
            if on_ready is not None:
                on_ready(url)
        self._notifier.ready()
        await self._stop.wait()

    def _reload(self) -> None:
        self._notifier.reloading()
        self._reloader.reload()
        self._notifier.ready()

    async def _drain(self) -> None:
        """Take nothing new and end every stream, within `drain_seconds`, or at once when that is asked for."""
        drain_seconds = self._config.server.drain_seconds
        self._deadline = time.monotonic() + drain_seconds
        self._notifier.stopping()
        log.info("stopping: %d streams to end", len(self._broker.registry))
        if self._line:
            self._http.leave_port(self._sockets)
        self._http.stop_listening()
        # A second of the time is for what follows.
        drain = asyncio.create_task(self._broker.drain(max(0.0, drain_seconds - 1)), name="drain")
        linger = asyncio.create_task(asyncio.sleep(min(LINGER_SECONDS, drain_seconds)), name="linger")
        forced = asyncio.create_task(self._stop.wait_again(), name="second signal")
        for task in (drain, linger):
            await asyncio.wait({task, forced}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, linger, forced):
            task.cancel()
        await asyncio.gather(drain, linger, forced, return_exceptions=True)

    async def _close_broker(self) -> None:
        try:
            async with asyncio.timeout(max(MIN_CLOSE_SECONDS, self._deadline - time.monotonic())):
                await self._broker.close()
        except TimeoutError:
            log.warning("the backend did not take the last changes of presence; the other instances will clear them")
        if self._deadline:
            log.info("stopped")


def _max_streams(config: Config) -> int:
    """Return how many streams may be open. Raises: StartError where the process may open hardly any file."""
    most = config.server.max_connections or file_limit() - SPARE_FILES
    if most <= 0:
        raise StartError(
            f"only {file_limit()} files may be open, and {SPARE_FILES} are needed beside those of streams: ulimit -n"
        )
    return most


def open_sockets(config: Config, *, share_port: bool = False) -> list[socket.socket]:
    """Return the sockets that systemd opened, or else those that the configuration names. Raises: StartError."""
    seconds = PEER_TIMEOUT_HEARTBEATS * config.sse.heartbeat_interval
    if inherited := inherited_sockets():
        adopt(inherited, peer_timeout_seconds=seconds)
        return inherited
    return listen(config.server.host, config.server.port, peer_timeout_seconds=seconds, share_port=share_port)


def _spare_garbage_collector() -> None:
    """Have the collector look at new objects, seldom, and not at what the program is made of.

    Nothing on the hot paths makes cycles. With Python's thresholds 15,000 opening streams have it walk all of them again and
    again, in one piece each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 1_000)


def make_broker(config: Config, backend: Backend, address: str) -> Broker:
    """Return the broker that the configuration asks for, known as `address`. Raises: StartError."""
    return Broker(
        backend,
        address=address,
        heartbeat_seconds=config.sse.heartbeat_interval,
        max_buffer_bytes=config.sse.max_buffer_bytes,
        max_streams=_max_streams(config),
        end_expired=config.jwt.end_streams,
    )


def make_backend(config: Config) -> Backend:
    """Return the backend that the configuration asks for."""
    if not config.redis.embedded:
        return RedisBackend(config)
    return MemoryBackend(
        max_frames=config.sse.device_frame_cache_size, expire_seconds=config.sse.device_frame_cache_expire
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        if sys.platform == "win32":
            import winloop as fast_loop
        else:
            import uvloop as fast_loop
    except ImportError:
        return None
    return fast_loop.new_event_loop
