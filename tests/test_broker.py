"""One instance from a stream's joining to its end, over the embedded backend and recorded connections.

What several instances do together is in tests/test_backend_cluster.py, what a client sees in tests/test_event_stream.py.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from sse_broker.backend import PAGE_FRAMES, Joined
from sse_broker.errors import Unauthorized
from sse_broker.presence import Device, device_id_of
from sse_broker.target import Target
from tests.house import PAD, House, MakeHouse
from tests.waiting import until

# Opening


async def test_a_stream_begins_with_the_client_s_address_and_goes_on_with_live_frames(house: House) -> None:
    old = await house.send("before it came")
    client = await house.open()
    sent = [await house.send(users=("ann",)), await house.send(devices=PAD), await house.send()]
    await until(lambda: client.ids == sent, what="three frames")
    assert client.events[0].event == "sys_connected"
    assert client.events[0].data == "203.0.113.9:40001"
    assert old not in client.ids


async def test_with_a_last_id_what_was_missed_comes_first(house: House) -> None:
    client = await house.open()
    last = await house.send("seen")
    client.leave()
    missed = [await house.send(**target) for target in ({}, {"users": ("ann",)}, {"devices": PAD})]
    again = await house.open(last_id=last)
    live = await house.send(users=("ann",))
    assert again.ids == [*missed, live]
    assert again.names == ["sys_connected"]


@pytest.mark.parametrize("with_id", [True, False])
async def test_a_frame_that_comes_before_the_join_is_answered_comes_once(house: House, with_id: bool) -> None:
    """It is on the bus when nobody but the registry knows of the stream: as on Redis, where an answer takes its time."""
    last = await house.send("seen")
    join, sent = house.backend.join, []

    async def late_answer(device: Device, last_id: int | None) -> Joined:
        joined = await join(device, last_id)
        sent.append(await house.send(users=("ann",)))
        return joined

    house.backend.join = late_answer  # type: ignore[method-assign]
    client = await house.open(last_id=last if with_id else None)
    sent.append(await house.send())
    await until(lambda: len(client.ids) >= 2, what="both frames")
    assert client.ids == sent


async def test_a_device_that_changes_its_user_sees_nothing_that_came_for_the_former_one_meanwhile(house: House) -> None:
    """While it joins, it is still the former user's, whose frames for the device reach whatever stream it has here."""
    former = await house.open()
    last = await house.send("seen")
    join, turn = house.backend.join, asyncio.Event()

    async def slow(device: Device, last_id: int | None) -> Joined:
        await turn.wait()
        return await join(device, last_id)

    house.backend.join = slow  # type: ignore[method-assign]
    client = house.new("pad", "ben")
    joining = asyncio.create_task(house.broker.join(client.stream, last))
    await until(lambda: house.broker.registry.connection(client.stream.device.connection_id), what="the new stream")
    secret = await house.send("for ann's eyes", devices=PAD)
    turn.set()
    await house.broker.run(client.stream, client.connection, await joining, last)
    mine = await house.send("for ben", devices=PAD)
    assert client.ids == [mine]
    assert former.ids == [last, secret]


@pytest.mark.parametrize("with_id", [True, False])
async def test_frames_between_joining_and_opening_come_once_and_in_order(house: House, with_id: bool) -> None:
    last = await house.send("seen")
    missed = await house.send(users=("ann",))
    client = house.new()
    last_id = last if with_id else None
    joined = await house.broker.join(client.stream, last_id)
    between = [await house.send(**target) for target in ({"users": ("ann",)}, {}, {"devices": PAD})]
    await house.broker.run(client.stream, client.connection, joined, last_id)
    after = await house.send(users=("ann",))
    expected = [*([missed] if with_id else []), *between, after]
    await until(lambda: client.ids == expected, what="all frames")


async def test_a_replay_of_many_pages_is_complete(make_house: MakeHouse) -> None:
    house = await make_house(max_frames=1000)
    last = await house.send("seen")
    missed = await house.send_many(4 * PAGE_FRAMES + 3)
    client = await house.open(last_id=last)
    assert client.ids == missed


async def test_a_loss_is_told_once_before_what_is_left(make_house: MakeHouse) -> None:
    house = await make_house(max_frames=60)
    last = await house.send("seen")
    missed = await house.send_many(100)
    client = await house.open(last_id=last)
    assert client.names == ["sys_connected", "sys_replay_gap"]
    assert json.loads(client.events[1].data or "") == {"requested": last, "oldest": missed[40]}
    assert client.ids == missed[40:]


async def test_a_client_that_is_up_to_date_hears_of_no_loss(make_house: MakeHouse) -> None:
    house = await make_house(max_frames=5)
    sent = await house.send_many(10)
    client = await house.open(last_id=sent[-1])
    assert client.names == ["sys_connected"]
    assert client.ids == []


async def test_an_id_that_was_never_given_is_a_loss_and_live_frames_come_all_the_same(house: House) -> None:
    last = await house.send("seen")
    client = await house.open(last_id=2**53 - 1)
    assert client.names == ["sys_connected", "sys_replay_gap"]
    assert json.loads(client.events[1].data or "")["requested"] == 2**53 - 1
    sent = await house.send(users=("ann",))
    assert client.ids == [sent]
    assert last < sent


async def test_a_refused_join_leaves_nothing_behind(house: House) -> None:
    await house.open("phone", digest="kicked")
    await house.broker.kick(Target(users=("ann",)), "")
    with pytest.raises(Unauthorized):
        await house.open("pad", digest="kicked")
    assert len(house.broker.registry) == 0
    assert house.broker.devices() == []


# A slow reader


async def test_a_replay_goes_as_fast_as_the_client_reads(house: House) -> None:
    last = await house.send("seen")
    missed = await house.send_many(10)
    client = house.new()
    joined = await house.broker.join(client.stream, last)
    client.stream.pause_writing()
    opening = asyncio.create_task(house.broker.run(client.stream, client.connection, joined, last))
    await until(lambda: client.names == ["sys_connected"], what="the opening")
    live = await house.send(users=("ann",))
    assert client.ids == []
    client.stream.resume_writing()
    await opening
    assert client.ids == [*missed, live]


async def test_a_client_that_reads_nothing_of_its_replay_is_given_up(house: House) -> None:
    last = await house.send("seen")
    await house.send_many(10)
    client = house.new()
    joined = await house.broker.join(client.stream, last)
    client.stream.pause_writing()
    await house.broker.run(client.stream, client.connection, joined, last)
    assert client.connection.calls == ["abort"]
    await until(lambda: house.reasons == ["heartbeat_fail"], what="its going")
    assert client.ids == []


async def test_more_than_may_be_held_during_a_replay_comes_from_the_logs(make_house: MakeHouse) -> None:
    house = await make_house(max_frames=1000, max_buffer_bytes=2_000)
    last = await house.send("seen")
    missed = await house.send_many(3)
    client = house.new()
    joined = await house.broker.join(client.stream, last)
    client.stream.pause_writing()
    opening = asyncio.create_task(house.broker.run(client.stream, client.connection, joined, last))
    await until(lambda: client.names == ["sys_connected"], what="the opening")
    meanwhile = await house.send_many(300)
    assert client.stream.overflowed
    client.stream.resume_writing()
    await opening
    live = await house.send(users=("ann",))
    assert client.ids == [*missed, *meanwhile, live]
    assert client.names == ["sys_connected"]


async def test_more_than_may_be_held_before_a_stream_without_id_is_opened_comes_from_the_logs(
    make_house: MakeHouse,
) -> None:
    house = await make_house(max_frames=1000, max_buffer_bytes=2_000)
    client = house.new()
    joined = await house.broker.join(client.stream, None)
    meanwhile = await house.send_many(300)
    await house.broker.run(client.stream, client.connection, joined, None)
    assert client.ids == meanwhile


async def test_a_live_client_that_does_not_read_is_dropped_and_resumes(make_house: MakeHouse) -> None:
    house = await make_house(max_buffer_bytes=2_000)
    slow, other = await house.open("slow"), await house.open("other")
    first = await house.send(users=("ann",))
    slow.connection.buffered = 2_001
    second = await house.send(users=("ann",))
    await until(lambda: house.reasons == ["heartbeat_fail"], what="the end of the slow one")
    assert (slow.ids, other.ids) == ([first], [first, second])
    again = await house.open("slow", last_id=first)
    assert again.ids == [second]


# What a back end asks


async def test_what_is_known_of_an_own_stream_is_fresh(house: House) -> None:
    await house.open()
    sent = await house.send(users=("ann",))
    presence = await house.broker.device(PAD[0])
    assert presence is not None
    assert presence.touch.last_frame_id == sent
    (one,) = await house.broker.user("ann")
    assert one == presence
    assert await house.broker.device(device_id_of("nobody's")) is None
    assert await house.broker.user("nobody") == []


async def test_the_last_frame_of_a_client_that_had_none_here_is_the_one_it_came_with(house: House) -> None:
    last = await house.send("seen")
    await house.send(users=("someone else",))
    for last_id, known in ((last, last), (None, 0)):
        await house.open(last_id=last_id)
        presence = await house.broker.device(PAD[0])
        assert presence is not None
        assert presence.touch.last_frame_id == known


async def test_presence_is_renewed_while_a_stream_is_open(house: House) -> None:
    await house.open()
    presence = await house.backend.device(PAD[0])
    assert presence is not None
    login = presence.touch.time

    async def renewed() -> bool:
        found = await house.backend.device(PAD[0])
        return found is not None and found.touch.time > login

    await until(renewed, what="a renewal")


async def test_a_silent_stream_gets_heartbeats(house: House) -> None:
    client = await house.open()
    await until(lambda: client.connection.writes.count(b":heartbeat\n\n") >= 2, what="two heartbeats")
