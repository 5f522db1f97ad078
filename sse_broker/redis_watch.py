"""Hears from Sentinels that another server is the master now. It knows neither which, nor who has connections to the old one.

Why: a master that works, and that its Sentinels replace all the same (because they can not reach it, or somebody asked them
to), is told so last, some ten seconds later. What it takes until then is lost. So it must be left as soon as they say so.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from sse_broker.redis_connection import CONNECT_SECONDS, FAILURES, Address, Dialer, RedisConnection

log = logging.getLogger(__name__)

CHANNEL = "+switch-master"
# A Sentinel that is silent for so long is asked whether it is there; after as much again it is taken for gone.
SILENCE_SECONDS = 10.0
PAUSE_SECONDS = (1.0, 3.0)


class Watch:
    """Subscribes to every Sentinel and calls `on_switch`, also after each time that one could not be heard."""

    def __init__(self, dialer: Dialer, on_switch: Callable[[], Awaitable[None]]) -> None:
        self._dialer = dialer
        self._config = dialer.config
        self._on_switch = on_switch
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to listen; without Sentinels there is nobody to hear."""
        if self._config.sentinel:
            self._tasks = [
                asyncio.create_task(self._follow(address), name="sentinel watch") for address in self._config.addresses
            ]

    async def close(self) -> None:
        """End the tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, address: Address) -> None:
        while True:
            try:
                await self._listen(address)
            except FAILURES as error:
                log.debug("a Sentinel is not heard: %s", error)
            except Exception:
                log.exception("a Sentinel is not heard")
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))

    async def _listen(self, address: Address) -> None:
        connection = await self._dialer.dial(address, sentinel=True)
        try:
            (reply,) = await connection.call([("SUBSCRIBE", CHANNEL)], CONNECT_SECONDS)
            if isinstance(reply, Exception):
                raise reply
            await self._on_switch()
            while True:
                if self._is_switch(await _next(connection)):
                    await self._on_switch()
        finally:
            connection.drop()

    def _is_switch(self, message: Any) -> bool:
        """Tell whether a message is about the broker's master: its name, then both addresses."""
        if not isinstance(message, list) or message[0] != b"message":
            return False
        return bool(message[2].split(b" ", 1)[0] == self._config.sentinel.encode())


async def _next(connection: RedisConnection) -> Any:
    """Return the next message, or what a Sentinel that had nothing to say answers when it is asked. Raises: one of FAILURES."""
    try:
        return await connection.next(SILENCE_SECONDS)
    except TimeoutError:
        connection.send([("PING",)])
    return await connection.next(SILENCE_SECONDS)
