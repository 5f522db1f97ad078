"""Tokens signed with public keys: which keys are taken, and every way to have a wrong one taken."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from sse_broker.errors import ConfigError, Unauthorized
from sse_broker.token_keys import MAX_TRIED_KEYS, PublicKey, PublicKeys, parse_jwk_set, read_key_files
from sse_broker.tokens import TokenRules, Tokens, UnknownKey

SECRET = "q7Wm2c9ZtK4xVn8bRd3sYf6hJp1gLa5eQ0uTiOw"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
JWK_WRITERS: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
ALGORITHMS = list(PRIVATE)


def pem(private_key: Any) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = private_key.public_key().public_bytes(serialization.Encoding.PEM, spki)
    return encoded


def jwk(algorithm: str, private_key: Any = None, **fields: Any) -> dict[str, Any]:
    public_key = (private_key or PRIVATE[algorithm]).public_key()
    return dict(JWK_WRITERS[algorithm].to_jwk(public_key, as_dict=True)) | fields


def jwk_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def tokens_with(*keys: PublicKey, **rules: Any) -> Tokens:
    return Tokens(SECRET, rules=TokenRules(**rules), public_keys=PublicKeys(keys))


def public_key(algorithm: str) -> PublicKey:
    return PublicKey(algorithm, PRIVATE[algorithm].public_key())


def signed(algorithm: str, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    claims = {"uid": "anna", "exp": time.time() + 60} | claims
    return jwt.encode(claims, key or PRIVATE[algorithm], algorithm=algorithm, headers=headers)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hand_made(header: object, claims: object, key: bytes = SECRET.encode()) -> str:
    """Return a token with any header, signed as HS256 would be."""
    signing_input = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    signature = HMACAlgorithm(HMACAlgorithm.SHA256).sign(signing_input.encode(), key)
    return f"{signing_input}.{b64(signature)}"


# --- files ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_is_good_by_the_public_key_of_a_file(tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(PRIVATE[algorithm]))
    keys = read_key_files([str(file)])
    assert [key.algorithm for key in keys] == [algorithm]
    claims = tokens_with(*keys).verify(signed(algorithm, device_name="phone"))
    assert (claims.uid, claims.device_name) == ("anna", "phone")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"\xff\xfe\x00",
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ed448.Ed448PrivateKey.generate()),
        EC.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    ],
    ids=["empty", "damaged", "binary", "RSA 1024", "P-384", "Ed448", "private"],
)
def test_a_file_without_a_good_public_key_stops_the_start(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_key_files([str(file)])
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_key_files([str(tmp_path / "nowhere.pem")])


# --- JWK sets ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_is_good_by_the_key_of_a_jwk_set(algorithm: str) -> None:
    keys = parse_jwk_set(jwk_set(jwk(algorithm, kid="a", use="sig", alg=algorithm, key_ops=["verify"])))
    assert [(key.algorithm, key.key_id) for key in keys] == [(algorithm, "a")]
    tokens = tokens_with(*keys)
    assert tokens.verify(signed(algorithm, headers={"kid": "a"})).uid == "anna"
    assert tokens.verify(signed(algorithm)).uid == "anna"
    with pytest.raises(UnknownKey):
        tokens.verify(signed(algorithm, headers={"kid": "b"}))


def test_keys_that_are_not_for_signatures_here_are_left_out() -> None:
    oct_key = {"kty": "oct", "k": b64(b"x" * 32), "alg": "HS256", "kid": "s"}
    others = [
        oct_key,
        jwk("RS256", use="enc"),
        jwk("RS256", alg="PS256"),
        jwk("RS256", alg="HS256"),
        jwk("ES256", alg="RS256"),
        jwk("RS256", rsa.generate_private_key(65537, 1024)),
        jwk("ES256", ec.generate_private_key(ec.SECP521R1())),
        jwk("EdDSA", ed448.Ed448PrivateKey.generate()),
        jwk("RS256", kid=7),
        jwk("RS256", n=None),
        jwk("RS256", n="!"),
        jwk("ES256", x=b64(b"\1" * 32), y=b64(b"\2" * 32)),
        jwk("EdDSA", x="AA"),
        {},
        {"kty": ["RSA"]},
        {"kty": "RSA"},
    ]
    good = jwk("EdDSA", kid="good")
    assert [key.key_id for key in parse_jwk_set(jwk_set(*others, good))] == ["good"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [7]}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_jwk_set_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_jwk_set(text)


def test_a_private_part_that_was_published_by_mistake_is_not_taken() -> None:
    whole = dict(OKPAlgorithm.to_jwk(ED, as_dict=True))
    assert "d" in whole
    (key,) = parse_jwk_set(jwk_set(whole))
    assert isinstance(key.key, ed25519.Ed25519PublicKey)


def test_fetched_keys_replace_those_fetched_before_and_leave_those_of_files() -> None:
    keys = PublicKeys([public_key("EdDSA")])
    tokens = Tokens(SECRET, public_keys=keys)
    keys.replace_fetched(parse_jwk_set(jwk_set(jwk("RS256", kid="old"))))
    assert tokens.verify(signed("RS256", headers={"kid": "old"})).uid == "anna"
    keys.replace_fetched(parse_jwk_set(jwk_set(jwk("ES256", kid="new"))))
    assert tokens.verify(signed("ES256", headers={"kid": "new"})).uid == "anna"
    assert tokens.verify(signed("EdDSA")).uid == "anna"
    with pytest.raises(UnknownKey):
        tokens.verify(signed("RS256", headers={"kid": "old"}))


def test_a_token_has_only_so_many_keys_tried() -> None:
    keys = PublicKeys([public_key("EdDSA")] * 100)
    assert len(keys.candidates("EdDSA", None)) == MAX_TRIED_KEYS


# --- attacks ---


def test_a_public_key_is_no_secret() -> None:
    """The classic: sign with HS256, and the text of the public key as the secret."""
    tokens = tokens_with(*(public_key(algorithm) for algorithm in ALGORITHMS))
    claims = {"uid": "mallory", "exp": time.time() + 60}
    for private_key in PRIVATE.values():
        for key in (pem(private_key), pem(private_key).strip(), b"", json.dumps(jwk("RS256")).encode()):
            for algorithm in ("HS256", "RS256", "ES256", "EdDSA", "none", "hs256", "HS384", None, ["HS256"], {}):
                with pytest.raises(Unauthorized):
                    tokens.verify(hand_made({"alg": algorithm, "typ": "JWT"}, claims, key))


def test_no_signature_is_no_signature() -> None:
    tokens = tokens_with(public_key("RS256"))
    payload = b64(json.dumps({"uid": "mallory", "exp": time.time() + 60}).encode())
    for algorithm in ("none", "None", "NONE", "nOnE", "", "HS256", "RS256", "EdDSA"):
        header = b64(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
        for token in (f"{header}.{payload}.", f"{header}.{payload}", f"{header}.{payload}.AA", f"{header}.{payload}.."):
            with pytest.raises(Unauthorized):
                tokens.verify(token)


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "ES384", "ES512", "ES256K"])
def test_a_key_is_good_for_its_one_algorithm_only(algorithm: str) -> None:
    key: Any = RSA
    if algorithm.startswith("ES"):
        curves = {"ES384": ec.SECP384R1(), "ES512": ec.SECP521R1(), "ES256K": ec.SECP256K1()}
        key = ec.generate_private_key(curves[algorithm])
    tokens = tokens_with(*(public_key(name) for name in ALGORITHMS))
    with pytest.raises(Unauthorized):
        tokens.verify(signed(algorithm, key))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_key_of_the_same_kind_is_refused(algorithm: str) -> None:
    other: dict[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    with pytest.raises(Unauthorized, match="does not match the public key"):
        tokens_with(public_key(algorithm)).verify(signed(algorithm, other[algorithm]))


@pytest.mark.parametrize(
    "headers",
    [
        {"jwk": jwk("EdDSA")},
        {"jku": "https://mallory.example/keys.json"},
        {"x5u": "https://mallory.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "https://mallory.example/"},
        {"kid": "x" * 4000},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_what_the_header_offers_is_not_looked_at(headers: dict[str, Any]) -> None:
    """A key of the attacker's own, wherever the header says that it lies, verifies nothing."""
    own = ed25519.Ed25519PrivateKey.generate()
    headers = headers | ({"jwk": jwk("EdDSA", own)} if "jwk" in headers else {})
    keys = parse_jwk_set(jwk_set(jwk("EdDSA", kid="a")))
    with pytest.raises(Unauthorized):
        tokens_with(*keys).verify(signed("EdDSA", own, headers=headers))


@pytest.mark.parametrize("kid", [7, None, [], {}, True, ["a"]])
def test_a_key_id_that_is_no_text_is_refused_or_absent(kid: object) -> None:
    header = {"alg": "EdDSA", "typ": "JWT", "kid": kid}
    signing_input = (
        f"{b64(json.dumps(header).encode())}.{b64(json.dumps({'uid': 'a', 'exp': time.time() + 9}).encode())}"
    )
    token = f"{signing_input}.{b64(ED.sign(signing_input.encode()))}"
    tokens = tokens_with(public_key("EdDSA"))
    if kid is None:
        assert tokens.verify(token).uid == "a"
    else:
        with pytest.raises(Unauthorized, match="not understood"):
            tokens.verify(token)


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "b64", None])
def test_a_critical_extension_is_refused(crit: object) -> None:
    for token in (
        hand_made({"alg": "HS256", "typ": "JWT", "crit": crit, "b64": True}, {"uid": "a", "exp": time.time() + 60}),
        signed("EdDSA", headers={"crit": crit}),
    ):
        if crit == ["b64"] and token.startswith(b64(b'{"alg": "HS256"')):
            continue  # the one that PyJWT understands, and it says what is the case anyway
        with pytest.raises(Unauthorized):
            tokens_with(public_key("EdDSA")).verify(token)


def test_headers_of_any_shape_are_refused_as_tokens() -> None:
    tokens = tokens_with(public_key("EdDSA"))
    rest = signed("EdDSA").partition(".")[2]
    for header in (
        b"[]",
        b"7",
        b"null",
        b"\xff",
        b"{",
        b"[" * 4000,
        b'{"alg": ' + b"[" * 3000,
        b'{"alg": "EdDSA", "kid": 1e999}',
    ):
        with pytest.raises(Unauthorized):
            tokens.verify(f"{b64(header)}.{rest}")


# --- what is asked beyond the signature ---


def test_the_audience_is_looked_at_when_it_is_configured() -> None:
    tokens = tokens_with(public_key("EdDSA"), audience="broker")
    for good in ("broker", ["broker"], ["other", "broker"]):
        assert tokens.verify(signed("EdDSA", aud=good)).uid == "anna"
    for bad in (
        {},
        {"aud": "other"},
        {"aud": []},
        {"aud": None},
        {"aud": {"broker": 1}},
        {"aud": ["brokers"]},
        {"aud": 7},
    ):
        token = hand_made({"alg": "HS256", "typ": "JWT"}, {"uid": "anna", "exp": time.time() + 60} | bad)
        with pytest.raises(Unauthorized, match="audience"):
            tokens.verify(token)
    assert tokens_with(public_key("EdDSA")).verify(signed("EdDSA", aud="whoever")).uid == "anna"


def test_the_issuer_is_looked_at_when_it_is_configured() -> None:
    tokens = tokens_with(public_key("EdDSA"), issuer="https://login.example")
    assert tokens.verify(signed("EdDSA", iss="https://login.example")).uid == "anna"
    for bad in ({}, {"iss": "https://login.example/"}, {"iss": ["https://login.example"]}, {"iss": None}):
        token = hand_made({"alg": "HS256", "typ": "JWT"}, {"uid": "anna", "exp": time.time() + 60} | bad)
        with pytest.raises(Unauthorized, match="issued by somebody else"):
            tokens.verify(token)


def test_tokens_made_here_meet_what_is_asked_here() -> None:
    tokens = tokens_with(audience="broker", issuer="me", require_device=True)
    assert tokens.verify(tokens.mint("anna", "phone", 60)).device_name == "phone"


def test_leeway_is_given_to_both_ends_of_a_tokens_life() -> None:
    strict, lenient = tokens_with(public_key("EdDSA")), tokens_with(public_key("EdDSA"), leeway_seconds=10)
    now = time.time()
    for claims in ({"exp": now - 5}, {"nbf": now + 5}):
        token = signed("EdDSA", **claims)
        assert lenient.verify(token).uid == "anna"
        with pytest.raises(Unauthorized):
            strict.verify(token)
    for claims in ({"exp": now - 15}, {"nbf": now + 15}):
        with pytest.raises(Unauthorized):
            lenient.verify(signed("EdDSA", **claims))


def test_a_revocation_lasts_as_long_as_the_leeway() -> None:
    exp = int(time.time()) + 60
    claims = tokens_with(public_key("EdDSA"), leeway_seconds=10).verify(signed("EdDSA", exp=exp))
    assert claims.expires_at == exp + 10


def test_a_device_can_be_required() -> None:
    tokens = tokens_with(public_key("EdDSA"), require_device=True)
    assert tokens.verify(signed("EdDSA", device_name="phone")).device_name == "phone"
    for claims in ({}, {"device_name": ""}, {"device_name": None}):
        with pytest.raises(Unauthorized, match="names no device"):
            tokens.verify(signed("EdDSA", **claims))


def test_the_user_of_a_token_with_a_public_key_may_stand_in_another_claim() -> None:
    tokens = tokens_with(public_key("EdDSA"), uid_claim="sub")
    assert tokens.verify(signed("EdDSA", sub="ben")).uid == "ben"
    assert tokens.verify(tokens.mint("cleo", None, 60)).uid == "cleo"
