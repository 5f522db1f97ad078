"""Publishes that share one call: who gets which part of its answer, and that everyone hears of its failure."""

from __future__ import annotations

import asyncio

import pytest

from sse_broker.backend import GROUP_CHARS, GROUP_MESSAGES, GROUP_NAMES
from sse_broker.errors import Unavailable
from sse_broker.redis_group import Group
from sse_broker.target import Message, Sent, Target


def message(data: str = "x", *devices: str) -> Message:
    """Return a message to some devices."""
    return Message(Target(devices=devices), "e", data)


def answered(result: object) -> asyncio.Future[object]:
    """Return a call's answer that is there."""
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
    return answer


async def test_each_gets_the_part_that_is_his() -> None:
    group = Group()
    one, two, none, three = (group.add([message()] * count) for count in (1, 2, 0, 3))
    assert group.count == 6
    assert group.settle(answered(b"11 1 12 2 13 3 14 4 15 5 16 6")) == 16
    assert await one == [Sent(11, 1)]
    assert await two == [Sent(12, 2), Sent(13, 3)]
    assert await none == []
    assert await three == [Sent(14, 4), Sent(15, 5), Sent(16, 6)]


async def test_one_who_gave_up_leaves_the_parts_of_the_others_where_they_are() -> None:
    group = Group()
    one, two = group.add([message()]), group.add([message()])
    one.cancel()
    group.settle(answered(b"11 1 12 2"))
    assert await two == [Sent(12, 2)]


async def test_a_failure_is_everyones() -> None:
    group = Group()
    waiting = [group.add([message()]) for _ in range(3)]
    waiting[0].cancel()
    assert group.settle(answered(Unavailable("away"))) == 0
    errors = [one.exception() for one in waiting[1:]]
    assert [str(error) for error in errors] == ["away", "away"]
    assert errors[0] is not errors[1]


@pytest.mark.parametrize(
    ("messages", "full"),
    [
        ([message()] * (GROUP_MESSAGES - 1), False),
        ([message()] * GROUP_MESSAGES, True),
        ([message("x" * GROUP_CHARS)], True),
        ([message("x", *map(str, range(GROUP_NAMES)))], True),
    ],
)
async def test_a_group_has_bounds(messages: list[Message], full: bool) -> None:
    group = Group()
    group.add(messages)
    assert group.is_full is full
    assert group.arguments[:5] == ["e", messages[0].data, 0, len(messages[0].target.devices), *group.arguments[4:5]]
