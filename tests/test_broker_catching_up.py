"""Streams that missed something on the bus, and read it from the logs."""

from __future__ import annotations

from typing import Any

import pytest

from sse_broker.backend import Page
from sse_broker.errors import Unavailable
from tests.house import House
from tests.waiting import until


async def test_what_is_still_to_be_written_is_not_lost_to_streams_that_catch_up(house: House) -> None:
    """The broadcast waits for its task when all are told to read what follows it from the logs."""
    clients = [await house.open(f"d{number}", f"u{number}") for number in range(3)]
    sent = [await house.send("waits")]
    house.broker.missed(sent[0])
    sent.append(await house.send("later"))
    for client in clients:
        await until(lambda client=client: len(client.ids) >= 2, what="both broadcasts")
        assert client.ids == sent


async def test_streams_that_missed_something_catch_up_from_the_logs(house: House) -> None:
    """As an instance does that fell behind its bus: the frames are in the logs and were not delivered."""
    client, idle = await house.open(), await house.open("phone", "ben")
    first = await house.send(users=("ann",))
    house.backend._receiver, receiver = None, house.backend._receiver
    lost = await house.send_many(60)
    house.backend._receiver = receiver
    house.broker.missed(first)
    live = await house.send(users=("ann",))
    await until(lambda: client.ids == [first, *lost, live], what="everything, once and in order")
    await until(lambda: client.stream.live and idle.stream.live, what="both live again")
    assert client.names == idle.names == ["sys_connected"]


async def test_catching_up_outlasts_an_outage_and_a_second_loss(house: House) -> None:
    client = await house.open()
    first = await house.send(users=("ann",))
    house.backend._receiver, receiver = None, house.backend._receiver
    lost = await house.send_many(5)
    replay, fails = house.backend.replay, [3]

    async def failing(device: Any, after_id: int) -> Page:
        if fails[0]:
            fails[0] -= 1
            if not fails[0]:
                lost.extend(await house.send_many(5))
                house.broker.missed(first)
            raise Unavailable("Redis is out of reach")
        return await replay(device, after_id)

    house.backend.replay = failing  # type: ignore[method-assign]
    house.broker.missed(first)
    await until(lambda: client.stream.live, what="the stream live again")
    house.backend._receiver = receiver
    live = await house.send(users=("ann",))
    assert client.ids == [first, *lost, live]


async def test_a_stream_that_ends_while_it_catches_up_keeps_no_other_waiting(house: House) -> None:
    clients = [await house.open(f"d{number}") for number in range(50)]
    first = await house.send(users=("ann",))
    house.backend._receiver, receiver = None, house.backend._receiver
    lost = await house.send_many(3)
    house.backend._receiver = receiver
    for client in clients[::2]:
        client.stream.pause_writing()
    house.broker.missed(first)
    await until(lambda: all(client.ids == [first, *lost] for client in clients[1::2]), what="those that read")
    await until(lambda: all(client.stream.ended for client in clients[::2]), what="the end of those that do not")


async def test_a_stream_that_can_not_catch_up_is_ended_whatever_the_error(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Holding for ever it would get nothing any more, and its client would not know."""
    clients = [await house.open(f"d{number}") for number in range(40)]
    first = await house.send(users=("ann",))
    replay = house.backend.replay

    async def failing(device: Any, after_id: int) -> Page:
        if device.device_name != "d39":
            raise LookupError("unforeseen")
        return await replay(device, after_id)

    house.backend.replay = failing  # type: ignore[method-assign]
    house.broker.missed(first)
    await until(lambda: clients[-1].stream.live, what="the one that can go on")
    await until(lambda: house.reasons == ["disconnect"] * 39, what="the end of the others")
    assert len([record for record in caplog.records if record.exc_info]) == 1, "told once"


async def test_a_frame_that_is_held_and_comes_by_the_replay_too_is_counted_once(house: House) -> None:
    client = await house.open()
    first = await house.send(users=("ann",))
    replay, during = house.backend.replay, []

    async def slow(device: Any, after_id: int) -> Page:
        during.extend(await house.send_many(5))
        page = await replay(device, after_id)
        during.extend(await house.send_many(5))
        return page

    house.backend.replay = slow  # type: ignore[method-assign]
    house.broker.missed(first)
    await until(lambda: client.stream.live, what="the stream live again")
    assert client.ids == [first, *during]
    traffic = house.broker.traffic
    assert traffic.deliveries + traffic.replayed_frames == len(client.ids)
