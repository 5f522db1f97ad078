"""API keys: how one is written, which one a request carries."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker.api_keys import SCOPES, ApiKeys, named_key, plain_key

SECRET = "k7Rw2pXn9vBq4TzL"


def test_a_plain_key_opens_every_endpoint_and_is_named_by_its_place() -> None:
    key = plain_key(2, SECRET)
    assert (key.caller.name, key.caller.scopes) == ("key-2", frozenset(SCOPES))


def test_a_named_key_has_its_name_and_its_scopes() -> None:
    caller = named_key(f"shop:send+info:{SECRET}").caller
    assert (caller.name, caller.scopes, caller.reach) == ("shop", {"send", "info"}, None)
    assert named_key(f"ops:*:{SECRET}").caller.scopes == frozenset(SCOPES)


def test_a_key_may_hold_colons() -> None:
    assert ApiKeys([named_key("a:send:one:two:three")]).find("one:two:three") is not None


def test_a_key_that_is_stored_as_its_hash_is_found_by_itself_and_not_by_the_hash() -> None:
    digits = hashlib.sha256(SECRET.encode()).hexdigest()
    for text in (digits, digits.upper()):
        keys = ApiKeys([named_key(f"ops:*:sha256:{text}")])
        found = keys.find(SECRET)
        assert found is not None
        assert found.caller.name == "ops"
        assert found.secret == ""
        assert keys.find(digits) is None
        assert keys.find(f"sha256:{digits}") is None


def test_several_keys_are_good_at_once() -> None:
    keys = ApiKeys([plain_key(1, "first"), named_key("shop:send:second"), named_key("shop:send:third")])
    found = [keys.find(secret) for secret in ("first", "second", "third", "fourth", "")]
    assert [key and key.caller.name for key in found] == ["key-1", "shop", "shop", None, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'written "name:scopes:secret"'),
        ("sesame", 'written "name:scopes:secret"'),
        ("a:sesame", 'written "name:scopes:secret"'),
        (":send:sesame", "whose name is not"),
        ("a b:send:sesame", "whose name is not"),
        ("x" * 65 + ":send:sesame", "whose name is not"),
        ("a:sned:sesame", "the key a with a scope that is none of token, send, info, kick, nor * for all"),
        ("a::sesame", "a scope that is none of"),
        ("a:send+:sesame", "a scope that is none of"),
        ("a:*+send:sesame", "a scope that is none of"),
        ("a:send:sha256:sesame", "the key a with a hash that is not 64 hex digits"),
        ("a:send:sha256:" + "0" * 63, "not 64 hex digits"),
    ],
)
def test_what_is_no_named_key_is_refused_without_its_secret(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        named_key(text)
    assert words in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_no_secret_and_no_hash_shows_in_a_repr() -> None:
    shown = repr(named_key("shop:send:sesame")) + repr(plain_key(1, "sesame"))
    assert "sesame" not in shown
    assert "digest" not in shown


@given(st.text(max_size=80))
def test_whatever_is_given_finds_only_the_key_itself(given_text: str) -> None:
    keys = ApiKeys([plain_key(1, SECRET)])
    assert (keys.find(given_text) is not None) == (given_text == SECRET)


def test_bytes_of_a_header_that_are_no_utf8_are_a_wrong_key() -> None:
    assert ApiKeys([plain_key(1, SECRET)]).find(b"\xff\xfe".decode("utf-8", "surrogateescape")) is None
