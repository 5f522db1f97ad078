"""Tokens: mint and verify the JWTs that open event streams or send: HS256 with the secrets, and RS256, ES256 and EdDSA with
public keys, each key for its own algorithm and no other.

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

from sse_broker.bounds import MAX_NAME_CHARS, MAX_TTL_SECONDS
from sse_broker.errors import BadRequest, BrokerError, ConfigError, Unauthorized
from sse_broker.presence import device_id_of
from sse_broker.target import Reach
from sse_broker.token_keys import PUBLIC_ALGORITHMS, PublicKeys

ALGORITHM = "HS256"
MAX_TOKEN_CHARS = 8192
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


@dataclass(frozen=True, slots=True)
class Publisher:
    """Hold what a verified publisher token says: a name for logs and limits, and whom it may send to."""

    name: str
    reach: Reach


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Hold what is asked of a token beyond its signature and its time. An empty text asks nothing."""

    audience: str = ""
    issuer: str = ""
    leeway_seconds: float = 0.0
    require_device: bool = False
    uid_claim: str = "uid"


class UnknownKey(Unauthorized):
    """A token names a signing key that is not known here, or not yet."""


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
    """Mint tokens with `secret`; verify those made with it, with one of `previous_secrets`, or with one of `public_keys`.

    `clock` gives the time in seconds since the epoch. Raises: ConfigError for an empty secret, with which anybody could
    mint.
    """

    __slots__ = ("_clock", "_jws", "_keys", "_public_keys", "_rules")

    def __init__(
        self,
        secret: str,
        previous_secrets: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        *,
        rules: TokenRules = TokenRules(),
        public_keys: PublicKeys | None = None,
    ) -> None:
        if not secret or not all(previous_secrets):
            raise ConfigError("jwt.secret and each of jwt.previous_secrets must not be empty")
        self._keys = tuple(text.encode() for text in (secret, *previous_secrets))
        self._clock = clock
        self._rules = rules
        self._public_keys = PublicKeys() if public_keys is None else public_keys
        self._jws = PyJWS(algorithms=[])
        self._jws.register_algorithm(ALGORITHM, _PreparedHmac(HMACAlgorithm.SHA256))

    def mint(self, uid: str, device_name: str | None, ttl_seconds: float) -> str:
        """Make a token for a user that lives `ttl_seconds`, rounded up.

        It is bound to one device unless `device_name` is None. Raises: BadRequest for a name or a lifetime that
        `verify` would refuse.
        """
        now = self._clock()
        if not 0 < ttl_seconds <= MAX_TTL_SECONDS:
            raise BadRequest("'ttl' must be more than 0 seconds and at most a hundred years")
        # `iat` keeps its fraction: a token that is minted again within the second in which its like was revoked must be
        # another token. RFC 7519, section 2, allows fractions; `exp` stays whole for libraries that forget it.
        claims: dict[str, Any] = {"uid": _checked_name(uid, "'uid'", BadRequest)}
        if device_name is not None:
            claims["device_name"] = _checked_name(device_name, "'device'", BadRequest)
        elif self._rules.require_device:
            raise BadRequest("'device' is missing: tokens here must name their device")
        if self._rules.issuer:
            claims["iss"] = self._rules.issuer
        if self._rules.audience:
            claims["aud"] = self._rules.audience
        claims["iat"] = round(now, 6)
        claims["exp"] = math.ceil(now + ttl_seconds)
        return self._jws.encode(json.dumps(claims, separators=(",", ":")).encode(), self._keys[0], ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Check signature, times and names of a token and return its claims.

        Raises: Unauthorized, saying what is wrong with it.
        """
        claims, is_ours = self._signed_claims(token)
        if claims.get("publish") is not None:
            raise Unauthorized("token is for sending, not for listening")
        expires_at = self._checked_expiry(claims)
        self._check_parties(claims)
        device_name = _device_name(claims)
        if device_name is None and self._rules.require_device:
            raise Unauthorized("token names no device, and here it must")
        return Claims(
            uid=_checked_name(claims.get("uid" if is_ours else self._rules.uid_claim), "the token's uid", Unauthorized),
            device_name=device_name,
            # A revocation is kept until then, so it must not end before the token is refused for its age.
            expires_at=expires_at + self._rules.leeway_seconds,
            digest=_digest(token),
        )

    def verify_publisher(self, token: str) -> Publisher:
        """Check signature and times of a token for sending, and return whom it may send to.

        Its claim `publish` is an object: lists `uid` and `device`, or `everyone: true`. Raises: Unauthorized.
        """
        claims, _ = self._signed_claims(token)
        if claims.get("publish") is None:
            raise Unauthorized("token is not for sending: it has no claim 'publish'")
        self._checked_expiry(claims)
        self._check_parties(claims)
        name = claims.get("sub", claims.get("uid"))
        return Publisher(
            _digest(token) if name is None else _checked_name(name, "the token's sub", Unauthorized),
            _reach(claims["publish"]),
        )

    def _signed_claims(self, token: str) -> tuple[dict[str, Any], bool]:
        """Return the claims of a token that was signed with a secret or a public key, and whether it was a secret."""
        if not token:
            raise Unauthorized("token is missing")
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthorized(f"token is longer than {MAX_TOKEN_CHARS} characters")
        if not token.isascii():
            raise Unauthorized("token is malformed: it holds characters that no token has")
        signing_input, _, signature = token.encode().rpartition(b".")
        header, _, payload_text = signing_input.partition(b".")
        is_ours = True
        if header == _USUAL_HEADER:
            self._check_signature(signing_input, signature)
            claims = _parsed_object(_decoded(payload_text))
        elif self._public_keys and (fields := _parsed_object(_decoded(header)) or {}).get("alg") in PUBLIC_ALGORITHMS:
            self._check_public_signature(fields, signing_input, signature)
            claims = _parsed_object(_decoded(payload_text))
            is_ours = False
        else:
            claims = _parsed_object(self._unusual_payload(token))
        if claims is None:
            raise Unauthorized("token is malformed: its claims are not a JSON object")
        return claims, is_ours

    def _check_signature(self, signing_input: bytes, signature: bytes) -> None:
        # A header that is known byte for byte needs no parser, and a signature needs no decoder: the one right spelling
        # is compared. PyJWT 2.15 takes 57 µs for the same, 30 of them in a loop over the characters; this takes 8.
        for key in self._keys:
            expected = base64.urlsafe_b64encode(hmac.digest(key, signing_input, "sha256")).rstrip(b"=")
            if hmac.compare_digest(expected, signature):
                return
        raise Unauthorized("token has a signature that does not match the secret")

    def _check_public_signature(self, header: dict[str, Any], signing_input: bytes, signature: bytes) -> None:
        """Check a signature by the keys of the algorithm that the header names; whatever else the header offers (an
        address of keys, a key of its own, a certificate) is not even looked at.
        """
        algorithm, key_id = header["alg"], header.get("kid")
        # RFC 7515, section 4.1.11: an extension that is critical and unknown here is a reason to refuse.
        if "crit" in header or not (key_id is None or isinstance(key_id, str)):
            raise Unauthorized("token is malformed: its header holds what is not understood here")
        candidates = self._public_keys.candidates(algorithm, key_id)
        if not candidates:
            raise UnknownKey("token is signed with a key that is not known here")
        signature_bytes = _decoded(signature)
        if not any(self._public_keys.verify(key, signing_input, signature_bytes) for key in candidates):
            raise Unauthorized("token has a signature that does not match the public key")

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
        now, leeway = self._clock(), self._rules.leeway_seconds
        expires_at = _checked_time(claims.get("exp"), "exp")
        if expires_at + leeway <= now:
            raise Unauthorized("token has expired")
        if claims.get("nbf") is not None and _checked_time(claims["nbf"], "nbf") - leeway > now:
            raise Unauthorized("token is not valid yet")
        return expires_at

    def _check_parties(self, claims: dict[str, Any]) -> None:
        rules = self._rules
        if rules.issuer and claims.get("iss") != rules.issuer:
            raise Unauthorized("token was issued by somebody else than is trusted here")
        if rules.audience:
            audience = claims.get("aud")
            if rules.audience not in (audience if isinstance(audience, list) else [audience]):
                raise Unauthorized("token is meant for another audience")


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


def _reach(value: object) -> Reach:
    """Return what the claim `publish` says. Raises: Unauthorized; what is not understood must not be taken for more."""
    if not isinstance(value, dict) or not value.keys() <= {"uid", "device", "everyone"}:
        raise Unauthorized("the token's publish must be an object with uid, device or everyone")
    lists: dict[str, list[str]] = {}
    for name in ("uid", "device"):
        items = value.get(name, [])
        if not isinstance(items, list):
            raise Unauthorized(f"the token's publish.{name} must be a list of names")
        lists[name] = [_checked_name(item, f"each of the token's publish.{name}", Unauthorized) for item in items]
    everyone = value.get("everyone", False)
    if not isinstance(everyone, bool):
        raise Unauthorized("the token's publish.everyone must be true or false")
    return Reach(frozenset(lists["uid"]), frozenset(map(device_id_of, lists["device"])), everyone)


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
