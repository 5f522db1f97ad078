"""Who is at the other end of a connection, through proxies that are trusted and no others. Pure."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: object, headers: Mapping[str, str], trusted: Sequence[Network]) -> str:
    """Return the client's address: `ip:port` of the peer, or what trusted proxies say of it.

    `X-Forwarded-For` is read from its end, since only what trusted proxies appended is to be believed: the client is the
    last address there that is no trusted proxy itself. `X-Real-IP` counts without it. A proxy seldom says the port.
    """
    host, port = _host_and_port(peer)
    if not host or not _is_trusted(host, trusted):
        return join_host_port(host, port) if host else ""
    hops = [hop.strip() for hop in headers.get("X-Forwarded-For", "").split(",")]
    claimed = _last_untrusted(hops, trusted) or _plain(headers.get("X-Real-IP", "").strip())
    return claimed or join_host_port(host, port)


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(peer: object) -> tuple[str, int]:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0])
        return host.removeprefix("::ffff:"), int(peer[1])
    return "", 0


def _last_untrusted(hops: Iterable[str], trusted: Sequence[Network]) -> str:
    found = ""
    for hop in reversed(list(hops)):
        address = _plain(hop)
        if not address:
            break  # what stands before something malformed can not be trusted either
        found = address
        if not _is_trusted(address, trusted):
            break
    return found


def _plain(text: str) -> str:
    """Return the address without port and brackets, or empty text when it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text)).removeprefix("::ffff:")
    except ValueError:
        return ""


def _is_trusted(host: str, trusted: Sequence[Network]) -> bool:
    if not trusted:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in trusted)
