"""The way to Redis, whatever kind it is: standalone, Sentinel or Cluster. It hides the kind, and knows nothing of what is said
over a connection.
"""

import asyncio
import logging
from collections.abc import Sequence

from sse_broker.config import RedisConfig
from sse_broker.redis_connection import CONNECT_SECONDS, Address, Dialer, RedisConnection
from sse_broker.redis_topology import Topology, topology_of
from sse_broker.redis_watch import Watch

log = logging.getLogger(__name__)


class RedisClient:
    """Gives connections to the shard's present master, and says which server has any other key. From `start` to `close` it
    breaks those connections should another server become the master; without, they have to find out.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._dialer = Dialer(config)
        self._topology: Topology = topology_of(self._dialer)
        self._watch = Watch(self._dialer, self._look)
        self._given: list[tuple[Address, RedisConnection]] = []

    def start(self) -> None:
        """Begin to watch for another master."""
        self._watch.start()

    async def close(self) -> None:
        """End the watch."""
        await self._watch.close()

    async def connect(self) -> RedisConnection:
        """Return a new connection to the master that has the shard; the caller drops it. Raises: one of FAILURES."""
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            address = await self._topology.master()
            connection = await self._dialer.dial(address)
        self._given = [(where, one) for where, one in self._given if one.is_open]
        self._given.append((address, connection))
        return connection

    def rely_on(self, connection: RedisConnection) -> None:
        """Leave other servers: this one was just seen to take writes, and all must use the same."""
        for address, one in self._given:
            if one is connection:
                self._leave_all_but(address)
                return

    async def _look(self) -> None:
        self._topology.moved(None)
        if self._leave_all_but(await self._topology.master()):
            log.warning("the Sentinels have made another server the master; it is used from now on")

    def _leave_all_but(self, address: Address) -> bool:
        """Leave servers that are the master no longer. Return whether there were any."""
        given = [(where, one) for where, one in self._given if one.is_open]
        former = [one for where, one in given if where != address]
        self._given = [(where, one) for where, one in given if where == address]
        for connection in former:
            connection.leave()
        return bool(former)

    async def connect_to(self, address: Address) -> RedisConnection:
        """Return a new connection to a server; the caller drops it. Raises: one of FAILURES."""
        return await self._dialer.dial(address)

    @property
    def is_cluster(self) -> bool:
        """Whether keys are on several servers."""
        return self._config.is_cluster

    @property
    def pool_size(self) -> int:
        """How many connections for questions to keep to a server, 0 for no wish."""
        return self._config.pool_size

    async def owners(self, keys: Sequence[str]) -> list[Address]:
        """Return the address of the master of each key. Raises: one of FAILURES."""
        return await self._topology.owners(keys)

    def moved(self, error: BaseException | None = None) -> None:
        """Look anew where everything is: a server has answered that it is not the one, or has not answered."""
        self._topology.moved(error)
