"""The life of one instance: sockets, backend, broker and HTTP server come up in order and go down in the reverse, and
signals are obeyed. It knows every part and none of their insides.
"""

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable

from aiohttp import web

from sse_broker import logs
from sse_broker.access_log import AccessLogger
from sse_broker.backend import Backend
from sse_broker.broker import Broker
from sse_broker.config import Config, ServerConfig, with_random_secret
from sse_broker.errors import BrokerError, ConfigError
from sse_broker.listener import BACKLOG, listen, public_address
from sse_broker.memory import MemoryBackend
from sse_broker.redis_backend import RedisBackend
from sse_broker.tokens import Tokens
from sse_broker.web import MAX_LINE_BYTES, application

log = logging.getLogger(__name__)

# Descriptors kept free of streams: for back ends, Redis, logs.
SPARE_FILES = 200
# Unacknowledged for this many heartbeat intervals, a peer is gone: one interval until something is sent, then this.
PEER_TIMEOUT_HEARTBEATS = 1.5


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises: StartError."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config))


async def serve(config: Config) -> None:
    """Start everything, wait for a signal to end, and stop everything. Raises: StartError."""
    log_files = logs.setup(config.server)
    stop = Stop()
    stop.install(log_files.reopen)
    try:
        await _serve(config, stop)
    except BrokerError:
        raise
    except Exception:
        log.exception("the broker ends on an error of its own")
        raise
    finally:
        log_files.close()


async def _serve(config: Config, stop: "Stop") -> None:
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
    tokens = Tokens(config.jwt.secret, config.jwt.previous_secrets)
    try:
        await broker.start()
        runner = await _start_http(broker, tokens, config, sockets, ssl_context)
    except BaseException:
        for sock in sockets:
            sock.close()
        await broker.close()
        raise
    _say_where(broker.instance.address, config)
    await stop.wait()
    await _shut_down(broker, runner, config.server.drain_seconds, stop)


async def _start_http(
    broker: Broker,
    tokens: Tokens,
    config: Config,
    sockets: list[socket.socket],
    ssl_context: ssl.SSLContext | None,
) -> web.AppRunner:
    runner = web.AppRunner(
        application(broker, tokens, config),
        access_log_class=AccessLogger.trusting(config.server.trusted_networks),
        access_log=logging.getLogger("aiohttp.access"),
        handler_cancellation=False,  # see web_events.take_over
        handle_signals=False,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        shutdown_timeout=1,
    )
    await runner.setup()
    for sock in sockets:
        await web.SockSite(runner, sock, backlog=BACKLOG, ssl_context=ssl_context).start()
    return runner


async def _shut_down(broker: Broker, runner: web.AppRunner, drain_seconds: float, stop: "Stop") -> None:
    log.info("stopping: %d streams to end", len(broker.registry))
    deadline = time.monotonic() + drain_seconds
    for site in list(runner.sites):
        await site.stop()
    # A second of the time is for what follows.
    drain = asyncio.create_task(broker.drain(max(0.0, drain_seconds - 1)), name="drain")
    forced = asyncio.create_task(stop.wait_again(), name="second signal")
    await asyncio.wait({drain, forced}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, forced):
        task.cancel()
    await asyncio.gather(drain, forced, return_exceptions=True)
    await runner.cleanup()
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

    def install(self, on_hangup: Callable[[], None]) -> None:
        """Take over the process's signals."""
        loop = asyncio.get_running_loop()
        wanted = {"SIGTERM": self.request, "SIGINT": self.request, "SIGBREAK": self.request, "SIGHUP": on_hangup}
        for name, callback in wanted.items():
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, callback)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_, callback=callback: loop.call_soon_threadsafe(callback))

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


def _say_where(address: str, config: Config) -> None:
    scheme = "https" if config.server.tls_cert else "http"
    log.info("serving on %s, backend: %s", address, "Redis" if config.redis.addrs else "embedded")
    log.info("demo page: %s://%s/demo   API page: %s://%s/", scheme, address, scheme, address)
