"""Listening sockets: bound before anything else starts, so that a taken port is a clear error, and with the options that
let the kernel notice peers that vanished. It knows addresses and nothing of what is served.
"""

import socket
import sys
from contextlib import suppress

from sse_broker.client_address import join_host_port
from sse_broker.errors import StartError

BACKLOG = 4096


def listen(host: str, port: int, *, peer_timeout_seconds: float, share_port: bool = False) -> list[socket.socket]:
    """Return sockets that listen on every address of `host`; port 0 takes a free one, the same for all.

    `share_port`: several processes may listen on it. Raises: StartError with the address and the reason.
    """
    sockets = _bind(host, port, peer_timeout_seconds, share_port)
    try:
        for sock in sockets:
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except OSError as error:  # two that bound the port at one moment
        raise _refused(sockets, host, port, error) from None
    return sockets


def adopt(sockets: list[socket.socket], *, peer_timeout_seconds: float) -> None:
    """Give sockets that another program opened the options of our own. Raises: StartError for one that does not listen on TCP."""
    for sock in sockets:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            raise StartError("a socket that was handed over is none of TCP: a port is needed in ListenStream=")
        _notice_vanished_peers(sock, peer_timeout_seconds)


def reserve(host: str, port: int) -> list[socket.socket]:
    """Return sockets that hold a port which the caller's children will share; they take no connections themselves.

    Port 0 takes a free one. Raises: StartError, also when others share that port already.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("server.workers above 1 needs SO_REUSEPORT, which this system does not have")
    if port:
        # Whoever else shares the port would let us share it too; a socket that does not share tells.
        for sock in _bind(host, port, 0, False):
            sock.close()
    return _bind(host, port, 0, True)


def _bind(host: str, port: int, peer_timeout_seconds: float, share_port: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            _set_options(sock, peer_timeout_seconds, share_port)
            if family == socket.AF_INET6:  # `::` is every address, of IPv4 too, whatever the system's default
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            chosen = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            sock.bind((address[0], chosen, *address[2:]))
    except OSError as error:
        raise _refused(sockets, host, port, error) from None
    return sockets


def _refused(sockets: list[socket.socket], host: str, port: int, error: OSError) -> StartError:
    for sock in sockets:
        sock.close()
    reason = error.strerror or str(error)
    return StartError(f"can not listen on {join_host_port(host or '*', port)}: {reason.lower()}")


def public_address(sockets: list[socket.socket]) -> str:
    """Return `ip:port` under which this instance is known: the address that others would reach it by."""
    host, port = sockets[0].getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = _outward_address(sockets[0].family) or _outward_address(socket.AF_INET) or socket.gethostname()
    return join_host_port(host, port)


def _set_options(sock: socket.socket, peer_timeout_seconds: float, share_port: bool) -> None:
    if sys.platform != "win32":  # there it would let two programs take one port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _notice_vanished_peers(sock, peer_timeout_seconds)


def _notice_vanished_peers(sock: socket.socket, peer_timeout_seconds: float) -> None:
    # Connections inherit these. Heartbeats that nobody acknowledges for this long end a connection (tcp(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout_seconds * 1000))


def _outward_address(family: int) -> str | None:
    """Return the address that the default route leaves from; a UDP connect sends nothing."""
    probe, target = (socket.AF_INET6, "2001:db8::1") if family == socket.AF_INET6 else (socket.AF_INET, "192.0.2.1")
    with suppress(OSError), socket.socket(probe, socket.SOCK_DGRAM) as sock:
        sock.connect((target, 9))
        return str(sock.getsockname()[0])
    return None
