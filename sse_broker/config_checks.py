"""What a configured value may be: addresses, origins, networks, secrets, bounds.

Pure functions that return what they parsed or raise `BadValue`, which knows the keys concerned. Must not know where a
value was written (file, environment, command line): `config` adds that.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from sse_broker.client_address import Network
from sse_broker.errors import ConfigError

MAX_SECONDS = 10 * 366 * 86400
MIN_SECRET_BYTES = 32
MIN_API_KEY_CHARS = 16

# What people leave standing when they copy an example; compared without case and punctuation. Short words ("secret",
# "test") need no entry, their length gives them away.
_PLACEHOLDERS = (
    "changeme",
    "changethis",
    "replaceme",
    "replacethis",
    "replacewith",
    "yoursecret",
    "yourkey",
    "yourapikey",
    "yourjwtsecret",
    "placeholder",
    "examplesecret",
    "examplekey",
    "putasecret",
    "insertsecret",
)
# 32 random hex digits hold fewer than 8 different ones once in 10 million times; "0123012301230123..." always does.
_MIN_DIFFERENT_CHARS = 8
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_ORIGIN_PORTS = {"http": 80, "https": 443}


class BadValue(ConfigError):
    """A key's value is impossible; `keys` are the ones concerned (`table.key`), the one to change first."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def quoted(value: object, limit: int = 60) -> str:
    """Return a value for use in a one-line message: escaped and shortened."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else f'"{value}"'
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_range(key: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Refuse a number outside `low` to `high`, both allowed, and NaN."""
    if not low <= value <= high:
        raise BadValue(f"{key} must be {low} to {high}{unit and ' '}{unit}, not {quoted(value)}", key)


def check_seconds(key: str, value: float, *, zero_allowed: bool = False) -> None:
    """Refuse a duration that is negative, infinite, longer than ten years, or zero where that makes no sense."""
    if not 0 <= value <= MAX_SECONDS or (value == 0 and not zero_allowed):
        least = "0 seconds or more" if zero_allowed else "more than 0 seconds"
        raise BadValue(f"{key} must be {least} and at most ten years, not {quoted(value)}", key)


def check_host(key: str, host: str) -> None:
    """Refuse what can not be an address or a host name to listen on."""
    if not host:
        raise BadValue(f"{key} must not be empty; to listen on every address write 0.0.0.0 or ::", key)
    if _ip_address(host) is None and not _HOST_NAME.fullmatch(host):
        hint = "; the port goes into server.port, and IPv6 stands without brackets" if ":" in host else ""
        raise BadValue(f"{key} must be an IP address or a host name, not {quoted(host)}{hint}", key)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a listener on `host`; names but localhost count as reachable."""
    address = _ip_address(host)
    if address is None:
        return host.lower().rstrip(".") == "localhost"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def parsed_network(key: str, text: str) -> Network:
    """Return the network that an address or `address/length` names."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadValue(
            f"{key} must hold IP addresses or networks such as 10.0.0.0/8, not {quoted(text)}", key
        ) from None


def parsed_address(key: str, text: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6]:port`."""
    host, colon, port_text = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare_host = host[1:-1] if bracketed else host
    address = _ip_address(bare_host)
    good_host = isinstance(address, ipaddress.IPv6Address) if bracketed else _HOST_NAME.fullmatch(bare_host)
    if not colon or not good_host or not re.fullmatch("[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
        hint = "; IPv6 needs brackets, [::1]:6379" if text.count(":") > 1 and "//" not in text else ""
        raise BadValue(f"{key} must hold host:port such as 127.0.0.1:6379, not {quoted(text)}{hint}", key)
    return bare_host, int(port_text)


def check_origin(key: str, origin: str) -> None:
    """Refuse what no browser sends as its `Origin`, since it would never match (RFC 6454, section 6.2), and `null`."""
    if origin == "*":
        return
    wrong = BadValue(f"{key} must hold origins such as https://example.com, or *, not {quoted(origin)}", key)
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if not parts.scheme or not host or "@" in parts.netloc or not (_HOST_NAME.fullmatch(host) or _ip_address(host)):
        raise wrong
    spelled_host = f"[{host}]" if ":" in host else host
    default_port = port is None or port == _ORIGIN_PORTS.get(parts.scheme)
    as_sent = f"{parts.scheme}://{spelled_host}" + ("" if default_port else f":{port}")
    if origin != as_sent:
        raise BadValue(f"{key} holds {quoted(origin)}, which browsers send as {quoted(as_sent)}; write it so", key)


def check_key_address(key: str, url: str) -> None:
    """Refuse an address of signing keys that anybody on the way could answer for: https, or plain HTTP to this machine."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or "@" in parts.netloc or parts.scheme not in _ORIGIN_PORTS:
        raise BadValue(f"{key} must be an address such as https://login.example.com/keys.json, not {quoted(url)}", key)
    if parts.scheme == "http" and not is_loopback(host):
        raise BadValue(f"{key} must begin with https://: who answers there decides whose tokens are good", key)


def check_cookie_name(key: str, name: str) -> None:
    """Refuse what can not be a cookie's name (RFC 6265, section 4.1.1)."""
    if name and not _COOKIE_NAME.fullmatch(name):
        raise BadValue(f"{key} must be the name of a cookie, not {quoted(name)}", key)


def check_header_value(key: str, value: str) -> None:
    """Refuse a key that is empty or that no header can carry. The value never shows in the message."""
    if not value:
        raise BadValue(f"{key} holds an empty key, which would let anybody in; remove it", key)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise BadValue(f"{key} holds a key with spaces or characters beyond ASCII, which no header can carry", key)


def secret_weakness(secret: str) -> str | None:
    """Say why a secret is too weak to face a network, in words that follow its name; None if it will do."""
    if not secret:
        return "is not set"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"is shorter than {MIN_SECRET_BYTES} bytes"
    return "is still a placeholder" if is_placeholder(secret) else None


def api_key_weakness(key: str) -> str | None:
    """Say why an API key is too weak to face a network, in words that follow its name; None if it will do."""
    if len(key) < MIN_API_KEY_CHARS:
        return f"holds a key shorter than {MIN_API_KEY_CHARS} characters"
    return "holds a placeholder" if is_placeholder(key) else None


def is_placeholder(text: str) -> bool:
    """Tell whether a secret of 16 characters or more was copied from an example or typed with one finger."""
    letters = "".join(character for character in text.casefold() if character.isalnum())
    return len(set(text)) < _MIN_DIFFERENT_CHARS or any(word in letters for word in _PLACEHOLDERS)


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
