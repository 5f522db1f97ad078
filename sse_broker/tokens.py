"""Tokens: mint and verify the JWTs that open event streams, HS256 and nothing else.

Owns the claims, the secrets that are in use and the check of time. Must not know where a token came from (header,
query, cookie), nor which tokens were revoked: `Claims.digest` is the name under which others remember that.
"""

import base64
import binascii
import hashlib
import hmac
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidSignatureError, PyJWTError

from sse_broker.errors import BadRequest, BrokerError, ConfigError, Unauthorized

ALGORITHM = "HS256"
MAX_TOKEN_CHARS = 8192
MAX_NAME_CHARS = 256
# The end of the year 9999: a later `exp` is no time that anything here can wait for or hand to Redis.
MAX_EXPIRES_AT = 253_402_300_799

# {"alg":"HS256","typ":"JWT"}, as this program and nearly every library spell it.
_USUAL_HEADER = b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"


@dataclass(frozen=True, slots=True)
class Claims:
    """Hold what a verified token says.

    `device_name` is None for a token that is not bound to a device. `expires_at` is in seconds since the epoch.
    `digest` (32 hex digits) names the token without giving it away; two spellings of one token have one digest.
    """

    uid: str
    device_name: str | None
    expires_at: float
    digest: str


class _PreparedHmac(HMACAlgorithm):
    """HS256 over a key that is bytes already.

    PyJWT examines the key (PEM? DER? JWK?) and its length at each call: 50 of 110 µs, and a warning for each short key.
    Both belong to the start of the program, where `config` decides which secrets are good enough.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> str | None:
        return None

    def sign(self, msg: bytes, key: bytes) -> bytes:
        return hmac.digest(key, msg, "sha256")

    def verify(self, msg: bytes, key: bytes, sig: bytes) -> bool:
        return hmac.compare_digest(sig, hmac.digest(key, msg, "sha256"))


class Tokens:
    """Mint tokens with `secret`; verify those made with it or with one of `previous_secrets`.

    `clock` gives the time in seconds since the epoch. Raises: ConfigError for an empty secret, with which anybody could
    mint.
    """

    __slots__ = ("_clock", "_jws", "_keys")

    def __init__(
        self, secret: str, previous_secrets: Sequence[str] = (), clock: Callable[[], float] = time.time
    ) -> None:
        if not secret or not all(previous_secrets):
            raise ConfigError("jwt.secret and each of jwt.previous_secrets must not be empty")
        self._keys = tuple(text.encode() for text in (secret, *previous_secrets))
        self._clock = clock
        self._jws = PyJWS(algorithms=[])
        self._jws.register_algorithm(ALGORITHM, _PreparedHmac(HMACAlgorithm.SHA256))

    def mint(self, uid: str, device_name: str | None, ttl_seconds: float) -> str:
        """Make a token for a user that lives `ttl_seconds`, rounded up.

        It is bound to one device unless `device_name` is None. Raises: BadRequest for a name or a lifetime that
        `verify` would refuse.
        """
        now = self._clock()
        if not 0 < ttl_seconds <= MAX_EXPIRES_AT - now - 1:
            raise BadRequest("'ttl' must be more than 0 seconds and end before the year 10000")
        # `iat` keeps its fraction: a token that is minted again within the second in which its like was revoked must be
        # another token. RFC 7519, section 2, allows fractions; `exp` stays whole for libraries that forget it.
        claims: dict[str, Any] = {"uid": _checked_name(uid, "'uid'", BadRequest)}
        if device_name is not None:
            claims["device_name"] = _checked_name(device_name, "'device'", BadRequest)
        claims["iat"] = round(now, 6)
        claims["exp"] = math.ceil(now + ttl_seconds)
        return self._jws.encode(json.dumps(claims, separators=(",", ":")).encode(), self._keys[0], ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Check signature, times and names of a token and return its claims.

        Raises: Unauthorized, saying what is wrong with it.
        """
        if not token:
            raise Unauthorized("token is missing")
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthorized(f"token is longer than {MAX_TOKEN_CHARS} characters")
        if not token.isascii():
            raise Unauthorized("token is malformed: it holds characters that no token has")
        claims = self._signed_claims(token)
        return Claims(
            uid=_checked_name(claims.get("uid"), "the token's uid", Unauthorized),
            device_name=_device_name(claims),
            expires_at=self._checked_expiry(claims),
            digest=_digest(token),
        )

    def _signed_claims(self, token: str) -> dict[str, Any]:
        signing_input, _, signature = token.encode().rpartition(b".")
        header, _, payload_text = signing_input.partition(b".")
        if header == _USUAL_HEADER:
            self._check_signature(signing_input, signature)
            claims = _parsed_object(_decoded(payload_text))
        else:
            claims = _parsed_object(self._unusual_payload(token))
        if claims is None:
            raise Unauthorized("token is malformed: its claims are not a JSON object")
        return claims

    def _check_signature(self, signing_input: bytes, signature: bytes) -> None:
        # A header that is known byte for byte needs no parser, and a signature needs no decoder: the one right spelling
        # is compared. PyJWT 2.15 takes 57 µs for the same, 30 of them in a loop over the characters; this takes 8.
        for key in self._keys:
            expected = base64.urlsafe_b64encode(hmac.digest(key, signing_input, "sha256")).rstrip(b"=")
            if hmac.compare_digest(expected, signature):
                return
        raise Unauthorized("token has a signature that does not match the secret")

    def _unusual_payload(self, token: str) -> bytes:
        for key in self._keys:
            try:
                payload: bytes = self._jws.decode_complete(token, key, [ALGORITHM])["payload"]
            except InvalidSignatureError:
                continue
            # The header is parsed before the signature is checked, so anybody can choose what it holds: nesting without
            # end, numbers without end, lists where text belongs. Older releases of PyJWT let such errors through.
            except (PyJWTError, ValueError, TypeError, RecursionError) as error:
                raise Unauthorized(f"token is malformed: it is not a JWT signed with {ALGORITHM}") from error
            return payload
        raise Unauthorized("token has a signature that does not match the secret")

    def _checked_expiry(self, claims: dict[str, Any]) -> float:
        now = self._clock()
        expires_at = _checked_time(claims.get("exp"), "exp")
        if expires_at <= now:
            raise Unauthorized("token has expired")
        if claims.get("nbf") is not None and _checked_time(claims["nbf"], "nbf") > now:
            raise Unauthorized("token is not valid yet")
        return expires_at


def _digest(token: str) -> str:
    # Without the signature: it follows from the rest, and a lenient base64 decoder takes several spellings of it, each
    # of which would be a token that nobody revoked.
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:32]


def _decoded(segment: bytes) -> bytes:
    # Its signature is good, so this needs not be strict about spellings, only not fail on any.
    try:
        return base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except binascii.Error:
        return b""


def _parsed_object(payload: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(payload.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _device_name(claims: dict[str, Any]) -> str | None:
    # Minters that always write the claim leave it empty for a token that is not bound.
    name = claims.get("device_name")
    return None if name is None or name == "" else _checked_name(name, "the token's device_name", Unauthorized)


def _checked_time(value: object, name: str) -> float:
    if value is None:
        raise Unauthorized(f"token has no {name}")
    if not _is_number(value) or not 0 <= value <= MAX_EXPIRES_AT:
        raise Unauthorized(f"token has an {name} that is not a time in seconds")
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    # A bool is an int, and JSON of Python's kind knows NaN and Infinity.
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _checked_name(value: object, what: str, error: type[BrokerError]) -> str:
    """Return a user's or device's name as text; numbers are taken as text, as everywhere in the API."""
    if not isinstance(value, str) and _is_number(value):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise error(f"{what} must be a non-empty text")
    if len(value) > MAX_NAME_CHARS:
        raise error(f"{what} is longer than {MAX_NAME_CHARS} characters")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise error(f"{what} holds half a surrogate pair, which is no text")
    return value
