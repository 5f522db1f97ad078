"""API keys: how one is written in the configuration, what it may do, and which one a request carries.

Pure. Owns the names and scopes of keys and the look-up by digest. Must not know HTTP, nor what happens after a wrong key
(`gate`).
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sse_broker.target import Reach

SCOPES = ("token", "send", "info", "kick")
HASH_MARK = "sha256:"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls an endpoint: a name for logs, the endpoints that it may call, and whom it may send to (None: all)."""

    name: str
    scopes: frozenset[str]
    reach: Reach | None = None


ANYONE = Caller("anyone", frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Hold one key: its caller, and the SHA-256 of its secret.

    `secret` is empty when the configuration holds only the hash; it is there for checks of its strength.
    """

    caller: Caller
    digest: bytes = field(repr=False)
    secret: str = field(default="", repr=False, compare=False)


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a key. Keys are random and long, so a slow hash with salt would protect nothing more."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def plain_key(number: int, secret: str) -> ApiKey:
    """Return the key that `api.keys` holds at a place, counted from 1: it opens every endpoint."""
    return ApiKey(Caller(f"key-{number}", frozenset(SCOPES)), digest_of(secret), secret)


def named_key(text: str) -> ApiKey:
    """Return the key that `name:scopes:secret` describes; the secret may be `sha256:` and 64 hex digits.

    Scopes are joined by `+`; `*` is all. Raises: ValueError, with words that follow the name of the setting and tell no
    secret.
    """
    name, _, rest = text.partition(":")
    scopes_text, colon, secret = rest.partition(":")
    if not colon:
        raise ValueError('must hold keys written "name:scopes:secret", such as "shop:send+info:<secret>"')
    if not _NAME.fullmatch(name):
        raise ValueError("holds a key whose name is not 1 to 64 letters, digits, dots, dashes or underscores")
    scopes = frozenset(SCOPES) if scopes_text == "*" else frozenset(scopes_text.split("+"))
    if not scopes <= frozenset(SCOPES):
        raise ValueError(f"holds the key {name} with a scope that is none of {', '.join(SCOPES)}, nor * for all")
    caller = Caller(name, scopes)
    if not secret:
        raise ValueError(f"holds the key {name} without a secret")
    if not secret.startswith(HASH_MARK):
        return ApiKey(caller, digest_of(secret), secret)
    digits = secret.removeprefix(HASH_MARK).lower()
    if not _HASH.fullmatch(digits):
        raise ValueError(f"holds the key {name} with a hash that is not 64 hex digits")
    return ApiKey(caller, bytes.fromhex(digits))


class ApiKeys:
    """The keys in force; false when there are none."""

    __slots__ = ("_by_digest",)

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._by_digest = {key.digest: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, given: str) -> ApiKey | None:
        """Return the key with this secret.

        The look-up takes the same time for every wrong key: what is looked up is a hash that nobody can steer byte by
        byte, in a table whose own hash is salted anew in each process.
        """
        digest = digest_of(given)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None
