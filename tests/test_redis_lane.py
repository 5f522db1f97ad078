"""Calls of scripts over one connection: in order, within seconds, and sent again when nobody knows what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from sse_broker.config import RedisConfig
from sse_broker.errors import Unavailable
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES
from sse_broker.redis_keys import shard_key
from sse_broker.redis_lane import BATCH_CALLS, CALL_SECONDS, PATIENCE_SECONDS, Lane
from sse_broker.redis_member_scripts import OVERVIEW
from sse_broker.redis_script import Script
from sse_broker.redis_scripts import ALL
from tests.cutting_proxy import CuttingProxy
from tests.redis_servers import RedisServer
from tests.waiting import until

# Of the test's own, so that what was carried out can be seen: repeats too, for these have no nonce.
APPEND = Script("append", "redis.call('RPUSH', '{sse}:test', ARGV[1]) return ARGV[1]")
SLOW = Script("slow", "for i = 1, 1000000 do end redis.call('RPUSH', '{sse}:test', ARGV[1]) return ARGV[1]")
BAD = Script("bad", "return redis.call('NO SUCH COMMAND')")


class Line(Lane):
    """A lane that counts its connections."""

    def __init__(self, client: RedisClient) -> None:
        self.connected = 0
        super().__init__(client, self._count)

    def _count(self) -> None:
        self.connected += 1


@pytest.fixture
async def lane(proxy: CuttingProxy) -> AsyncIterator[Line]:
    """A lane that runs; closed at the end."""
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    lane = Line(client)
    await lane.start()
    yield lane
    await lane.close()


async def carried_out(redis_server: RedisServer) -> list[str]:
    return list(await redis_server.ask("LRANGE", "{sse}:test", 0, -1))


async def test_a_call_has_its_answer(lane: Line) -> None:
    assert await lane.call(APPEND, "a") == b"a"
    assert await lane.call(OVERVIEW) == [0, 0, []]


async def test_calls_are_carried_out_in_the_order_in_which_they_were_made(
    lane: Line, redis_server: RedisServer, patience: None
) -> None:
    numbers = [str(at) for at in range(3 * BATCH_CALLS)]
    calls = []
    for at, number in enumerate(numbers):
        if at % 3:
            calls.append(asyncio.create_task(lane.call(APPEND, number)))
            await asyncio.sleep(0)
        else:
            lane.post(APPEND, number)
    answers = await asyncio.gather(*calls)
    await lane.flush(30)
    assert await carried_out(redis_server) == numbers
    assert answers == [number.encode() for at, number in enumerate(numbers) if at % 3]


async def test_what_goes_ahead_passes_what_was_not_sent_when_much_waits(lane: Line, redis_server: RedisServer) -> None:
    for number in range(BATCH_CALLS):
        lane.post(APPEND, str(number))
    calls = [lane.begin(APPEND, lambda: ["in its place"], ahead=True)]
    for number in range(BATCH_CALLS):
        lane.post(APPEND, str(BATCH_CALLS + number))
    calls += [lane.begin(APPEND, lambda at=at: [f"ahead {at}"], ahead=True) for at in range(3)]  # type: ignore[misc]
    await asyncio.gather(*calls)
    await lane.flush(5)
    found = await carried_out(redis_server)
    assert found[:3] == ["ahead 0", "ahead 1", "ahead 2"]
    numbers = [str(number) for number in range(2 * BATCH_CALLS)]
    assert found[3:] == [*numbers[:BATCH_CALLS], "in its place", *numbers[BATCH_CALLS:]]


async def test_what_was_posted_keeps_no_call_from_being_taken(
    lane: Line, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a bound on what is asked, and none on what must be done; the one must not use up the other."""
    monkeypatch.setattr("sse_broker.redis_lane.MAX_WAITING", 10)
    for number in range(50):
        lane.post(APPEND, str(number))
    calls = [lane.begin(APPEND, lambda: ["asked"]) for _ in range(11)]
    with pytest.raises(Unavailable, match="more is asked of Redis than it does"):
        lane.begin(APPEND, lambda: ["one too many"])
    await asyncio.gather(*calls)
    await lane.flush(5)
    assert len(await carried_out(redis_server)) == 61
    await asyncio.gather(*(lane.call(APPEND, "later") for _ in range(11)))


async def test_what_goes_ahead_stays_behind_what_was_sent(
    lane: Line, redis_server: RedisServer, proxy: CuttingProxy
) -> None:
    """What was sent and not answered is sent again first, when the connection is cut."""
    for number in range(3 * BATCH_CALLS):
        lane.post(APPEND, str(number))
    await until(lambda: any(one.sent is not None for one in lane._waiting), what="a batch is sent", pause_seconds=0)
    sent = len([one for one in lane._waiting if one.sent is not None])
    ahead = lane.begin(APPEND, lambda: ["ahead"], ahead=True)
    assert lane._waiting[sent].answer is ahead
    await ahead
    await lane.flush(5)
    assert (await carried_out(redis_server)).index("ahead") == sent


async def test_a_call_waits_longer_than_its_time_while_others_are_answered(
    lane: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lane.call(SLOW, "the scripts are known now, and Redis answers")
    monkeypatch.setattr("sse_broker.redis_lane.CALL_SECONDS", 0.02)
    for number in range(4 * BATCH_CALLS):
        lane.post(SLOW if number % 32 == 0 else APPEND, str(number))
    begun = time.monotonic()
    assert await lane.call(APPEND, "last") == b"last"
    assert time.monotonic() - begun > 0.04


async def test_what_waits_shares_a_round_trip(lane: Line, proxy: CuttingProxy) -> None:
    await lane.call(APPEND, "the script is known now")
    pieces: list[int] = []
    proxy.watch = lambda data: pieces.append(data.count(b"EVALSHA"))
    await asyncio.gather(*(lane.call(APPEND, str(at)) for at in range(BATCH_CALLS)))
    assert sum(pieces) == BATCH_CALLS
    assert len(pieces) <= 4


async def test_the_scripts_are_known_from_the_start(lane: Line, redis_server: RedisServer) -> None:
    assert await redis_server.ask("SCRIPT", "EXISTS", *(script.sha for script in ALL)) == [1] * len(ALL)


async def test_scripts_that_were_flushed_are_loaded_again_and_the_order_stays(
    lane: Line, redis_server: RedisServer
) -> None:
    """One is known and another is not: the one behind must not be carried out ahead."""
    await lane.call(APPEND, "0")
    lane.post(SLOW, "1")
    second = asyncio.create_task(lane.call(APPEND, "2"))
    await second
    found = await carried_out(redis_server)
    assert found[-2:] == ["1", "2"], "whatever came before"
    await redis_server.ask("SCRIPT", "FLUSH")
    assert await lane.call(APPEND, "3") == b"3"
    assert await lane.call(OVERVIEW)


async def test_a_call_that_redis_refuses_fails_alone(lane: Line, caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.create_task(lane.call(APPEND, "before"))
    bad = asyncio.create_task(lane.call(BAD))
    after = asyncio.create_task(lane.call(APPEND, "after"))
    with pytest.raises(Unavailable, match="refused"):
        await bad
    assert (await before, await after) == (b"before", b"after")
    assert "Redis refused bad" in caplog.text


# Cuts


async def test_a_call_that_waits_when_the_connection_is_cut_has_its_answer_from_the_next(
    lane: Line, proxy: CuttingProxy
) -> None:
    await proxy.cut_connections()
    assert await lane.call(APPEND, "a") == b"a"
    assert lane.connected == 2
    assert lane.reconnects == 1


async def test_a_call_whose_answer_was_lost_is_sent_again_ahead_of_later_ones(
    lane: Line, proxy: CuttingProxy, redis_server: RedisServer
) -> None:
    await lane.call(APPEND, "0")
    proxy.deaf = True
    first = asyncio.create_task(lane.call(APPEND, "1"))
    await until(lambda: _length(redis_server, 2), what="the call whose answer nobody hears")
    second = asyncio.create_task(lane.call(APPEND, "2"))
    await asyncio.sleep(0)
    await proxy.cut_connections()
    proxy.deaf = False
    assert (await first, await second) == (b"1", b"2")
    assert await carried_out(redis_server) == ["0", "1", "1", "2"]


async def test_nothing_that_was_answered_is_sent_again(
    lane: Line, proxy: CuttingProxy, redis_server: RedisServer
) -> None:
    for at in range(10):
        assert await lane.call(APPEND, str(at)) == str(at).encode()
        await proxy.cut_connections()
    assert await carried_out(redis_server) == [str(at) for at in range(10)]


async def test_a_call_waits_a_moment_for_redis(lane: Line, proxy: CuttingProxy) -> None:
    await proxy.cut()
    call = asyncio.create_task(lane.call(APPEND, "a"))
    await until(lambda: lane._away_since is not None, what="the loss noticed")
    await proxy.mend()
    assert await call == b"a"


async def test_a_call_fails_within_seconds_and_at_once_when_redis_has_been_away(
    lane: Line, proxy: CuttingProxy
) -> None:
    await proxy.cut()
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(lane.call(APPEND, "a"), 10)
    assert time.monotonic() - began < 2 * CALL_SECONDS + 2
    assert caught.value.status == 503
    assert caught.value.retry_after_seconds > 0
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(Unavailable):
            await lane.call(APPEND, "a")
    assert time.monotonic() - began < 0.5, "at once"
    await proxy.mend()

    async def works() -> bool:
        try:
            return bool(await lane.call(APPEND, "back") == b"back")
        except Unavailable:
            return False

    await until(works, what="an answer after the trouble")


async def test_a_frozen_redis_fails_a_call_within_seconds(lane: Line, redis_server: RedisServer) -> None:
    redis_server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(lane.call(APPEND, "a"), 10)
        assert time.monotonic() - began < 2 * CALL_SECONDS + 2
    finally:
        redis_server.thaw()
    lane.post(APPEND, "b")
    await lane.flush(10)
    assert (await carried_out(redis_server))[-1] == "b"


async def test_what_was_posted_is_carried_out_however_long_it_takes_and_in_order(
    lane: Line, proxy: CuttingProxy, redis_server: RedisServer
) -> None:
    await proxy.cut()
    for at in range(5):
        lane.post(APPEND, str(at))
    with pytest.raises(Unavailable):
        await lane.call(APPEND, "given up")
    await until(
        lambda: lane._away_since is not None and time.monotonic() - lane._away_since > PATIENCE_SECONDS,
        what="more than a moment",
    )
    lane.post(APPEND, "5")
    await proxy.mend()
    await lane.flush(10)
    assert await carried_out(redis_server) == [str(at) for at in range(6)]


async def test_a_call_that_nobody_waits_for_any_more_is_not_sent_after_a_cut(
    lane: Line, proxy: CuttingProxy, redis_server: RedisServer
) -> None:
    await proxy.cut()
    call = asyncio.create_task(lane.call(APPEND, "given up"))
    await asyncio.sleep(0)
    call.cancel()
    lane.post(APPEND, "wanted")
    await asyncio.gather(call, return_exceptions=True)
    await proxy.mend()
    await lane.flush(10)
    assert await carried_out(redis_server) == ["wanted"]


async def test_a_flush_that_takes_too_long_says_how_much_is_left(
    lane: Line, proxy: CuttingProxy, caplog: pytest.LogCaptureFixture
) -> None:
    await proxy.cut()
    lane.post(APPEND, "a")
    lane.post(APPEND, "b")
    await lane.flush(0.05)
    assert "2 changes did not reach Redis" in caplog.text


# The end


async def test_closing_fails_what_waits(proxy: CuttingProxy) -> None:
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    lane = Lane(client)
    await lane.start()
    await proxy.cut()
    call = asyncio.create_task(lane.call(APPEND, "a"))
    await asyncio.sleep(0)
    await lane.close()
    with pytest.raises(Unavailable, match="closing"):
        await call
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "redis lane"]


async def test_a_call_after_the_end_fails_at_once(proxy: CuttingProxy) -> None:
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    lane = Lane(client)
    await lane.start()
    await lane.close()
    with pytest.raises(Unavailable, match="closing"):
        await asyncio.wait_for(lane.call(APPEND, "a"), 2)


async def test_a_start_without_redis_fails(proxy: CuttingProxy) -> None:
    await proxy.cut()
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    with pytest.raises(FAILURES):
        await Lane(client).start()


def test_every_script_is_given_the_shard_by_one_key() -> None:
    """In a Redis Cluster a script may touch the slot of its keys only."""
    assert shard_key("id") == "{sse}:id"
    assert len({script.sha for script in ALL}) == len({script.name for script in ALL}) == len(ALL)


async def _length(server: RedisServer, wanted: int) -> bool:
    return len(await carried_out(server)) >= wanted
