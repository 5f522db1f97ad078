"""Publishes that share one call of the script. It owns which part of the call's answer belongs to whom, and knows no lane.

Why: eight publishers at once cost Redis a script call each and this process as many commands, timers and replies. A call joins the group that waits for its turn, so nobody waits longer for it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from sse_broker.backend import GROUP_CHARS, GROUP_MESSAGES, GROUP_NAMES
from sse_broker.errors import Unavailable
from sse_broker.target import Message, Sent, Target


class Group:
    """The arguments of a call of `PUBLISH`, as they come together, and the futures of those who wait for it."""

    __slots__ = ("_chars", "_names", "_waiting", "arguments", "count")

    def __init__(self) -> None:
        self.arguments: list[Any] = []
        self.count = 0
        self._chars = 0
        self._names = 0
        self._waiting: list[tuple[asyncio.Future[list[Sent]], int]] = []

    @property
    def is_full(self) -> bool:
        """Whether the next messages should begin another."""
        return self.count >= GROUP_MESSAGES or self._chars >= GROUP_CHARS or self._names >= GROUP_NAMES

    def add(self, messages: Sequence[Message]) -> "asyncio.Future[list[Sent]]":
        """Take messages in; the future has what became of them. Raises, from the future: Unavailable."""
        for message in messages:
            self.arguments += [message.event, message.data, *target_arguments(message.target)]
            self._chars += len(message.data)
            self._names += len(message.target.users) + len(message.target.devices)
        self.count += len(messages)
        sent: asyncio.Future[list[Sent]] = asyncio.get_running_loop().create_future()
        self._waiting.append((sent, len(messages)))
        return sent

    def settle(self, answer: "asyncio.Future[Any]") -> int:
        """Give everyone his part of the call's answer, or its failure; return the greatest id in it."""
        error = Unavailable("the broker is closing") if answer.cancelled() else answer.exception()
        if error is not None:
            for sent, _ in self._waiting:
                if not sent.done():
                    # Each its own: an exception that is raised twice has two tracebacks in one.
                    sent.set_exception(Unavailable(str(error)) if isinstance(error, Unavailable) else error)
            return 0
        numbers = [int(text) for text in answer.result().split()]
        at = 0
        for sent, count in self._waiting:
            if not sent.done():
                part = zip(numbers[at : at + 2 * count : 2], numbers[at + 1 : at + 2 * count : 2], strict=True)
                sent.set_result([Sent(number, devices) for number, devices in part])
            at += 2 * count
        return max(numbers[::2], default=0)


def target_arguments(target: Target) -> list[Any]:
    """Return a target as scripts take it: each list behind its length."""
    return [len(target.users), *target.users, len(target.devices), *target.devices]
