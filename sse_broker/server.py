"""The life of one instance: sockets, backend, broker and HTTP server come up in order and go down in the reverse, and
signals are obeyed. It knows every part and none of their insides.
"""

import asyncio
import logging
import signal
import ssl
import sys
import time
from collections.abc import Callable

from sse_broker import logs
from sse_broker.backend import Backend
from sse_broker.broker import Broker
from sse_broker.config import Config, ServerConfig, with_random_secret
from sse_broker.errors import BrokerError, ConfigError
from sse_broker.listener import listen, public_address
from sse_broker.memory import MemoryBackend
from sse_broker.redis_backend import RedisBackend
from sse_broker.tokens import Tokens
from sse_broker.web_api import Api
from sse_broker.web_door import HttpServer
from sse_broker.windows_console import ConsoleHandler

log = logging.getLogger(__name__)

OnReady = Callable[[str], None]

# Descriptors kept free of streams: for back ends, Redis, logs.
SPARE_FILES = 200
# Windows has no limit to set; a process may have this many handles.
WINDOWS_HANDLES = 1 << 24
# Unacknowledged for this many heartbeat intervals, a peer is gone: one interval until something is sent, then this.
PEER_TIMEOUT_HEARTBEATS = 1.5


def run(config: Config, on_ready: OnReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; call `on_ready` with the base URL once requests are answered. Raises: StartError."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config, on_ready))


async def serve(config: Config, on_ready: OnReady | None = None) -> None:
    """Start everything, wait for a signal to end, and stop everything. Raises: StartError."""
    log_files = logs.setup(config.server)
    stop = Stop()
    stop.install(log_files.reopen)
    try:
        await _serve(config, stop, on_ready)
    except BrokerError:
        raise
    except Exception:
        log.exception("the broker ends on an error of its own")
        raise
    finally:
        log_files.close()


async def _serve(config: Config, stop: "Stop", on_ready: OnReady | None) -> None:
    ssl_context = tls_context(config.server)
    sockets = listen(
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
    )
    if not config.jwt.secret:
        log.warning("jwt.secret is not set: tokens are signed with a random secret that ends with this process")
        config = with_random_secret(config)
    try:
        await broker.start()
        tokens = Tokens(config.jwt.secret, config.jwt.previous_secrets)
        http = HttpServer(Api(broker, tokens, config))
        await http.start(sockets, ssl_context)
    except BaseException:
        for sock in sockets:
            sock.close()
        await broker.close()
        raise
    url = _say_where(broker.instance.address, config)
    if on_ready is not None:
        on_ready(url)
    await stop.wait()
    await _shut_down(broker, http, config.server.drain_seconds, stop)


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


class Stop:
    """Signals, as the loop sees them: SIGTERM and SIGINT end the program, a second one at once; SIGHUP reopens logs."""

    def __init__(self) -> None:
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._console: ConsoleHandler | None = None

    def install(self, on_hangup: Callable[[], None]) -> None:
        """Take over the process's signals."""
        loop = asyncio.get_running_loop()
        self._console = ConsoleHandler(lambda: loop.call_soon_threadsafe(self.request))
        if self._console.install():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)

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


def tls_context(server: ServerConfig) -> ssl.SSLContext | None:
    """Return what the listener needs for TLS 1.2 and newer; None when it serves plain HTTP. Raises: ConfigError."""
    if not server.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(server.tls_cert, server.tls_key)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"server.tls_cert {server.tls_cert} and server.tls_key {server.tls_key} can not be used: {reason}"
        ) from None
    return context


def file_limit() -> int:
    """Return how many files this process may open."""
    if sys.platform == "win32":
        return WINDOWS_HANDLES
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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
