"""Token buckets against a plain model of them, and under which name an address is limited."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker.limits import Buckets, address_key


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_let_in_and_what_goes_on_at_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(2, 5, clock=clock)
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    clock.now += 1
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 1]
    clock.now += 3600
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 1]


def test_keys_do_not_share_a_bucket() -> None:
    buckets = Buckets(1, 1, clock=Clock())
    assert [buckets.take(key) for key in "abab"] == [0, 0, 1, 1]


def test_a_great_take_goes_into_debt_and_says_for_how_long() -> None:
    clock = Clock()
    buckets = Buckets(10, 10, clock=clock)
    assert buckets.take("a", 100) == 0
    assert buckets.take("a") == 10  # 90 tokens of debt and the one that is wanted, 10 in a second: 9.1 s
    clock.now += 9.1
    assert buckets.take("a") == 0


def test_what_is_refused_takes_nothing() -> None:
    clock = Clock()
    buckets = Buckets(1, 1, clock=clock)
    buckets.take("a")
    for _ in range(50):
        assert buckets.take("a") == 1
    clock.now += 1.01
    assert buckets.take("a") == 0


def test_looking_takes_nothing() -> None:
    buckets = Buckets(1, 1, clock=Clock())
    assert [buckets.wait("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == 0
    assert buckets.wait("a") == 1


def test_a_rate_of_zero_is_no_limit_and_keeps_nothing() -> None:
    buckets = Buckets(0, 0, clock=Clock())
    assert not buckets.limited
    assert {buckets.take("a") for _ in range(1000)} == {0}
    assert len(buckets) == 0


def test_another_rate_counts_from_now_on() -> None:
    buckets = Buckets(0, 1, clock=Clock())
    buckets.take("a")
    buckets.change(1, 2)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 1]
    buckets.change(1, 5)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]


def test_memory_is_bounded_however_many_keys_come() -> None:
    buckets = Buckets(0.001, 1, max_keys=1000, clock=Clock())
    for number in range(20_000):
        assert buckets.take(f"address-{number}") == 0
        assert len(buckets) <= 1000


def test_the_one_that_goes_on_is_remembered_while_others_pass_by() -> None:
    """A flood of addresses must not wash away the debt of the one that is limited, as long as it goes on asking."""
    clock = Clock()
    buckets = Buckets(0.001, 100, max_keys=1000, clock=clock)
    refused = 0
    for number in range(20_000):
        buckets.take(f"passer-by-{number}")
        if number % 100 == 0:
            refused += buckets.take("busy") > 0
    assert refused == 100  # 200 asked, 100 were let in


def test_full_buckets_are_forgotten_first() -> None:
    clock = Clock()
    buckets = Buckets(1, 100, max_keys=10, clock=clock)
    buckets.take("in debt", 200)
    for number in range(9):
        buckets.take(f"soon full {number}")
    clock.now += 2
    buckets.take("one more")
    assert buckets.wait("in debt") == 99
    assert len(buckets) == 2


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), max_size=60),
)
def test_it_lets_in_what_a_plain_bucket_lets_in(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    """The model: a number of tokens that flow in up to the burst; one is needed, debt is allowed."""
    clock = Clock()
    buckets = Buckets(rate, burst, clock=clock)
    tokens = float(burst)
    for pause, count in steps:
        clock.now += pause
        tokens = min(float(burst), tokens + pause * rate)
        if abs(tokens - 1) < 1e-3:
            return  # rounding may decide either way
        wait = buckets.take("a", count)
        assert (wait == 0) == (tokens >= 1), (tokens, wait)
        if wait:
            missing = (1 - tokens) / rate
            assert math.ceil(missing - 1e-3) <= wait <= max(1, math.ceil(missing + 1e-3))
        else:
            tokens -= count


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:8080", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:8080", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("", ""),
        ("no:address:at:all", "no:address:at:all"),
    ],
)
def test_an_address_is_limited_alone_and_ipv6_by_its_64(address: str, key: str) -> None:
    assert address_key(address) == key
