"""The way to Redis, whatever kind it is: standalone, Sentinel or Cluster. It hides the kind, and knows nothing of what is said
over a connection.
"""

import asyncio
from collections.abc import Sequence

from redis.asyncio.connection import AbstractConnection

from sse_broker.config import RedisConfig
from sse_broker.redis_connection import CONNECT_SECONDS, Address, dial
from sse_broker.redis_topology import Topology, topology_of


class RedisClient:
    """Gives connections to the shard's present master, and says which server has any other key."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._topology: Topology = topology_of(config)

    async def connect(self) -> AbstractConnection:
        """Return a new connection to the master that has the shard; the caller disconnects it. Raises: one of FAILURES."""
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            return await dial(self._config, await self._topology.master())

    async def connect_to(self, address: Address) -> AbstractConnection:
        """Return a new connection to a server; the caller disconnects it. Raises: one of FAILURES."""
        return await dial(self._config, address)

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
        """Look anew where everything is: a server has answered that it is not the one, or none has."""
        self._topology.moved(error)
