"""Waiting for conditions with a deadline, and finding free ports. It knows nothing of brokers, streams or Redis."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

# Below the kernel's ephemeral range (32768 and up), so that no outgoing connection takes a port between the choice and
# its use, and no client that dials a dead server can connect to itself.
LOWEST_PORT, HIGHEST_PORT = 10_000, 22_000


@overload
async def until(
    condition: Callable[[], Awaitable[T]], *, seconds: float = ..., what: str = ..., pause_seconds: float = ...
) -> T: ...
@overload
async def until(
    condition: Callable[[], T], *, seconds: float = ..., what: str = ..., pause_seconds: float = ...
) -> T: ...
async def until(
    condition: Callable[[], Any], *, seconds: float = 10, what: str = "", pause_seconds: float = 0.01
) -> Any:
    """Call `condition` (plain or async) until it gives something true, and return that.

    Raises: AssertionError with `what` once `seconds` have passed; one asynchronous call is bounded by them as well. The
    environment variable TEST_PATIENCE multiplies them, for machines with much other work.
    """
    seconds *= float(os.environ.get("TEST_PATIENCE", "1"))
    what = what or getattr(condition, "__qualname__", repr(condition))
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), pause_seconds)):
                    value = await value
            except TimeoutError:
                raise AssertionError(f"not within {seconds} s (the question itself hung): {what}") from None
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {what} (last answer: {value!r})")
        await asyncio.sleep(pause_seconds)


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(*, partner_offset: int = 0) -> int:
    """Return a free port of 127.0.0.1, drawn at random so that parallel test runs stay apart.

    With `partner_offset`, the port that many above it is free too (the bus port of a Redis Cluster node).
    """
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.randint(LOWEST_PORT, HIGHEST_PORT)
        if port_is_free(port) and (not partner_offset or port_is_free(port + partner_offset)):
            return port
    raise AssertionError("no free port found")
