"""Tokens: what is minted, what is believed, and every way of not being believed."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_broker.errors import BadRequest, ConfigError, Unauthorized
from sse_broker.tokens import MAX_EXPIRES_AT, MAX_TOKEN_CHARS, Claims, Tokens

SECRET = "d2f0c1b7a95e48336b8f7e1c0a4d9b52"
NOW = 1_726_106_279.25
CLAIMS = {"uid": "u", "exp": NOW + 60}
USUAL_HEADER = {"alg": "HS256", "typ": "JWT"}


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time for `tokens`."""
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    """The tokens under test."""
    return Tokens(SECRET, clock=clock)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: bytes | Mapping[str, Any], header: Mapping[str, Any] = USUAL_HEADER, secret: str = SECRET) -> str:
    """Make a token of any payload and header with a right HS256 signature, by an independent way."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = json.dumps(header, separators=(",", ":")).encode()
    signing_input = f"{base64url(head)}.{base64url(body)}"
    digest = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        signing_input.encode(), secret.encode()
    )
    return f"{signing_input}.{base64url(digest)}"


def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        tokens.verify(token)
    return caught.value.message


# Minting


def test_a_minted_token_is_verified(tokens: Tokens) -> None:
    claims = tokens.verify(tokens.mint("user-1", "xuyd", 30))
    assert (claims.uid, claims.device_name) == ("user-1", "xuyd")
    assert NOW + 30 <= claims.expires_at < NOW + 31
    assert len(claims.digest) == 32


def test_a_token_that_is_not_bound_has_no_device(tokens: Tokens) -> None:
    assert tokens.verify(tokens.mint("u", None, 30)).device_name is None


def test_a_minted_token_holds_the_claims_of_the_contract_and_no_others(tokens: Tokens) -> None:
    options = {"verify_exp": False}
    bound = jwt.decode(tokens.mint("u", "d", 30), SECRET, algorithms=["HS256"], options=options)
    assert bound == {"uid": "u", "device_name": "d", "iat": NOW, "exp": 1_726_106_310}
    free = jwt.decode(tokens.mint("u", None, 0.5), SECRET, algorithms=["HS256"], options=options)
    assert free == {"uid": "u", "iat": NOW, "exp": 1_726_106_280}
    assert jwt.get_unverified_header(tokens.mint("u", "d", 30)) == USUAL_HEADER


def test_a_token_minted_again_in_the_same_second_is_another_token(tokens: Tokens, clock: Clock) -> None:
    """Else a device that was kicked could not come back with a fresh token at once."""
    first = tokens.verify(tokens.mint("u", "d", 30))
    clock.now += 0.001
    second = tokens.verify(tokens.mint("u", "d", 30))
    assert first.expires_at == second.expires_at
    assert first.digest != second.digest


def test_one_token_has_one_digest_on_every_instance(tokens: Tokens, clock: Clock) -> None:
    token = tokens.mint("u", "d", 30)
    assert tokens.verify(token).digest == Tokens(SECRET, clock=clock).verify(token).digest


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), MAX_EXPIRES_AT, 10**400])
def test_an_impossible_lifetime_is_refused(tokens: Tokens, ttl: float) -> None:
    with pytest.raises(BadRequest, match=r"^'ttl' must be "):
        tokens.mint("u", None, ttl)


@pytest.mark.parametrize("name", ["", "x" * 257, "\ud800"])
def test_names_that_verify_would_refuse_are_not_minted(tokens: Tokens, name: str) -> None:
    with pytest.raises(BadRequest, match=r"^'uid' "):
        tokens.mint(name, None, 30)
    with pytest.raises(BadRequest, match=r"^'device' "):
        tokens.mint("u", name, 30)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256), st.floats(0.001, 1e9))
def test_any_name_survives(name: str, ttl: float) -> None:
    tokens = Tokens(SECRET, clock=Clock())
    claims = tokens.verify(tokens.mint(name, name, ttl))
    assert (claims.uid, claims.device_name) == (name, name)


# Tokens of others


def test_a_back_end_that_shares_the_secret_may_mint(tokens: Tokens) -> None:
    token = jwt.encode({"uid": "u", "device_name": "d", "exp": int(NOW) + 60}, SECRET, algorithm="HS256")
    claims = tokens.verify(token)
    assert (claims.uid, claims.device_name, claims.expires_at) == ("u", "d", int(NOW) + 60)


@pytest.mark.parametrize(
    "header", [{"typ": "JWT", "alg": "HS256"}, {"alg": "HS256"}, {"alg": "HS256", "typ": "JWT", "kid": "1"}]
)
def test_a_header_may_be_spelled_otherwise(tokens: Tokens, header: dict[str, str]) -> None:
    assert tokens.verify(signed(CLAIMS, header)).uid == "u"


def test_json_may_be_spelled_otherwise(tokens: Tokens) -> None:
    payload = b' {\n "exp" : 1.8e9 , "uid" : "\\u00fc" , "more" : [ {} ] } '
    claims = tokens.verify(signed(payload))
    assert (claims.uid, claims.expires_at) == ("ü", 1.8e9)


@pytest.mark.parametrize(("uid", "text"), [(1234, "1234"), (-1, "-1"), (1.5, "1.5"), (2**63, "9223372036854775808")])
def test_a_number_is_taken_as_text(tokens: Tokens, uid: float, text: str) -> None:
    claims = tokens.verify(signed(CLAIMS | {"uid": uid, "device_name": uid}))
    assert (claims.uid, claims.device_name) == (text, text)


@pytest.mark.parametrize("name", [None, ""])
def test_an_empty_device_name_binds_to_none(tokens: Tokens, name: str | None) -> None:
    assert tokens.verify(signed(CLAIMS | {"device_name": name})).device_name is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uid": None}, "the token's uid must be a non-empty text"),
        ({"uid": ""}, "the token's uid must be a non-empty text"),
        ({"uid": True}, "the token's uid must be a non-empty text"),
        ({"uid": ["u"]}, "the token's uid must be a non-empty text"),
        ({"uid": float("nan")}, "the token's uid must be a non-empty text"),
        ({"uid": "x" * 257}, "the token's uid is longer than 256 characters"),
        ({"uid": 10**300}, "the token's uid is longer than 256 characters"),
        ({"uid": "\udcff"}, "the token's uid holds half a surrogate pair, which is no text"),
        ({"device_name": {}}, "the token's device_name must be a non-empty text"),
        ({"device_name": "x" * 257}, "the token's device_name is longer than 256 characters"),
        ({"exp": None}, "token has no exp"),
        ({"exp": str(NOW + 60)}, "token has an exp that is not a time in seconds"),
        ({"exp": True}, "token has an exp that is not a time in seconds"),
        ({"exp": float("inf")}, "token has an exp that is not a time in seconds"),
        ({"exp": float("nan")}, "token has an exp that is not a time in seconds"),
        ({"exp": MAX_EXPIRES_AT + 1}, "token has an exp that is not a time in seconds"),
        ({"exp": -1}, "token has an exp that is not a time in seconds"),
        ({"exp": [1]}, "token has an exp that is not a time in seconds"),
        ({"exp": 10**300}, "token has an exp that is not a time in seconds"),
        ({"exp": NOW}, "token has expired"),
        ({"exp": 0}, "token has expired"),
        ({"nbf": NOW + 1}, "token is not valid yet"),
        ({"nbf": "soon"}, "token has an nbf that is not a time in seconds"),
    ],
)
def test_bad_claims_are_refused(tokens: Tokens, change: dict[str, Any], message: str) -> None:
    assert refused(tokens, signed(CLAIMS | change)) == message


def test_a_token_without_uid_or_exp_is_refused(tokens: Tokens) -> None:
    assert refused(tokens, signed({"exp": NOW + 60})) == "the token's uid must be a non-empty text"
    assert refused(tokens, signed({"uid": "u"})) == "token has no exp"


# Time


def test_time_is_that_of_the_clock(tokens: Tokens, clock: Clock) -> None:
    """Years ago and years ahead of the machine's own time."""
    for now in (1_000_000.0, 9_999_999_999.0):
        clock.now = now
        token = tokens.mint("u", None, 30)
        clock.now = now + 29.9
        assert tokens.verify(token).uid == "u"
        clock.now = now + 30
        assert refused(tokens, token) == "token has expired"


def test_nbf_is_honoured_and_iat_is_not_judged(tokens: Tokens, clock: Clock) -> None:
    """A back end whose clock is ahead must not lock its users out; `nbf` says so on purpose."""
    assert tokens.verify(signed(CLAIMS | {"iat": NOW + 30})).uid == "u"
    token = signed(CLAIMS | {"nbf": NOW + 30})
    assert refused(tokens, token) == "token is not valid yet"
    clock.now = NOW + 30
    assert tokens.verify(token).uid == "u"


# Secrets


def test_former_secrets_are_accepted_but_not_used(clock: Clock) -> None:
    old, older, new = Tokens("old", clock=clock), Tokens("older", clock=clock), Tokens("new", ["old", "older"], clock)
    assert new.verify(old.mint("u", None, 30)).uid == "u"
    assert new.verify(older.mint("u", None, 30)).uid == "u"
    assert new.verify(signed(CLAIMS, {"alg": "HS256"}, "older")).uid == "u"
    assert refused(old, new.mint("u", None, 30)) == "token has a signature that does not match the secret"


@pytest.mark.parametrize(("secret", "previous"), [("", ()), (SECRET, ("",)), ("", (SECRET,))])
def test_an_empty_secret_is_refused(secret: str, previous: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        Tokens(secret, previous)


def test_a_short_secret_works_without_a_warning(clock: Clock) -> None:
    """Whether a secret is long enough is decided once, by the configuration."""
    tokens = Tokens("short", clock=clock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokens.verify(tokens.mint("u", None, 30)).uid == "u"
        assert tokens.verify(signed(CLAIMS, {"alg": "HS256"}, "short")).uid == "u"


def test_a_secret_that_looks_like_a_key_file_is_bytes_like_any_other(clock: Clock) -> None:
    secret = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----"
    tokens = Tokens(secret, clock=clock)
    assert tokens.verify(tokens.mint("u", None, 30)).uid == "u"


# Forgeries

BAD_SIGNATURE = "token has a signature that does not match the secret"
NOT_A_JWT = "token is malformed: it is not a JWT signed with HS256"


@pytest.mark.parametrize("header", [USUAL_HEADER, {"alg": "HS256"}])
def test_a_wrong_signature_is_refused(tokens: Tokens, header: dict[str, str]) -> None:
    assert refused(tokens, signed(CLAIMS, header, secret="another secret")) == BAD_SIGNATURE
    token = signed(CLAIMS, header)
    head, _, signature = token.split(".")
    assert refused(tokens, f"{head}.{base64url(json.dumps(CLAIMS | {'uid': 'admin'}).encode())}.{signature}")
    assert refused(tokens, f"{head}.{token.split('.')[1]}.")


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS384", "HS512", "RS256", "hs256", None, 1, ["HS256"]]
)
def test_no_other_algorithm_is_believed(tokens: Tokens, algorithm: object) -> None:
    assert refused(tokens, signed(CLAIMS, {"alg": algorithm, "typ": "JWT"})) == NOT_A_JWT


def test_other_libraries_tokens_of_other_algorithms_are_refused(tokens: Tokens) -> None:
    assert refused(tokens, jwt.encode(CLAIMS, SECRET * 2, algorithm="HS512")) == NOT_A_JWT
    assert refused(tokens, jwt.encode(CLAIMS, None, algorithm="none")) == NOT_A_JWT


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "kid": 1},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": "exp"},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {},
    ],
)
def test_headers_that_ask_for_what_is_not_done_are_refused(tokens: Tokens, header: dict[str, Any]) -> None:
    assert refused(tokens, signed(CLAIMS, header)) == NOT_A_JWT


def test_a_revoked_token_can_not_be_respelled(tokens: Tokens) -> None:
    """Base64 knows several spellings of one signature; each is refused or has the digest of the first."""
    for header in (USUAL_HEADER, {"alg": "HS256"}):
        token = signed(CLAIMS, header)
        digest = tokens.verify(token).digest
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        spellings = [token[:-1] + character for character in alphabet]
        spellings += [token + end for end in ("=", "==", "A", "\n", " ", "!", ".")]
        spellings += [token[:-5] + junk + token[-5:] for junk in ("!", " ", "\n", "=")]
        accepted = 0
        for spelling in spellings:
            try:
                assert tokens.verify(spelling).digest == digest
                accepted += 1
            except Unauthorized:
                pass
        assert accepted >= 1
        assert accepted == 1 or header != USUAL_HEADER  # other headers go through PyJWT, which is more lenient


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "token is missing"),
        ("x", NOT_A_JWT),
        ("a.b", NOT_A_JWT),
        ("a.b.c.d", NOT_A_JWT),
        ("..", NOT_A_JWT),
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", NOT_A_JWT),
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.", BAD_SIGNATURE),
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9..", BAD_SIGNATURE),
        ("x" * (MAX_TOKEN_CHARS + 1), "token is longer than 8192 characters"),
        ("tökén", "token is malformed: it holds characters that no token has"),
        ("\udcff", "token is malformed: it holds characters that no token has"),
        (base64url(b"[" * 5000) + ".e30.e30", NOT_A_JWT),
        (base64url(b'{"alg":' + b"9" * 5000 + b"}") + ".e30.e30", NOT_A_JWT),
        (base64url(b"[]") + ".e30.e30", NOT_A_JWT),
        (base64url(b"\xff\xfe") + ".e30.e30", NOT_A_JWT),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_token_is_refused(tokens: Tokens, token: str, message: str) -> None:
    assert refused(tokens, token) == message


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b'"u"', b"null", b"{", b"\xff", b"[" * 4000, b"9" * 5000, b"\xef\xbb\xbf{}"]
)
@pytest.mark.parametrize("header", [USUAL_HEADER, {"alg": "HS256"}])
def test_signed_nonsense_is_refused(tokens: Tokens, payload: bytes, header: dict[str, str]) -> None:
    """Signed with the right secret: a back end with a bug must not bring the broker down."""
    message = refused(tokens, signed(payload, header))
    assert message == "token is malformed: its claims are not a JSON object"


def test_a_payload_that_is_not_base64_is_refused_even_when_signed(tokens: Tokens) -> None:
    signing_input = f"{base64url(json.dumps(USUAL_HEADER, separators=(',', ':')).encode())}.a"
    digest = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        signing_input.encode(), SECRET.encode()
    )
    assert refused(tokens, f"{signing_input}.{base64url(digest)}").startswith("token is malformed")


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[\w=-]{0,40}\.[\w=-]{0,40}\.[\w=-]{0,50}", fullmatch=True))
@example("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.\x00")
def test_any_text_is_refused_and_nothing_else(text: str) -> None:
    refused(Tokens(SECRET, clock=Clock()), text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["uid", "exp", "nbf", "iat", "device_name"], JSON)))
def test_any_signed_claims_give_good_claims_or_a_refusal(claims: dict[str, Any]) -> None:
    try:
        got = Tokens(SECRET, clock=Clock()).verify(signed(claims))
    except Unauthorized:
        return
    assert isinstance(got, Claims)
    assert 0 < len(got.uid) <= 256
    assert got.uid.encode()
    assert NOW < got.expires_at <= MAX_EXPIRES_AT


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "zip", "jwk"]), JSON, max_size=4))
def test_any_header_gives_claims_for_hs256_alone(header: dict[str, Any]) -> None:
    try:
        Tokens(SECRET, clock=Clock()).verify(signed(CLAIMS, header))
    except Unauthorized:
        return
    assert header["alg"] == "HS256"
