"""One instance from a stream's joining to its end, over the embedded backend and recorded connections.

What several instances do together is in tests/test_backend_cluster.py, what a client sees in tests/test_event_stream.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sse_broker.backend import PAGE_FRAMES, Joined, Page
from sse_broker.broker import Broker
from sse_broker.errors import Unauthorized, Unavailable
from sse_broker.memory import MemoryBackend
from sse_broker.presence import Device, PresenceMessage, device_id_of
from sse_broker.stream import Stream
from sse_broker.target import Message, Target
from sse_broker.tokens import Claims
from tests.event_parser import Event, EventParser
from tests.recording import RecordingTransport
from tests.waiting import until

HEARTBEAT = 0.2


class Connection(RecordingTransport):
    """A transport that says when it is gone, as a loop's does; `stalled` while its client takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Stream | None = None
        self.stalled = False

    def close(self) -> None:
        """Close once the client has read, so not while it is stalled."""
        super().close()
        if not self.stalled:
            self._lost()

    def abort(self) -> None:
        """Close now."""
        super().abort()
        self._lost()

    def _lost(self) -> None:
        assert self.stream is not None
        asyncio.get_running_loop().call_soon(self.stream.connection_lost, None)


class Client:
    """A client of the broker: its stream and what it was sent."""

    def __init__(self, stream: Stream, connection: Connection) -> None:
        self.stream = stream
        self.connection = connection
        connection.stream = stream

    @property
    def events(self) -> list[Event]:
        """Everything that was written, as a client reads it."""
        return EventParser().feed(b"".join(self.connection.writes))

    @property
    def ids(self) -> list[int]:
        """The ids of the frames, in order."""
        return [event.id for event in self.events if event.id is not None]

    @property
    def names(self) -> list[str]:
        """The names of the events without an id."""
        return [event.event for event in self.events if event.id is None]

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self.stream.connection_lost(None)


class House:
    """A broker that runs, and the presence messages that it caused."""

    def __init__(self, *, max_frames: int = 100, max_buffer_bytes: int = 100_000, max_streams: int = 0) -> None:
        self.backend = MemoryBackend(max_frames=max_frames, expire_seconds=3600)
        self.heard: list[PresenceMessage] = []
        self.backend.listeners.append(self.heard.append)
        self.broker = Broker(
            self.backend,
            address="127.0.0.1:8080",
            heartbeat_seconds=HEARTBEAT,
            max_buffer_bytes=max_buffer_bytes,
            max_streams=max_streams,
        )

    def new(self, name: str = "pad", uid: str = "ann", digest: str = "") -> Client:
        """Return a client whose stream has not joined yet."""
        claims = Claims(uid, None, time.time() + 600, digest)
        return Client(self.broker.new_stream(claims, name, "203.0.113.9:40001", chunked=False), Connection())

    async def open(self, name: str = "pad", uid: str = "ann", last_id: int | None = None, digest: str = "") -> Client:
        """Open a stream as `/events` does."""
        client = self.new(name, uid, digest)
        joined = await self.broker.join(client.stream, last_id)
        await self.broker.run(client.stream, client.connection, joined, last_id)
        return client

    async def send(self, data: str = "x", **target: tuple[str, ...]) -> int:
        """Send to `users` and `devices` (ids), or to everyone; return the frame's id."""
        (sent,) = await self.broker.send([Message(Target(**target), "", data)])
        return sent.id

    async def send_many(self, count: int) -> list[int]:
        """Send frames to ann, and return their ids."""
        return [one.id for one in await self.broker.send([Message(Target(users=("ann",)), "", "x")] * count)]

    @property
    def reasons(self) -> list[str]:
        """Why devices went, in order."""
        return [message.reason for message in self.heard if message.channel == "sse_topic_device_offline"]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Any]]:
    """A function that starts a house; each is drained and closed at the end."""
    houses: list[House] = []

    async def start(**options: int) -> House:
        house = House(**options)
        houses.append(house)
        await house.broker.start()
        return house

    yield start
    for house in houses:
        await house.broker.drain(0)
        await house.broker.close()


@pytest.fixture
async def house(make: Callable[..., Any]) -> House:
    """A house with the usual limits."""
    started: House = await make()
    return started


PAD = (device_id_of("pad"),)

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


async def test_a_replay_of_many_pages_is_complete(make: Callable[..., Any]) -> None:
    house = await make(max_frames=1000)
    last = await house.send("seen")
    missed = await house.send_many(4 * PAGE_FRAMES + 3)
    client = await house.open(last_id=last)
    assert client.ids == missed


async def test_a_loss_is_told_once_before_what_is_left(make: Callable[..., Any]) -> None:
    house = await make(max_frames=60)
    last = await house.send("seen")
    missed = await house.send_many(100)
    client = await house.open(last_id=last)
    assert client.names == ["sys_connected", "sys_replay_gap"]
    assert json.loads(client.events[1].data or "") == {"requested": last, "oldest": missed[40]}
    assert client.ids == missed[40:]


async def test_a_client_that_is_up_to_date_hears_of_no_loss(make: Callable[..., Any]) -> None:
    house = await make(max_frames=5)
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


async def test_more_than_may_be_held_during_a_replay_comes_from_the_logs(make: Callable[..., Any]) -> None:
    house = await make(max_frames=1000, max_buffer_bytes=2_000)
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
    make: Callable[..., Any],
) -> None:
    house = await make(max_frames=1000, max_buffer_bytes=2_000)
    client = house.new()
    joined = await house.broker.join(client.stream, None)
    meanwhile = await house.send_many(300)
    await house.broker.run(client.stream, client.connection, joined, None)
    assert client.ids == meanwhile


async def test_a_live_client_that_does_not_read_is_dropped_and_resumes(make: Callable[..., Any]) -> None:
    house = await make(max_buffer_bytes=2_000)
    slow, other = await house.open("slow"), await house.open("other")
    first = await house.send(users=("ann",))
    slow.connection.buffered = 2_001
    second = await house.send(users=("ann",))
    await until(lambda: house.reasons == ["heartbeat_fail"], what="the end of the slow one")
    assert (slow.ids, other.ids) == ([first], [first, second])
    again = await house.open("slow", last_id=first)
    assert again.ids == [second]


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


async def test_a_full_instance_takes_no_more(make: Callable[..., Any]) -> None:
    house = await make(max_streams=2)
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


# Catching up


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
