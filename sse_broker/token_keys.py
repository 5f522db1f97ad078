"""Public keys that tokens may be signed with: out of PEM files and JWK sets, each bound to one algorithm.

Owns which kinds of keys are accepted. Must not know where a JWK set came from (`web_jwks` fetches), nor claims (`tokens`).
No key here is ever a secret for HS256: a public key that would be taken for one is the classic forgery.
"""

import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jwt.algorithms import Algorithm, get_default_algorithms, has_crypto
from jwt.exceptions import PyJWTError

from sse_broker.config_checks import BadValue

PUBLIC_ALGORITHMS = ("RS256", "ES256", "EdDSA")
MIN_RSA_BITS = 2048
# Verifying takes 30 to 150 µs for each key, so a token that names none must not have hundreds tried.
MAX_TRIED_KEYS = 16
MAX_KEYS = 256
# RFC 7518, section 6, and RFC 8037: the members of each kind, so that no other (a private part, say) is even looked at.
_JWK_MEMBERS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}
_JWK_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Hold one key, its one algorithm, and the id under which it was published, if it has one."""

    algorithm: str
    key: Any = field(repr=False)
    key_id: str | None = None


class PublicKeys:
    """The public keys in force: those of files, and those fetched last; `awaits` while some are to be fetched.

    False when there are none and none will come.
    """

    __slots__ = ("_algorithms", "_awaits", "_fetched", "_fixed")

    def __init__(self, fixed: Sequence[PublicKey] = (), *, awaits: bool = False) -> None:
        self._algorithms = _algorithms()
        self._awaits = awaits
        self._fixed = tuple(fixed)
        self._fetched: tuple[PublicKey, ...] = ()

    def __len__(self) -> int:
        return len(self._fixed) + len(self._fetched)

    def __bool__(self) -> bool:
        return self._awaits or len(self) > 0

    def replace_fixed(self, keys: Iterable[PublicKey]) -> None:
        """Take other keys of files."""
        self._fixed = tuple(keys)

    def replace_fetched(self, keys: Iterable[PublicKey]) -> None:
        """Take the keys of a JWK set in place of those that it held before."""
        self._fetched = tuple(keys)

    def candidates(self, algorithm: str, key_id: str | None) -> list[PublicKey]:
        """Return the keys that may have signed a token with this header; keys without id fit every id."""
        return [
            key
            for key in (*self._fixed, *self._fetched)
            if key.algorithm == algorithm and (key_id is None or key.key_id is None or key.key_id == key_id)
        ][:MAX_TRIED_KEYS]

    def verify(self, key: PublicKey, message: bytes, signature: bytes) -> bool:
        """Tell whether a key signed a message."""
        try:
            return self._algorithms[key.algorithm].verify(message, key.key, signature)
        except (ValueError, TypeError):
            return False


def require_library(key: str) -> None:
    """Refuse a configuration with public keys where what they are checked with is not installed. Raises: ConfigError."""
    if not has_crypto:
        raise BadValue(f"{key} needs the package cryptography: pip install 'sse-broker[public-keys]'", key)


def read_key_files(paths: Sequence[str]) -> list[PublicKey]:
    """Return the keys of PEM files. Raises: ConfigError."""
    keys = []
    if paths:
        require_library("jwt.public_keys")
    for path in paths:
        try:
            pem = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadValue(f"jwt.public_keys: {path} can not be read: {reason}", "jwt.public_keys") from None
        key = _key_of_pem(pem)
        if key is None:
            raise BadValue(
                f"jwt.public_keys: {path} holds no public key in PEM that is RSA of {MIN_RSA_BITS} bits or more, P-256 or "
                "Ed25519",
                "jwt.public_keys",
            )
        keys.append(key)
    return keys


def parse_jwk_set(text: bytes) -> list[PublicKey]:
    """Return the keys of a JWK set (RFC 7517, section 5) that sign tokens; others are left out, as section 5 asks.

    Raises: ValueError when it is none, or holds no key that can be used.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    entries = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is no JWK set")
    keys = [key for entry in entries[:MAX_KEYS] if isinstance(entry, dict) and (key := _key_of_jwk(entry)) is not None]
    if not keys:
        raise ValueError(f"it holds no key for {', '.join(PUBLIC_ALGORITHMS)}")
    return keys


def _key_of_pem(pem: bytes) -> PublicKey | None:
    if b"PRIVATE KEY" in pem:
        return None
    for name, algorithm in _algorithms().items():
        try:
            key = algorithm.prepare_key(pem)
        except (PyJWTError, ValueError, TypeError):
            continue
        if _is_good(name, key):
            return PublicKey(name, key)
    return None


def _key_of_jwk(jwk: dict[str, Any]) -> PublicKey | None:
    kind, curve, use, key_id = (jwk.get(name) for name in ("kty", "crv", "use", "kid"))
    if not isinstance(kind, str) or use not in (None, "sig") or not (key_id is None or isinstance(key_id, str)):
        return None
    members = _JWK_MEMBERS.get(kind, ())
    if not members or not all(isinstance(jwk.get(name), str) for name in members):
        return None
    name = _JWK_ALGORITHMS.get((kind, curve if "crv" in members else None))
    if name is None or jwk.get("alg") not in (None, name):
        return None
    try:
        key = _algorithms()[name].from_jwk({member: jwk[member] for member in members})
    except (PyJWTError, ValueError, TypeError, KeyError, binascii.Error):
        return None
    return PublicKey(name, key, key_id) if _is_good(name, key) else None


def _algorithms() -> dict[str, Algorithm]:
    # Without the package cryptography there are none; `tokens` is complete without it.
    if not has_crypto:
        return {}
    known = get_default_algorithms()
    return {name: known[name] for name in PUBLIC_ALGORITHMS}


def _is_good(algorithm: str, key: Any) -> bool:
    """Tell whether a key is of the kind and strength that its algorithm is used with here."""
    if algorithm == "RS256":
        return bool(key.key_size >= MIN_RSA_BITS)
    if algorithm == "ES256":
        return bool(key.curve.name == "secp256r1")
    return type(key).__name__.endswith("Ed25519PublicKey")  # EdDSA is Ed448 too
