"""Who is let in: keys, scopes, publishers, wrong keys, rates. The web layer's part is tested through HTTP elsewhere."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from sse_broker.access import access_of
from sse_broker.api_keys import ANYONE
from sse_broker.errors import Forbidden, TooManyRequests, Unauthorized, Unavailable
from sse_broker.gate import Gate
from sse_broker.presence import device_id_of
from sse_broker.target import Target
from tests.broker_process import SECRET
from tests.served import make_config

KEY, SHOP = "k7Rw2pXn9vBq4TzL", "shop-7Rw2pXn9vBq4"
API = {"keys": (KEY,), "named_keys": (f"shop:send+info:{SHOP}",)}
STRANGER, NEIGHBOUR = "192.0.2.7", "192.0.2.8"


def make_gate(api: dict[str, Any] = API, **limits: Any) -> Gate:
    return Gate(access_of(make_config({"api": api, "limits": {"exempt": (), **limits}})))


def token(publish: object, **claims: Any) -> str:
    return jwt.encode({"exp": time.time() + 60, "publish": publish} | claims, SECRET, algorithm="HS256")


def test_without_keys_everybody_may_call() -> None:
    gate = make_gate({})
    assert gate.caller("kick", "", STRANGER) is ANYONE
    assert gate.caller("kick", "whatever", STRANGER) is ANYONE


def test_a_key_is_let_in_under_its_name() -> None:
    gate = make_gate()
    assert gate.caller("kick", KEY, STRANGER).name == "key-1"
    assert gate.caller("send", SHOP, STRANGER).name == "shop"


def test_a_key_opens_no_endpoint_beyond_its_scopes() -> None:
    gate = make_gate()
    for scope in ("token", "kick"):
        with pytest.raises(Forbidden, match=f"^'shop' may not call /{scope}$"):
            gate.caller(scope, SHOP, STRANGER)
    assert gate.counters.refused_scopes == 2


@pytest.mark.parametrize("wrong", ["", "wrong", KEY[:-1], KEY + "x", KEY.lower(), "a.b.c", "key-1", "é", "\udcff"])
def test_anything_else_is_refused(wrong: str) -> None:
    gate = make_gate()
    with pytest.raises(Unauthorized):
        gate.caller("send", wrong, STRANGER)
    assert gate.counters.wrong_keys == bool(wrong)


# --- wrong keys ---


def guess(gate: Gate, times: int, host: str) -> list[type[Exception]]:
    outcomes: list[type[Exception]] = []
    for number in range(times):
        try:
            gate.caller("send", f"guess-{number}", host)
        except (Unauthorized, TooManyRequests) as error:
            outcomes.append(type(error))
    return outcomes


def test_who_tries_too_many_wrong_keys_has_to_wait() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    assert guess(gate, 40, STRANGER) == [Unauthorized] * 30 + [TooManyRequests] * 10
    with pytest.raises(TooManyRequests) as caught:
        gate.caller("send", "guess", STRANGER)
    assert 1 <= caught.value.retry_after_seconds <= 3
    assert (gate.counters.wrong_keys, gate.counters.refused_wrong_keys) == (41, 11)


def test_who_has_to_wait_is_not_told_which_key_is_right() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    guess(gate, 30, STRANGER)
    with pytest.raises(TooManyRequests) as right:
        gate.caller("send", KEY, STRANGER)
    with pytest.raises(TooManyRequests) as wrong:
        gate.caller("send", "wrong", STRANGER)
    assert right.value.message == wrong.value.message


def test_a_key_that_was_good_from_an_address_stays_good_whoever_else_guesses_from_there() -> None:
    """A back end behind the same proxy or NAT as an attacker."""
    gate = make_gate(wrong_keys_per_minute=30)
    gate.caller("send", KEY, STRANGER)
    guess(gate, 100, STRANGER)
    assert gate.caller("send", KEY, STRANGER).name == "key-1"
    with pytest.raises(TooManyRequests):
        gate.caller("send", SHOP, STRANGER)


def test_other_addresses_go_on() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    guess(gate, 100, STRANGER)
    assert gate.caller("send", KEY, NEIGHBOUR).name == "key-1"


def test_the_addresses_of_one_ipv6_network_wait_together() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    outcomes = [outcome for number in range(40) for outcome in guess(gate, 1, f"2001:db8::{number:x}")]
    assert outcomes.count(TooManyRequests) == 10
    assert guess(gate, 1, "2001:db8:0:1::1") == [Unauthorized]


def test_exempt_addresses_are_counted_and_never_wait() -> None:
    gate = make_gate(exempt=("192.0.2.0/24",), wrong_keys_per_minute=30)
    assert set(guess(gate, 100, STRANGER)) == {Unauthorized}
    assert gate.counters.wrong_keys == 100


def test_a_missing_key_is_no_guess() -> None:
    gate = make_gate(wrong_keys_per_minute=1)
    for _ in range(10):
        with pytest.raises(Unauthorized, match="needed"):
            gate.caller("send", "", STRANGER)
    assert gate.counters.wrong_keys == 0


# --- publishers ---


def test_a_publisher_may_send_and_nothing_else() -> None:
    gate = make_gate()
    caller = gate.caller("send", token({"uid": ["anna"]}, sub="web-7"), STRANGER)
    assert caller.name == "web-7"
    for scope in ("token", "info", "kick"):
        with pytest.raises(Forbidden):
            gate.caller(scope, token({"everyone": True}), STRANGER)


def test_a_publisher_reaches_whom_its_token_names_and_no_one_else() -> None:
    gate = make_gate()
    caller = gate.caller("send", token({"uid": ["anna"], "device": ["ben-1"]}), STRANGER)
    for target in (
        Target(("anna",)),
        Target((), (device_id_of("ben-1"),)),
        Target(("anna",), (device_id_of("ben-1"),)),
    ):
        gate.check_reach(caller, target)
    for target in (
        Target(),
        Target(("ben",)),
        Target(("anna", "ben")),
        Target((), (device_id_of("ben-2"),)),
        Target(("anna",), (device_id_of("ben-2"),)),
        Target(("ben-1",)),
    ):
        with pytest.raises(Forbidden):
            gate.check_reach(caller, target)


def test_a_publisher_for_everyone_reaches_all() -> None:
    gate = make_gate()
    caller = gate.caller("send", token({"everyone": True}), STRANGER)
    for target in (Target(), Target(("ben",)), Target((), (device_id_of("x"),))):
        gate.check_reach(caller, target)


def test_a_key_reaches_all() -> None:
    gate = make_gate()
    gate.check_reach(gate.caller("send", SHOP, STRANGER), Target())


@pytest.mark.parametrize(
    "publish", [True, "everyone", [], 1, {"everyone": 1}, {"uid": "anna"}, {"uid": [None]}, {"users": []}]
)
def test_a_publish_claim_that_is_not_understood_is_refused(publish: object) -> None:
    with pytest.raises(Unauthorized, match="publish"):
        make_gate().caller("send", token(publish), STRANGER)


def test_a_listeners_token_may_not_send() -> None:
    listener = jwt.encode({"uid": "anna", "exp": time.time() + 60}, SECRET, algorithm="HS256")
    with pytest.raises(Unauthorized, match="no claim 'publish'"):
        make_gate().caller("send", listener, STRANGER)


def test_a_publishers_token_opens_no_stream() -> None:
    gate = make_gate()
    with pytest.raises(Unauthorized, match="for sending, not for listening"):
        gate.access.tokens.verify(token({"everyone": True}, uid="anna"))


def test_an_expired_or_forged_publisher_token_is_refused_and_counted() -> None:
    gate = make_gate()
    expired = token({"everyone": True}, exp=time.time() - 1)
    forged = jwt.encode({"exp": time.time() + 60, "publish": {"everyone": True}}, "x" * 32, algorithm="HS256")
    for bad in (expired, forged, token({"everyone": True})[:-2]):
        with pytest.raises(Unauthorized):
            gate.caller("send", bad, STRANGER)
    assert gate.counters.wrong_keys == 3


def test_a_good_token_is_let_in_from_where_keys_are_guessed() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    guess(gate, 100, STRANGER)
    assert gate.caller("send", token({"everyone": True}, sub="front"), STRANGER).name == "front"
    with pytest.raises(TooManyRequests):
        gate.caller("send", "a.b.c", STRANGER)


# --- rates and counts ---


def test_messages_are_limited_for_each_key_and_each_publisher() -> None:
    gate = make_gate(sends_per_second=1, publisher_sends_per_second=0.1)
    shop, key = gate.caller("send", SHOP, STRANGER), gate.caller("send", KEY, STRANGER)
    publisher = gate.caller("send", token({"everyone": True}, sub="front"), STRANGER)
    gate.admit_messages(shop, 500)
    with pytest.raises(TooManyRequests, match="'shop' sends more") as caught:
        gate.admit_messages(shop, 1)
    assert 485 <= caught.value.retry_after_seconds <= 491
    gate.admit_messages(key, 1)
    gate.admit_messages(publisher, 1)
    with pytest.raises(TooManyRequests):
        gate.admit_messages(publisher, 1)
    assert gate.counters.refused_sends == 2


def test_a_key_and_a_publisher_of_one_name_do_not_share_a_rate() -> None:
    gate = make_gate(sends_per_second=1, publisher_sends_per_second=1)
    gate.admit_messages(gate.caller("send", SHOP, STRANGER), 100)
    gate.admit_messages(gate.caller("send", token({"everyone": True}, sub="shop"), STRANGER), 1)


def test_streams_are_opened_at_a_rate_for_each_address() -> None:
    gate = make_gate(opens_per_second=1)
    for _ in range(10):
        gate.admit_open(STRANGER)
    with pytest.raises(TooManyRequests) as caught:
        gate.admit_open(STRANGER)
    assert caught.value.retry_after_seconds == 1
    gate.admit_open(NEIGHBOUR)
    assert gate.counters.refused_opens == 1


def test_only_so_many_streams_are_about_to_open() -> None:
    gate = make_gate(pending_opens=2)
    with gate.opening(), gate.opening():
        with pytest.raises(Unavailable), gate.opening():
            pass
        assert gate.pending == 2
    assert (gate.pending, gate.counters.refused_pending_opens) == (0, 1)
    with pytest.raises(KeyError), gate.opening():
        raise KeyError
    assert gate.pending == 0


def test_a_user_and_an_address_have_only_so_many_streams() -> None:
    gate = make_gate(streams_per_user=3, streams_per_address=5)
    gate.check_streams(STRANGER, of_address=4, of_user=2)
    with pytest.raises(TooManyRequests, match="user"):
        gate.check_streams(STRANGER, of_address=0, of_user=3)
    with pytest.raises(TooManyRequests, match=r"192\.0\.2\.7"):
        gate.check_streams(STRANGER, of_address=5, of_user=0)


# --- another configuration ---


def test_another_access_counts_at_once_and_what_was_counted_stays() -> None:
    gate = make_gate(wrong_keys_per_minute=30)
    guess(gate, 30, STRANGER)
    gate.change(make_gate({"keys": (SHOP,)}, wrong_keys_per_minute=30).access)
    with pytest.raises(Unauthorized):
        gate.caller("send", KEY, NEIGHBOUR)
    assert gate.caller("send", SHOP, NEIGHBOUR).name == "key-1"
    assert guess(gate, 1, STRANGER) == [TooManyRequests]
    gate.change(make_gate({"keys": (SHOP,)}, exempt=("192.0.2.0/24",)).access)
    assert guess(gate, 1, STRANGER) == [Unauthorized]
