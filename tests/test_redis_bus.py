"""The bus of one instance: its inbox, in order, each entry once, as fast as it is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.asyncio import Redis

from sse_broker import redis_bus
from sse_broker.config import RedisConfig
from sse_broker.envelope import EndEnvelope, Envelope, FrameEnvelope
from sse_broker.frame import Frame
from sse_broker.presence import Device, Reason
from sse_broker.redis_bus import BATCH_ENTRIES, Bus
from sse_broker.redis_client import RedisClient
from sse_broker.redis_keys import inbox
from tests.cutting_proxy import CuttingProxy
from tests.redis_servers import RedisServer
from tests.waiting import until

KEY = inbox("instance")


class Receiver:
    """Writes down; `gate` is open while there is room, `error` is raised by the next envelope."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.missed_after: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    def receive(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def devices(self) -> Sequence[Device]:
        return ()

    async def room(self) -> None:
        await self.gate.wait()

    def missed(self, after_id: int) -> None:
        self.missed_after.append(after_id)

    @property
    def ids(self) -> list[int]:
        return [envelope.frame.id for envelope in self.envelopes if isinstance(envelope, FrameEnvelope)]


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client that writes into the inbox."""
    async with redis_server.client() as redis:
        yield redis


@pytest.fixture
async def bus(proxy: CuttingProxy) -> AsyncIterator[Bus]:
    """A bus that was not started yet; closed at the end."""
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    bus = Bus(client, "instance", Receiver())
    yield bus
    await bus.close()


def receiver_of(bus: Bus) -> Receiver:
    assert isinstance(bus._receiver, Receiver)
    return bus._receiver


async def write(redis: Redis, *ids: int) -> None:
    pipe = redis.pipeline(transaction=False)
    for number in ids:
        pipe.xadd(KEY, {"e": "", "d": "x", "t": ""}, id=f"{number}-0")
    await pipe.execute()


async def test_entries_come_in_order_from_the_first(bus: Bus, redis: Redis) -> None:
    receiver = receiver_of(bus)
    await write(redis, 1, 2)
    bus.start()
    await write(redis, 3)
    await redis.xadd(KEY, {"k": "end", "i": "d", "c": "c", "r": "kick_offline", "p": "bye"}, id="4-0")
    await redis.xadd(KEY, {"e": "news", "d": "x", "t": "d1 d2"}, id="5-0")
    await until(lambda: len(receiver.envelopes) == 5, what="five envelopes")
    assert receiver.envelopes == [
        *(FrameEnvelope(Frame(number, "", "x"), None) for number in (1, 2, 3)),
        EndEnvelope("d", "c", Reason.KICK, "bye"),
        FrameEnvelope(Frame(5, "news", "x"), ("d1", "d2")),
    ]
    assert bus.last_id == 5


@pytest.mark.parametrize("cut", ["its connections", "the way"])
async def test_after_a_cut_it_reads_on_where_it_was(bus: Bus, redis: Redis, proxy: CuttingProxy, cut: str) -> None:
    receiver = receiver_of(bus)
    bus.start()
    for number in range(1, 30, 3):
        await write(redis, number)
        if cut == "the way":
            await proxy.cut()
        else:
            await proxy.cut_connections()
        await write(redis, number + 1)
        await proxy.mend()
        await write(redis, number + 2)
        await until(lambda number=number: bus.last_id >= number, what=f"entry {number}")
    await until(lambda: bus.last_id == 30, what="the last entry")
    assert receiver.ids == list(range(1, 31)), "nothing lost, nothing doubled"
    assert receiver.missed_after == []


async def test_entries_whose_reply_was_lost_come_with_the_next(bus: Bus, redis: Redis, proxy: CuttingProxy) -> None:
    receiver = receiver_of(bus)
    bus.start()
    await write(redis, 1)
    await until(lambda: bus.last_id == 1, what="the first entry")
    proxy.deaf = True
    await write(redis, 2, 3)
    await proxy.cut_connections()
    proxy.deaf = False
    await until(lambda: bus.last_id == 3, what="the others")
    assert receiver.ids == [1, 2, 3]


async def test_what_was_read_is_trimmed(bus: Bus, redis: Redis) -> None:
    """But for the last of all and what shares its node in Redis: trimming is by whole nodes of a hundred entries."""
    bus.start()
    await write(redis, *range(1, 2001))
    await until(lambda: bus.last_id == 2000, what="all entries")
    await write(redis, 2001)

    async def short() -> bool:
        return int(await redis.xlen(KEY)) <= 200

    await until(short, what="a short inbox")


async def test_nothing_more_is_read_while_there_is_no_room(bus: Bus, redis: Redis) -> None:
    receiver = receiver_of(bus)
    receiver.gate.clear()
    await write(redis, *range(1, 4 * BATCH_ENTRIES + 1))
    bus.start()
    await until(lambda: receiver.envelopes, what="the first batch")
    await write(redis, 4 * BATCH_ENTRIES + 1)
    assert len(receiver.envelopes) == BATCH_ENTRIES
    receiver.gate.set()
    await until(lambda: bus.last_id == 4 * BATCH_ENTRIES + 1, what="the rest")
    assert receiver.ids == list(range(1, 4 * BATCH_ENTRIES + 2))


async def test_an_inbox_that_was_cut_at_its_cap_is_told_as_missed(
    bus: Bus, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = 5 * BATCH_ENTRIES
    monkeypatch.setattr(redis_bus, "INBOX_MAX", cap)
    receiver = receiver_of(bus)
    receiver.gate.clear()
    await write(redis, *range(1, BATCH_ENTRIES + 1))
    bus.start()
    await until(lambda: receiver.envelopes, what="the first batch")
    await write(redis, *range(1001, 1001 + cap + 300))
    await redis.xtrim(KEY, maxlen=cap, approximate=False)
    receiver.gate.set()
    last = 1000 + cap + 300
    await until(lambda: bus.last_id == last, what="the newest")
    assert receiver.missed_after[0] == BATCH_ENTRIES, "up to here nothing was missed"
    assert receiver.ids[-1] == last


async def test_an_inbox_that_is_only_long_is_nothing_missed(
    bus: Bus, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "INBOX_MAX", 5 * BATCH_ENTRIES)
    await write(redis, *range(1, 5 * BATCH_ENTRIES))
    bus.start()
    await until(lambda: bus.last_id == 5 * BATCH_ENTRIES - 1, what="all entries")
    assert receiver_of(bus).missed_after == []


async def test_a_receiver_that_fails_at_one_envelope_gets_the_next(
    bus: Bus, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = receiver_of(bus)
    receiver.error = RuntimeError("a mistake of ours")
    bus.start()
    await write(redis, 1, 2, 3)
    await until(lambda: len(receiver.envelopes) == 3, what="three envelopes")
    assert receiver.ids == [1, 2, 3]
    assert "an envelope could not be handed on" in caplog.text


async def test_it_tells_how_late_entries_came_and_that_none_waits(bus: Bus, redis: Redis) -> None:
    """Ids are times in µs."""
    receiver = receiver_of(bus)
    bus.start()
    await write(redis, int((time.time() - 30) * 1e6))
    await until(lambda: receiver.ids, what="the late entry")
    assert 30 <= bus.lag_seconds < 60
    await until(lambda: bus.lag_seconds == 0, what="word that nothing waits")


@pytest.mark.parametrize("name", ["5-1", f"{2**53}-0", "18446744073709551614-1"])
async def test_a_damaged_entry_is_read_once(bus: Bus, redis: Redis, proxy: CuttingProxy, name: str) -> None:
    """Not again and again, as fast as Redis answers."""
    bus.start()
    await write(redis, 1)
    await redis.xadd(KEY, {"e": "two\nlines", "d": "x"}, id=name)
    await until(lambda: bus.damaged == 1, what="the damaged entry")
    reads: list[bytes] = []
    proxy.watch = reads.append
    await redis.xadd(KEY, {"e": "", "x": "y"}, id=f"{name.split('-')[0]}-9")
    await until(lambda: bus.damaged == 2, what="one behind it")
    await until(lambda: reads, what="the next read")
    assert sum(piece.count(b"XREAD") for piece in reads) <= 2


async def test_an_inbox_of_another_type_is_waited_out(bus: Bus, redis: Redis) -> None:
    await redis.set(KEY, "text")
    bus.start()
    await redis.delete(KEY)
    await write(redis, 1)
    await until(lambda: bus.last_id == 1, what="an entry after the trouble")


async def test_closing_ends_the_task_while_it_waits(bus: Bus) -> None:
    bus.start()
    await bus.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "redis bus"]
