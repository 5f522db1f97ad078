"""How streams end, one by one and with their instance."""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker.errors import Unavailable
from sse_broker.target import Target
from tests.house import PAD, House, MakeHouse
from tests.waiting import until

# Ends


async def test_a_newer_stream_of_a_device_ends_the_older(house: House) -> None:
    old = await house.open()
    sent = await house.send()
    new = await house.open()
    assert old.names == ["sys_connected", "sys_extrude_offline"]
    assert old.ids == [sent], "with what was sent before it"
    assert old.events[-1].data == "203.0.113.9:40001"
    later = await house.send(users=("ann",))
    assert (old.ids, new.ids) == ([sent], [later])
    await until(lambda: old.stream.gone, what="the close")
    assert house.reasons == ["extrude_offline"], "and its end is not another going"
    assert house.broker.registry.device(PAD[0]) is new.stream


async def test_a_kick_ends_streams_with_its_data(house: House) -> None:
    client, other = await house.open(), await house.open("phone", "ben")
    assert await house.broker.kick(Target(users=("ann",)), "be\ngone") == 1
    assert client.names == ["sys_connected", "sys_kick_offline"]
    assert client.events[-1].data == "be\ngone"
    await until(lambda: client.stream.gone, what="the close")
    assert house.reasons == ["kick_offline"]
    assert other.names == ["sys_connected"]


async def test_a_stream_that_was_extruded_before_it_was_opened_says_so(house: House) -> None:
    client = house.new()
    joined = await house.broker.join(client.stream, None)
    newer = await house.open()
    await house.broker.run(client.stream, client.connection, joined, None)
    assert client.names == ["sys_connected", "sys_extrude_offline"]
    await until(lambda: client.stream.gone, what="the close")
    assert house.broker.registry.device(PAD[0]) is newer.stream
    assert (await house.backend.counts()) == (1, 1)


async def test_a_client_that_leaves_is_gone_everywhere(house: House) -> None:
    client = await house.open()
    client.leave()
    assert house.reasons == ["disconnect"]
    assert len(house.broker.registry) == 0
    assert await house.broker.device(PAD[0]) is None


async def test_a_join_that_nobody_waits_for_any_more_is_taken_back(house: House) -> None:
    """The client left while its presence was joined."""
    client = house.new()
    await house.broker.join(client.stream, None)
    house.broker.leave(client.stream)
    house.broker.leave(client.stream)
    assert house.reasons == ["disconnect"]
    assert len(house.broker.registry) == 0


# The end of the instance


async def test_a_draining_instance_ends_every_stream_with_a_word_and_takes_no_new_one(house: House) -> None:
    clients = [await house.open(f"d{number}", f"u{number}") for number in range(300)]
    await house.broker.drain(5)
    for client in clients:
        assert client.names == ["sys_connected", "sys_instance_close"]
        assert client.events[-1].data == "127.0.0.1:8080"
        assert 1000 <= (client.events[-1].retry or 0) <= 5000
        assert client.stream.gone
    assert set(house.reasons) == {"instance_close"}
    assert len(house.reasons) == 300
    assert {message.payload for message in house.heard if message.reason == "instance_close"} == {"127.0.0.1:8080"}
    with pytest.raises(Unavailable) as caught:
        house.new()
    assert caught.value.retry_after_seconds > 0


async def test_a_broadcast_that_was_accepted_comes_before_the_end(house: House) -> None:
    """It is written by a task, which has not had its turn yet."""
    client = await house.open()
    sent = await house.send(data="last words")
    await house.broker.drain(1)
    assert [(event.event, event.id) for event in client.events[1:]] == [("message", sent), ("sys_instance_close", None)]


async def test_a_client_that_does_not_take_the_end_is_cut_off_in_time(house: House) -> None:
    stalled, other = await house.open("stalled"), await house.open("other")
    stalled.connection.stalled = True
    began = time.monotonic()
    await house.broker.drain(0.2)
    assert time.monotonic() - began < 2
    assert stalled.connection.calls == ["close", "abort"]
    assert other.connection.calls == ["close"]


async def test_a_stream_that_is_joining_while_the_instance_drains_is_refused(house: House) -> None:
    client = house.new()
    await house.broker.drain(0)
    with pytest.raises(Unavailable):
        await house.broker.join(client.stream, None)
    assert await house.backend.counts() == (0, 0)


async def test_a_full_instance_takes_no_more(make_house: MakeHouse) -> None:
    house = await make_house(max_streams=2)
    first = await house.open("one")
    await house.open("two")
    with pytest.raises(Unavailable, match="as many streams"):
        house.new("three")
    first.leave()
    await house.open("three")


async def test_after_the_close_nothing_runs() -> None:
    before = asyncio.all_tasks()
    house = House()
    await house.broker.start()
    await house.open()
    house.broker.missed(0)
    await house.broker.drain(1)
    await house.broker.close()
    assert asyncio.all_tasks() == before
