"""Who a frame is for."""

from __future__ import annotations

import pytest

from sse_broker.errors import BadRequest
from sse_broker.target import Message, Target


def test_no_user_and_no_device_means_everyone() -> None:
    assert Target().everyone
    assert Target((), ()) == Target()


@pytest.mark.parametrize("target", [Target(users=("u",)), Target(devices=("d",)), Target(("u",), ("d",))])
def test_a_user_or_a_device_is_not_everyone(target: Target) -> None:
    assert not target.everyone


def test_each_is_named_once_and_order_is_kept() -> None:
    target = Target(users=("b", "a", "b"), devices=("y", "x", "x", "y"))
    assert target.users == ("b", "a")
    assert target.devices == ("y", "x")


def test_a_user_and_a_device_of_one_name_are_two() -> None:
    target = Target(users=("a",), devices=("a",))
    assert (target.users, target.devices) == (("a",), ("a",))


def test_a_target_is_a_value() -> None:
    assert Target(users=("a", "a")) == Target(users=("a",))
    assert hash(Target(users=("a",))) == hash(Target(users=("a",)))


@pytest.mark.parametrize(
    ("event", "data", "parameter"),
    [
        ("two\nlines", "x", "event"),
        ("two\rlines", "x", "event"),
        ("nul\0", "x", "event"),
        ("sys_kick_offline", "x", "event"),
        ("e" * 257, "x", "event"),
        ("\ud800", "x", "event"),
        ("", "lone \udfff surrogate", "data"),
    ],
)
def test_a_message_that_no_stream_can_carry_is_refused_by_name(event: str, data: str, parameter: str) -> None:
    with pytest.raises(BadRequest, match=f"'{parameter}'"):
        Message(Target(), event, data)


def test_any_other_text_makes_a_message() -> None:
    message = Message(Target(), "naïve ☃", "a\r\nb\0\u2028\U0001f600")
    assert (message.event, message.data) == ("naïve ☃", "a\r\nb\0\u2028\U0001f600")
