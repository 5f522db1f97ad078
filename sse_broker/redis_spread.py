"""Commands for keys that are spread over all slots: each goes to the server that has its key, those of one server together. A
command that fails is its exception, in its place. It knows nothing of what the commands do.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import RedisError

from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, Address, RedisConnection


class Spread:
    """Keeps at most `connections` to each server, and waits at most `seconds` for a reply. `close` closes them."""

    def __init__(self, client: RedisClient, *, connections: int, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._connections = connections
        self._idle: dict[Address, list[RedisConnection]] = defaultdict(list)
        self._turns: dict[Address, asyncio.Semaphore] = {}

    def close(self) -> None:
        """Close every connection."""
        idle, self._idle = self._idle, defaultdict(list)
        for connections in idle.values():
            self._drop(connections)

    @staticmethod
    def _drop(connections: Sequence[RedisConnection]) -> None:
        for connection in connections:
            connection.drop()

    async def run(self, keys: Sequence[str], commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Carry out one command for each key. Raises: one of FAILURES when nobody knows where the keys are."""
        replies: list[Any] = [None] * len(keys)
        places: dict[Address, list[int]] = defaultdict(list)
        for place, address in enumerate(await self._client.owners(keys)):
            places[address].append(place)
        parts = [(address, some, [commands[place] for place in some]) for address, some in places.items()]
        answers = await asyncio.gather(*(self._part(address, part) for address, _, part in parts))
        for (_, some, _), answer in zip(parts, answers, strict=True):
            for place, reply in zip(some, answer, strict=True):
                replies[place] = reply
        return replies

    async def _part(self, address: Address, commands: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            async with self._connection(address) as connection:
                replies = await connection.call(commands, self._seconds)
        except FAILURES as error:
            self._client.moved(error)
            # The others to a server that has gone are of no more use; and should it never be asked again, nobody would see.
            self._drop(self._idle.pop(address, []))
            return [error] * len(commands)
        for reply in replies:
            if isinstance(reply, RedisError):
                self._client.moved(reply)
        return replies

    @asynccontextmanager
    async def _connection(self, address: Address) -> AsyncIterator[RedisConnection]:
        turns = self._turns.setdefault(address, asyncio.Semaphore(self._connections))
        async with asyncio.timeout(self._seconds):
            await turns.acquire()
        try:
            connection = self._idle_one(address) or await self._client.connect_to(address)
            try:
                yield connection
            except BaseException:
                connection.drop()
                raise
            self._idle[address].append(connection)
        finally:
            turns.release()

    def _idle_one(self, address: Address) -> RedisConnection | None:
        """Return a connection that is open still: a server may close those that were not used for long."""
        idle = self._idle[address]
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
            connection.drop()
        return None
