"""Which server to ask: the one that is configured, the master that Sentinels name, or the master of a key's slot in a Redis
Cluster. It asks servers about each other, and knows nothing of what the broker keeps in them.

Whoever lags or is cut off from the others knows an old answer, so several are asked at once. Of Sentinels the newest answer of
a majority counts (their config epoch says which that is); of a Cluster's nodes, the answer on which most agree. Where no
majority answers in time, those that did have to do: a master that works must not be given up because Sentinels died.
"""

import asyncio
import random
import time
from binascii import crc_hqx
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from copy import copy
from typing import Any, Protocol, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, RedisError

from sse_broker.client_address import join_host_port
from sse_broker.config import RedisConfig
from sse_broker.redis_connection import CONNECT_SECONDS, FAILURES, REFUSALS, Address, Dialer
from sse_broker.redis_keys import shard_key

T = TypeVar("T")

SLOTS = 16_384
# How many servers of a Cluster are asked at most, and for how long an answer serves all who connect.
MAX_ASKED = 12
FRESH_SECONDS = 0.2
# How long the last Sentinels are waited for once a majority has answered.
LAST_SECONDS = 0.1


class Topology(Protocol):
    """Knows where masters are."""

    async def master(self) -> Address:
        """Return the address of the master that has the broker's shard. Raises: one of FAILURES."""

    async def owners(self, keys: Sequence[str]) -> list[Address]:
        """Return the address of the master of each key. Raises: one of FAILURES."""

    def moved(self, error: BaseException | None) -> None:
        """Forget what is known: a server has answered that it is not the one, or has not answered (`error`), or others say that
        it is not the one (None).
        """


def topology_of(dialer: Dialer) -> Topology:
    """Return what fits the configuration."""
    if dialer.config.sentinel:
        return Sentinels(dialer)
    return Slots(dialer) if dialer.config.is_cluster else Single(dialer.config)


class Single:
    """One server."""

    def __init__(self, config: RedisConfig) -> None:
        self._address = config.addresses[0]

    async def master(self) -> Address:
        """See `Topology.master`."""
        return self._address

    async def owners(self, keys: Sequence[str]) -> list[Address]:
        """See `Topology.owners`."""
        return [self._address] * len(keys)

    def moved(self, error: BaseException | None) -> None:
        """See `Topology.moved`."""


class Sentinels:
    """A master whose address the Sentinels know."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._config = dialer.config
        self._known = _Shared(self._ask_all)

    async def master(self) -> Address:
        """See `Topology.master`."""
        address: Address = await self._known.get()
        return address

    async def owners(self, keys: Sequence[str]) -> list[Address]:
        """See `Topology.owners`."""
        return [await self._known.get(forever=True)] * len(keys)

    def moved(self, error: BaseException | None) -> None:
        """See `Topology.moved`."""
        self._known.forget(surely=error is None)

    async def _ask_all(self) -> Address:
        addresses = self._config.addresses
        answers: list[tuple[int, Address]] = []
        failures: list[BaseException] = []
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as patience, aclosing(_each(addresses, self._ask)) as replies:
                async for reply in replies:
                    (failures if isinstance(reply, BaseException) else answers).append(reply)  # type: ignore[arg-type]
                    if len(answers) == len(addresses) // 2 + 1:
                        # Just after a failover the one that led it may be the only one that knows.
                        patience.reschedule(loop.time() + LAST_SECONDS)
        if not answers:
            raise _out_of_reach(f"no Sentinel knows a master called {self._config.sentinel}", addresses, failures)
        return max(answers)[1]

    async def _ask(self, address: Address) -> tuple[int, Address]:
        """Return a Sentinel's answer, behind the epoch that it is of."""
        connection = await self._dialer.dial(address, sentinel=True)
        try:
            (reply,) = await connection.call([("SENTINEL", "MASTER", self._config.sentinel)], CONNECT_SECONDS)
        finally:
            connection.drop()
        if isinstance(reply, RedisError):
            raise reply
        fields = dict(zip(reply[::2], reply[1::2], strict=False))
        return int(fields[b"config-epoch"]), (fields[b"ip"].decode(), int(fields[b"port"]))


class Slots:
    """The masters of a Cluster's slots."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._config = dialer.config
        self._known = _Shared(self._ask_all)
        self._nodes: tuple[Address, ...] = dialer.config.addresses
        self._shard_slot = slot_of(shard_key("id"))
        # Where a server sent us, which knows it before the others do.
        self._hint: Address | None = None

    async def master(self) -> Address:
        """See `Topology.master`."""
        hint, self._hint = self._hint, None
        return hint or (await self._known.get()).owner(self._shard_slot)

    async def owners(self, keys: Sequence[str]) -> list[Address]:
        """See `Topology.owners`."""
        view = await self._known.get(forever=True)
        return [view.owner(slot_of(key)) for key in keys]

    def moved(self, error: BaseException | None) -> None:
        """See `Topology.moved`."""
        if isinstance(error, MovedError) and error.slot_id == self._shard_slot and error.host:
            self._hint = (str(error.host), int(error.port))
        self._known.forget()

    async def _ask_all(self) -> "View":
        asked = self._some_nodes()
        views: Counter[View] = Counter()
        owners: Counter[Address] = Counter()
        failures: list[BaseException] = []
        async with aclosing(_each(asked, self._ask)) as replies:
            async for reply in replies:
                if isinstance(reply, BaseException):
                    failures.append(reply)
                    continue
                views[reply] += 1
                owners[reply.owner(self._shard_slot)] += 1
                if 2 * max(owners.values()) > len(asked):
                    break
        if not views:
            raise _out_of_reach("no server knows who has the broker's slot", asked, failures)
        owner = owners.most_common(1)[0][0]
        view = next(view for view, _ in views.most_common() if view.owner(self._shard_slot) == owner)
        self._nodes = view.nodes or self._nodes
        return view

    def _some_nodes(self) -> list[Address]:
        """Return whom to ask: of a large Cluster each time others, so that no few dead ones are asked for ever."""
        nodes = list(dict.fromkeys((*self._nodes, *self._config.addresses)))
        return random.sample(nodes, min(len(nodes), MAX_ASKED))

    async def _ask(self, address: Address) -> "View":
        connection = await self._dialer.dial(address)
        try:
            (reply,) = await connection.call([("CLUSTER", "SLOTS")], CONNECT_SECONDS)
        finally:
            connection.drop()
        if isinstance(reply, RedisError):
            raise reply
        view = View(reply, address)
        view.owner(self._shard_slot)
        return view


class View:
    """What one node of a Cluster says about the slots."""

    __slots__ = ("_ranges", "_starts", "nodes")

    def __init__(self, reply: Sequence[Any], asked: Address) -> None:
        self._ranges = tuple(sorted((int(row[0]), int(row[1]), _node(row[2], asked)) for row in reply))
        self._starts = tuple(start for start, _, _ in self._ranges)
        self.nodes = tuple(sorted({_node(node, asked) for row in reply for node in row[2:]}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def owner(self, slot: int) -> Address:
        """Return the master of a slot. Raises: ConnectionError of redis when there is none."""
        at = bisect_right(self._starts, slot) - 1
        if at < 0 or self._ranges[at][1] < slot:
            raise RedisConnectionError(f"no server has slot {slot}")
        return self._ranges[at][2]


def slot_of(key: str) -> int:
    """Return the slot of a key: CRC16 of what stands between the first braces, if anything does, else of all (CLUSTER KEYSLOT)."""
    begin = key.find("{") + 1
    end = key.find("}", begin)
    hashed = key[begin:end] if 0 < begin < end else key
    return crc_hqx(hashed.encode(), 0) % SLOTS


class _Shared:
    """An answer that is expensive to get, and that all who want it at the same time share; a failure, too: else each of those
    who wait would ask in his turn, and the last be told after as many timeouts.
    """

    def __init__(self, ask: Callable[[], Awaitable[Any]]) -> None:
        self._ask = ask
        self._lock = asyncio.Lock()
        self._answer: Any = None
        self._at = -FRESH_SECONDS
        self._failure: BaseException | None = None
        self._failed_at = -FRESH_SECONDS
        self._forgotten = 0

    async def get(self, *, forever: bool = False) -> Any:
        """Return an answer that is fresh, or `forever`: any that was not forgotten. Raises: one of FAILURES."""
        async with self._lock:
            if self._answer is not None and (forever or _is_fresh(self._at)):
                return self._answer
            if self._failure is not None and _is_fresh(self._failed_at):
                raise copy(self._failure)  # each its own: one that is raised twice has two tracebacks in one
            return await self._look()

    async def _look(self) -> Any:
        before = self._forgotten
        try:
            answer = await self._ask()
        except FAILURES as error:
            if before == self._forgotten:
                self._failure, self._failed_at = copy(error), time.monotonic()
            raise
        if before == self._forgotten:  # else it may be an answer from before what has just happened
            self._answer, self._at, self._failure = answer, time.monotonic(), None
        return answer

    def forget(self, *, surely: bool = False) -> None:
        """Ask anew at the next wish, unless the answer is so fresh that it is what was asked for, or `surely`."""
        if surely:
            self._forgotten += 1
            self._failure = None
        if surely or not _is_fresh(self._at):
            self._answer = None


def _is_fresh(at: float) -> bool:
    return time.monotonic() - at <= FRESH_SECONDS


async def _each(
    addresses: Sequence[Address], ask: Callable[[Address], Awaitable[T]]
) -> AsyncGenerator[T | BaseException, None]:
    """Ask all at once, and yield answers and failures as they come; none is waited for longer than a connect may take."""

    async def one(address: Address) -> T | BaseException:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await ask(address)
        except (*FAILURES, LookupError, ValueError, TypeError) as error:
            return error

    tasks = [asyncio.create_task(one(address), name="topology") for address in addresses]
    try:
        for next_done in asyncio.as_completed(tasks):
            yield await next_done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _node(row: Sequence[Any], asked: Address) -> Address:
    # A server without a name is the one that was asked.
    host = row[0].decode() if row[0] else ""
    return (host or asked[0], int(row[1]))


def _out_of_reach(what: str, asked: Iterable[Address], failures: Sequence[BaseException]) -> BaseException:
    for failure in failures:
        if isinstance(failure, REFUSALS):
            return failure
    where = ", ".join(join_host_port(*address) for address in asked)
    why = next((str(failure) for failure in failures if str(failure)), "no answer")
    return RedisConnectionError(f"{what}: {where} ({why})")
