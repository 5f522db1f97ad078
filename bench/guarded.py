"""What guarding costs: TLS for a delivery, limits for a send and for an opening, each against the same without.

For TLS a small client in Python holds the streams, so they are few; only the broker's CPU is counted, and the client's is its own.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

from harness import HOST, OUT, BenchError, Process, broker, cpu_seconds, mint
from lab import Bed, Cost, Lab, Row

TLS_STREAMS = 200
PAYLOAD = b"x" * 64
SECONDS = 20
# High enough to refuse nothing: what counts is the looking.
LIMITS = """[limits]
exempt = []
streams_per_user = 1000000
streams_per_address = 1000000
opens_per_second = 1000000
connections_per_address = 1000000
sends_per_second = 1000000
"""


class Streams:
    """Open streams to one broker, over TLS or not, and a connection for sends."""

    def __init__(self, server: Process, tls: ssl.SSLContext | None, stack: contextlib.ExitStack) -> None:
        self._server, self._tls, self._stack = server, tls, stack
        self.sockets = [self._opened(number) for number in range(TLS_STREAMS)]
        self._sender = self._connected()

    def _connected(self) -> socket.socket:
        connection = self._stack.enter_context(socket.create_connection((HOST, self._server.port), SECONDS))
        if self._tls is None:
            return connection
        return self._stack.enter_context(self._tls.wrap_socket(connection))

    def _opened(self, number: int) -> socket.socket:
        stream, device = self._connected(), f"device-{number}"
        head = f"GET /events?device={device}&token={mint(f'user-{number}', device)} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        stream.sendall(head.encode())
        self._read_until(stream, b"sys_connected")
        return stream

    def _read_until(self, connection: socket.socket, mark: bytes) -> None:
        seen = b""
        while mark not in seen:
            more = connection.recv(65536)
            if not more:
                raise BenchError(f"the broker closed a connection: {seen[:200]!r}")
            seen += more

    def broadcasts(self, count: int) -> float:
        """Send broadcasts, each after the last was delivered; return the broker's CPU in us per delivery."""
        before = sum(map(cpu_seconds, self._server.pids))
        for number in range(count):
            mark = b"%s-%d." % (PAYLOAD, number)
            body = b"data=" + mark
            head = b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            self._sender.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self._read_until(self._sender, b'"result"')
            for stream in self.sockets:
                self._read_until(stream, mark)
        return 1e6 * (sum(map(cpu_seconds, self._server.pids)) - before) / (count * TLS_STREAMS)


def tls(lab: Lab) -> Iterator[Row]:
    """CPU of the broker per delivery of a broadcast over TLS 1.3, and how many times that is of the same without TLS."""
    certificate, key = OUT / "tls.crt", OUT / "tls.key"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    subprocess.run([*make, "-subj", "/CN=bench", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)
    lines = f'tls_cert = "{certificate}"\ntls_key = "{key}"\n'
    count = 20 if lab.quick else 60
    with contextlib.ExitStack() as stack:
        over_tls = Streams(stack.enter_context(broker(server_lines=lines)), client, stack)
        plain = Streams(stack.enter_context(broker()), None, stack)
        for streams in (over_tls, plain):
            streams.broadcasts(2)
        pairs = [(over_tls.broadcasts(count), plain.broadcasts(count)) for _ in range(lab.rounds)]
    dear, cheap = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    details = {"plain_us": cheap, "pairs": [[round(a, 2), round(b, 2)] for a, b in pairs]}
    yield Row(f"broadcast over TLS, {TLS_STREAMS} streams", dear, "us/delivery", tracked=False, details=details)
    times = statistics.median(a / b for a, b in pairs)
    yield Row("broadcast over TLS against none", times, "times", tracked=False)


def limits(
    lab: Lab, targeted: Callable[[Lab, Bed], Cost], reopen: Callable[[Bed], Cost], streams: int
) -> Iterator[Row]:
    """CPU of a send and of an opening while all limits are looked at, over the same from an address that is exempt."""
    with lab.bed("embedded", streams, tables=LIMITS) as limited, lab.bed("embedded", streams) as exempt:
        for name, work in (("targeted send", partial(targeted, lab)), ("opening", reopen)):
            pairs = [(work(limited).total, work(exempt).total) for _ in range(lab.rounds)]
            details = {"pairs": [[round(a, 2), round(b, 2)] for a, b in pairs]}
            times = statistics.median(a / b for a, b in pairs)
            yield Row(f"{name} with limits against without", times, "times", tracked=False, details=details)
            time.sleep(0.1)
