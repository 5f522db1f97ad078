"""Who is at the other end of a connection, through proxies that are trusted and no others. Pure."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, overload

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Headers(Protocol):
    """What is needed of a request's headers, whatever the case of their names; `getall` has every line of a name, in order."""

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str) -> str: ...
    def getall(self, name: str, default: Any, /) -> Any: ...


def client_address(peer: object, headers: Headers, trusted: Sequence[Network]) -> str:
    """Return the client's address: `ip:port` of the peer, or what trusted proxies say of it.

    `X-Forwarded-For` is read from its end, since only what trusted proxies appended is to be believed: the client is the
    last address there that is no trusted proxy itself. Several lines are one list (RFC 9110, section 5.3): some proxies
    add a line of their own. `X-Real-IP` counts without it. A proxy seldom says the port.
    """
    host, port = _host_and_port(peer)
    if not trusted or not host or not is_trusted(host, trusted):
        return join_host_port(host, port) if host else ""
    hops = ",".join(headers.getall("X-Forwarded-For", ())).split(",")
    real_ips = headers.getall("X-Real-IP", ("",))
    return _last_untrusted(hops, trusted) or _plain(real_ips[-1]) or join_host_port(host, port)


def client_host(peer: object, headers: Headers, trusted: Sequence[Network]) -> str:
    """Return the client's address without a port, by which it is limited; as cheap as can be where no proxy is trusted."""
    if not trusted:
        return str(peer[0]) if isinstance(peer, tuple) and len(peer) == 2 else peer_host(peer)
    return _plain(client_address(peer, headers, trusted))


def peer_host(peer: object) -> str:
    """Return the address of a connection's other end as sockets name it, IPv4 in its own spelling; empty text for none."""
    return _host_and_port(peer)[0]


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(peer: object) -> tuple[str, int]:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0])
        if len(peer) == 2:  # IPv4 as the system writes it: reading it again would cost each connect 5 µs
            return host, int(peer[1])
        return _plain(host) or host, int(peer[1])
    return "", 0


def _last_untrusted(hops: Iterable[str], trusted: Sequence[Network]) -> str:
    found = ""
    for hop in reversed(list(hops)):
        address = _plain(hop)
        if not address:
            break  # what stands before something malformed can not be trusted either
        found = address
        if not is_trusted(address, trusted):
            break
    return found


def _plain(text: str) -> str:
    """Return the address without port and brackets, IPv4 in its own spelling, or empty text when it is none."""
    text = text.strip()
    if text.startswith("["):
        text, bracket, _ = text[1:].partition("]")
        if not bracket:
            return ""
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return ""  # anything may stand behind a "%", and it means nothing on another machine
        return str(address.ipv4_mapped or address)
    return str(address)


def is_trusted(host: str, trusted: Sequence[Network]) -> bool:
    """Tell whether an address is one of the trusted proxies'."""
    if not trusted:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in trusted)
