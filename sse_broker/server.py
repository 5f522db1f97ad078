"""The life of one instance: sockets, backend, broker and HTTP server come up in order and go down in the reverse, and
signals are obeyed. It knows every part and none of their insides.
"""

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable

from aiohttp import web

from sse_broker import logs
from sse_broker.access import access_of, public_keys_of
from sse_broker.backend import Backend
from sse_broker.broker import Broker
from sse_broker.config import Config, ServerConfig, with_random_secret
from sse_broker.errors import BrokerError
from sse_broker.file_limits import file_limit
from sse_broker.gate import Gate
from sse_broker.listener import listen, public_address
from sse_broker.memory import MemoryBackend
from sse_broker.metrics import Metrics
from sse_broker.redis_backend import RedisBackend
from sse_broker.reload import Reloader, tls_context
from sse_broker.slow_clients import SlowClients
from sse_broker.systemd import Notifier, inherited_sockets
from sse_broker.web_api import Api
from sse_broker.web_door import HttpServer
from sse_broker.web_jwks import JwkSet
from sse_broker.web_ops import admin_application
from sse_broker.windows_console import ConsoleHandler

log = logging.getLogger(__name__)

OnReady = Callable[[str], None]
ReadConfig = Callable[[], Config]

# Descriptors kept free of streams: for back ends, Redis, logs.
SPARE_FILES = 200
# Unacknowledged for this many heartbeat intervals, a peer is gone: one interval until something is sent, then this.
PEER_TIMEOUT_HEARTBEATS = 1.5
ADMIN_PEER_TIMEOUT_SECONDS = 30.0


def run(config: Config, on_ready: OnReady | None = None, read: ReadConfig | None = None) -> None:
    """Serve until SIGTERM or SIGINT; call `on_ready` with the base URL once requests are answered.

    `read` gives the configuration anew at SIGHUP. Raises: StartError.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config, on_ready, read))


async def serve(config: Config, on_ready: OnReady | None = None, read: ReadConfig | None = None) -> None:
    """Start everything, wait for a signal to end, and stop everything. Raises: StartError."""
    log_files = logs.setup(config.server)
    stop = Stop()
    stop.on_hangup(log_files.reopen)
    stop.install()
    try:
        await _serve(config, stop, on_ready, read or (lambda: config))
    except BrokerError:
        raise
    except Exception:
        log.exception("the broker ends on an error of its own")
        raise
    finally:
        log_files.close()


async def _serve(config: Config, stop: "Stop", on_ready: OnReady | None, read: ReadConfig) -> None:
    made_up = not config.jwt.secret
    config = with_random_secret(config)
    ssl_context = tls_context(config.server)
    public_keys = public_keys_of(config)
    gate = Gate(access_of(config, public_keys))
    reloader = Reloader(config, read, gate, public_keys, ssl_context)
    notifier = Notifier()
    sockets = inherited_sockets() or listen(
        config.server.host,
        config.server.port,
        peer_timeout_seconds=PEER_TIMEOUT_HEARTBEATS * config.sse.heartbeat_interval,
    )
    broker = Broker(
        make_backend(config),
        address=public_address(sockets),
        heartbeat_seconds=config.sse.heartbeat_interval,
        max_buffer_bytes=config.sse.max_buffer_bytes,
        max_streams=config.server.max_connections or file_limit() - SPARE_FILES,
        end_expired=config.jwt.end_streams,
    )
    if made_up:
        log.warning("jwt.secret is not set: tokens are signed with a random secret that ends with this process")
    jwks = JwkSet(config.jwt.jwks_url, public_keys, config.jwt.jwks_refresh) if config.jwt.jwks_url else None
    try:
        if jwks is not None:
            await jwks.start()
        await broker.start()
        http = HttpServer(Api(broker, gate, config, jwks))
        await http.start(sockets, ssl_context)
        admin = await _start_admin(broker, gate, config.server)
    except BaseException:
        for sock in sockets:
            sock.close()
        await broker.close()
        if jwks is not None:
            await jwks.close()
        raise

    def reload() -> None:
        notifier.reloading()
        reloader.reload()
        notifier.ready()

    stop.on_hangup(reload)
    _spare_garbage_collector()
    slow_clients = SlowClients(http, gate, config.server.trusted_networks)
    slow_clients.start()
    url = _say_where(broker.instance.address, config)
    if on_ready is not None:
        on_ready(url)
    notifier.ready()
    await stop.wait()
    slow_clients.close()
    notifier.stopping()
    await _shut_down(broker, http, config.server.drain_seconds, stop)
    if admin is not None:
        await admin.cleanup()
    await notifier.close()
    if jwks is not None:
        await jwks.close()


async def _start_admin(broker: Broker, gate: Gate, server: ServerConfig) -> web.AppRunner | None:
    if not server.admin_port:
        return None
    sockets = listen(server.host, server.admin_port, peer_timeout_seconds=ADMIN_PEER_TIMEOUT_SECONDS)
    runner = web.AppRunner(
        admin_application(broker, Metrics(broker, gate.counters)), access_log=None, shutdown_timeout=1
    )
    await runner.setup()
    for sock in sockets:
        await web.SockSite(runner, sock).start()
    return runner


async def _shut_down(broker: Broker, http: HttpServer, drain_seconds: float, stop: "Stop") -> None:
    log.info("stopping: %d streams to end", len(broker.registry))
    deadline = time.monotonic() + drain_seconds
    http.stop_listening()
    # A second of the time is for what follows.
    drain = asyncio.create_task(broker.drain(max(0.0, drain_seconds - 1)), name="drain")
    forced = asyncio.create_task(stop.wait_again(), name="second signal")
    await asyncio.wait({drain, forced}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, forced):
        task.cancel()
    await asyncio.gather(drain, forced, return_exceptions=True)
    await http.close()
    try:
        await asyncio.wait_for(broker.close(), max(0.5, deadline - time.monotonic()))
    except TimeoutError:
        log.warning("the backend did not take the last changes of presence; the other instances will clear them")
    log.info("stopped")


def _spare_garbage_collector() -> None:
    """Have the collector look at new objects, seldom, and not at what the program is made of.

    Nothing on the hot paths makes cycles. With Python's thresholds 15,000 opening streams had it walk all of them again and
    again, in pauses of up to 20 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 1_000)


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
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def on_hangup(self, callback: Callable[[], None]) -> None:
        """Have something done at SIGHUP, after what was asked for before."""
        self._on_hangup.append(callback)

    def _hang_up(self) -> None:
        for callback in self._on_hangup:
            callback()

    def request(self) -> None:
        """Ask for the end; asking twice means now."""
        (self._second if self._first.is_set() else self._first).set()

    async def wait(self) -> None:
        """Return when the end was asked for."""
        await self._first.wait()

    async def wait_again(self) -> None:
        """Return when it was asked for twice."""
        await self._second.wait()


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


def _say_where(address: str, config: Config) -> str:
    url = f"{'https' if config.server.tls_cert else 'http'}://{address}"
    log.info("serving on %s, backend: %s", address, "Redis" if config.redis.addrs else "embedded")
    log.info("demo page: %s/demo   API page: %s/", url, url)
    return url
