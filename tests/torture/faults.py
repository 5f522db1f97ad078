"""The faults of torture: what each does to the nodes or to Redis, and what it excuses. It plans nothing and judges nothing.

All leave things whole behind them, so that in the end everything must come right.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import aiohttp

from tests.broker_process import BrokerProcess
from tests.event_client import Api
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.redis_sets import SLOTS, RedisCluster, SentinelSet
from tests.torture.plan import Operation
from tests.waiting import until

Servers = RedisServer | SentinelSet | RedisCluster

HEARTBEAT_SECONDS = 2
# How long presence may be wrong once a fault is over: a dead node is cleared within three heartbeats.
AFTER_SECONDS = 4.0 * HEARTBEAT_SECONDS
# What was acknowledged so shortly before a server dies may not have reached its replica.
LAG_SECONDS = 0.5
TAG = "{sse}"


class NodeFaults:
    """What happens to nodes. Each is up again in the end, at the same address."""

    def __init__(self, nodes: Sequence[BrokerProcess], recorder: Recorder) -> None:
        self._nodes, self._recorder = nodes, recorder

    async def play(self, operation: Operation) -> None:
        """Break and mend."""
        node, seconds = self._nodes[operation.node], operation.seconds
        other = self._nodes[(operation.node + 1 + operation.pick % 2) % len(self._nodes)]
        with self._recorder.fault(after=AFTER_SECONDS):
            match operation.word:
                case "kill node":
                    await self._kill([node], seconds)
                case "kill two nodes":
                    await self._kill([node, other], seconds)
                case "kill all nodes":
                    await self._kill(self._nodes, seconds)
                case "restart node":
                    await self._restart(node)
                case "restart nodes in turn":
                    for one in self._nodes:
                        await self._restart(one)
                case "freeze node" | "freeze node for long":
                    node.freeze()
                    await asyncio.sleep(seconds)
                    node.thaw()
                case word:
                    raise AssertionError(f"unknown fault: {word}")

    async def _kill(self, nodes: Sequence[BrokerProcess], seconds: float) -> None:
        for node in nodes:
            await node.kill()
        await asyncio.sleep(seconds)
        await start_nodes(nodes)

    async def _restart(self, node: BrokerProcess) -> None:
        await end_node(node)
        await start_nodes([node])


async def start_nodes(nodes: Sequence[BrokerProcess]) -> None:
    """Start nodes as a service manager does, again and again while Redis is away, until all answer."""
    await asyncio.gather(*(_start(node) for node in nodes))


async def _start(node: BrokerProcess) -> None:
    allowed = [None, 0, -signal.SIGKILL]

    async def answers() -> bool:
        if not node.running:
            # Out of reach of Redis it ends with 1; nothing else may end it now.
            code = node.process.exit_code if node._process else None
            assert code in allowed, f"a node ended with {code}:\n{node.stderr_text()[-3000:]}"
            allowed[:] = [1]
            node.launch()
        try:
            async with Api(node.base_url, seconds=2) as api:
                return (await api.info()).status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    await until(answers, seconds=60, what=f"node {node.address}", pause_seconds=0.1)


async def end_node(node: BrokerProcess) -> None:
    """End a node by SIGTERM as an operator does.

    Raises: AssertionError if it does not go in good order.
    """
    code, _ = await node.terminate(seconds=30)
    assert code == 0, f"a node ended with {code} after SIGTERM:\n{node.stderr_text()[-3000:]}"


class RedisFaults:
    """What happens to Redis. Presence messages that are published meanwhile may be lost, as the listener is cut off too."""

    def __init__(self, redis: Servers, recorder: Recorder) -> None:
        self._redis, self._recorder = redis, recorder

    async def play(self, operation: Operation) -> None:
        """Break and mend."""
        word, seconds = operation.word, operation.seconds
        if word == "cut connections":
            await self._cut()
            return
        if word == "flush redis":
            with self._recorder.fault(data=True, messages=True, after=AFTER_SECONDS):
                await asyncio.sleep(LAG_SECONDS)
                await self._redis.flush()
            return
        redis = self._redis
        if isinstance(redis, RedisServer):
            with self._recorder.fault(messages=True, after=AFTER_SECONDS):
                await self._play_alone(redis, word, seconds)
            return
        if word in ("kill replica", "kill sentinel", "move slot", "move another slot"):
            with self._recorder.fault(messages=True, after=AFTER_SECONDS):
                await self._play_aside(redis, operation)
            return
        with self._recorder.fault(messages=True, data=True, after=AFTER_SECONDS):
            await asyncio.sleep(LAG_SECONDS)
            await self._play_master(redis, operation)

    async def _cut(self) -> None:
        """Cut every connection of commands: nothing at all may be lost by it."""
        servers = [self._redis] if isinstance(self._redis, RedisServer) else self._redis.servers
        for server in servers:
            if server.running:
                async with server.client() as client:
                    await client.client_kill_filter(_type="normal")

    @staticmethod
    async def _play_alone(redis: RedisServer, word: str, seconds: float) -> None:
        match word:
            case "freeze redis" | "freeze redis for long":
                redis.freeze()
                await asyncio.sleep(seconds)
                redis.thaw()
            case "kill redis":
                await redis.kill()
                await asyncio.sleep(seconds)
                await redis.start()
            case "restart redis":
                await redis.restart()
            case _:
                raise AssertionError(f"unknown fault: {word}")
        await redis.ready()

    async def _play_aside(self, redis: SentinelSet | RedisCluster, operation: Operation) -> None:
        """Faults that leave the master alone, or hand its slot over in an orderly way."""
        if isinstance(redis, RedisCluster) and "slot" in operation.word:
            here = operation.word == "move slot"
            await redis.migrate_slot(await redis.slot_of(TAG) if here else operation.pick % SLOTS)
            return
        if isinstance(redis, SentinelSet) and operation.word == "kill sentinel":
            victim = redis.sentinels[operation.pick % len(redis.sentinels)]
        else:
            master = await self._master(redis, operation)
            victim = (
                redis.data[redis.data[0] is master] if isinstance(redis, SentinelSet) else await _replica(master, redis)
            )
        await victim.kill()
        await asyncio.sleep(operation.seconds)
        await redis.heal()

    async def _play_master(self, redis: SentinelSet | RedisCluster, operation: Operation) -> None:
        """Faults after which another server may be the master."""
        master = await self._master(redis, operation)
        if operation.word.startswith("freeze"):
            master.freeze()
            await asyncio.sleep(operation.seconds)
        elif isinstance(redis, SentinelSet):
            await redis.failover()
            await asyncio.sleep(operation.seconds)
        else:
            await redis.failover(await self._slot(redis, operation))
            await asyncio.sleep(operation.seconds)
        await redis.heal()

    async def _master(self, redis: SentinelSet | RedisCluster, operation: Operation) -> RedisServer:
        if isinstance(redis, SentinelSet):
            return await redis.master()
        return await redis.owner(await self._slot(redis, operation))

    @staticmethod
    async def _slot(redis: RedisCluster, operation: Operation) -> int:
        """The slot of logs and routes, or where the fault is to strike elsewhere, one of another master."""
        slot = await redis.slot_of(TAG)
        return slot if operation.word != "fail over elsewhere" else (slot + SLOTS // 3) % SLOTS


async def _replica(master: RedisServer, redis: RedisCluster) -> RedisServer:
    for server in redis.servers:
        role = await server.ask("ROLE")
        if role[0] == "slave" and int(role[2]) == master.port:
            return server
    raise AssertionError("a master without a replica")
