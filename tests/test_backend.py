"""The contract of `sse_broker/backend.py`, over every backend: ids, targets and counts, order.

Further parts: replay and gaps (`tests/test_backend_replay.py`), presence (`_presence`), what is known (`_known`), several instances
(`_cluster`), cut connections (`_cuts`), damage (`_damage`). Kinds are chosen in tests/conftest.py (`site`).
"""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker.envelope import FrameEnvelope
from sse_broker.frame import MAX_ID, Frame
from sse_broker.memory import MemoryBackend
from sse_broker.presence import device_id_of
from sse_broker.redis_keys import shard_key
from sse_broker.target import Message, Target
from tests.backends import Site
from tests.waiting import until

TARGETS = {"everyone": {}, "user": {"users": ["u"]}, "device": {"names": ["d"]}}

# Ids


async def test_ids_are_microseconds_and_rise(site: Site) -> None:
    node = await site.node()
    ids = [(await node.send()).id for _ in range(20)]
    assert ids == sorted(set(ids))
    assert abs(ids[0] / 1e6 - time.time()) < 60
    assert ids[-1] < MAX_ID


async def test_each_message_of_a_batch_has_a_greater_id(site: Site) -> None:
    node = await site.node()
    sent = await node.backend.publish([Message(Target(), "", str(number)) for number in range(50)])
    ids = [one.id for one in sent]
    assert ids == sorted(set(ids))
    await site.heard_all()
    assert [(envelope.frame.id, envelope.frame.data) for envelope in node.frames[:50]] == [
        (id_, str(number)) for number, id_ in enumerate(ids)
    ]


async def test_ids_rise_when_the_clock_goes_back(site: Site) -> None:
    node = await site.node()
    before = await node.send()
    await site.clock_goes_back(3600)
    given = await last_given(site)
    after = [(await node.send()).id for _ in range(3)]
    assert [before.id, *after] == sorted({before.id, *after})
    assert [given, *after] == sorted({given, *after})


async def last_given(site: Site) -> int:
    """Return the last id that was given, as the backend keeps it."""
    if site.servers is not None:
        return int(await site.raw.get(shard_key("id")))
    backend = site.nodes[-1].backend
    assert isinstance(backend, MemoryBackend)
    return backend._last_id


async def test_ids_rise_over_a_restart_of_the_broker(site: Site) -> None:
    node = await site.node()
    before = await node.send()
    await node.close()
    again = await site.node()
    assert (await again.send()).id > before.id
    joined = await again.open(again.device("late"))
    assert joined.id > before.id


@pytest.mark.core
async def test_ids_of_concurrent_senders_are_all_different_and_rise_for_each(site: Site) -> None:
    node = await site.node()

    async def sender() -> list[int]:
        return [(await node.send()).id for _ in range(20)]

    found = await asyncio.gather(*(sender() for _ in range(5)))
    assert all(ids == sorted(ids) for ids in found)
    assert len({id_ for ids in found for id_ in ids}) == 100


# Targets and counts


@pytest.mark.core
async def test_a_frame_for_a_user_reaches_all_devices_of_the_user_and_no_other(site: Site) -> None:
    node = await site.node()
    one, two = await node.join("one", "ann"), await node.join("two", "ann")
    other = await node.join("three", "ben")
    sent = await node.send("hello", users=["ann"], event="news")
    await site.heard_all()
    assert sent.count == 2
    (envelope,) = [envelope for envelope in node.frames if envelope.frame.id == sent.id]
    assert envelope.frame == Frame(sent.id, "news", "hello")
    assert sorted(envelope.device_ids or ()) == sorted([one.device_id, two.device_id])
    assert sent.id not in [frame.id for frame in node.heard(other)]


async def test_a_frame_for_a_device_reaches_that_device(site: Site) -> None:
    node = await site.node()
    one = await node.join("one", "ann")
    await node.join("two", "ann")
    sent = await node.send("hello", names=["one"])
    await site.heard_all()
    assert sent.count == 1
    assert FrameEnvelope(Frame(sent.id, "", "hello"), (one.device_id,)) in node.frames


@pytest.mark.core
async def test_a_broadcast_is_for_everyone(site: Site) -> None:
    node = await site.node()
    for name in ("one", "two", "three"):
        await node.join(name, f"user of {name}")
    sent = await node.send("hello")
    await site.heard_all()
    assert sent.count == 3
    assert FrameEnvelope(Frame(sent.id, "", "hello"), None) in node.frames


async def test_a_device_that_is_named_in_several_ways_counts_and_hears_once(site: Site) -> None:
    node = await site.node()
    one, two = await node.join("one", "ann"), await node.join("two", "ben")
    sent = await node.send("hello", users=["ann", "ben", "ann"], names=["one", "two", "one", "unknown"])
    await site.heard_all()
    assert sent.count == 2
    (envelope,) = [envelope for envelope in node.frames if envelope.frame.id == sent.id]
    assert sorted(envelope.device_ids or ()) == sorted([one.device_id, two.device_id])


@pytest.mark.parametrize(
    "target", [{"users": ["nobody"]}, {"names": ["nothing"]}, {"users": ["x"], "names": ["y"]}, {}]
)
async def test_a_frame_for_nobody_who_is_online_counts_0(site: Site, target: dict[str, list[str]]) -> None:
    node = await site.node()
    sent = await node.send("hello", **target)
    assert sent.count == 0
    assert sent.id > 0


async def test_a_device_that_left_is_counted_no_more(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    node.leave(device)
    for target in ({"users": ["ann"]}, {"names": ["one"]}, {}):
        assert (await node.send("hello", **target)).count == 0
    await site.heard_all()
    assert [envelope for envelope in node.frames if envelope.device_ids is not None] == []


async def test_messages_of_one_batch_have_each_its_own_target_and_count(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    await node.join("two", "ben")
    sent = await node.backend.publish(
        [
            Message(Target(), "", "all"),
            Message(Target(users=("ann",)), "", "ann"),
            Message(Target(users=("nobody",)), "", "nobody"),
            Message(Target(users=("ann",), devices=(device_id_of("two"),)), "", "both"),
        ]
    )
    assert [one.count for one in sent] == [2, 1, 0, 2]


async def test_no_messages_are_no_work(site: Site) -> None:
    node = await site.node()
    assert await node.backend.publish([]) == []


@pytest.mark.parametrize(
    "text",
    ["", "two\nlines\r\nand\rmore\0", "\u2028\ufeff\U0001f600", "e 5 d", '{"a": "\\u0000"}', "x" * 2**20],
    ids=["empty", "lines", "unusual", "fields", "json", "a megabyte"],
)
async def test_data_arrives_as_it_was_sent_by_bus_and_by_replay(site: Site, text: str) -> None:
    node = await site.node()
    device = await node.join()
    start = (await node.send("start")).id
    sent = await node.send(text, users=["u"], event="naïve event")
    await until(lambda: any(frame.id == sent.id for frame in node.heard(device)), what="the frame")
    frames, _ = await node.replay(device, start)
    for found in (node.heard(device)[-1], frames[-1]):
        assert (found.event, found.data) == ("naïve event", text)


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "{braces}",
        "a:b",
        "*",
        "line\nbreak",
        "nul\0",
        "%s",
        "é☃\U0001f600",
        "'quote\"",
        "all",
        "x" * 256,
        " ",
    ],
)
async def test_any_name_of_user_and_device_is_just_a_name(site: Site, name: str) -> None:
    node = await site.node()
    device = await node.join(name, name)
    bystander = await node.join("bystander", "bystander")
    assert (await node.send("by user", users=[name])).count == 1
    assert (await node.send("by device", names=[name])).count == 1
    await site.heard_all()
    assert [frame.data for frame in node.heard(device)][:2] == ["by user", "by device"]
    assert "by user" not in [frame.data for frame in node.heard(bystander)]
    assert [message["uid"] for message in await site.messages() if message["device_name"] == name] == [name, name]
    (presence,) = await node.backend.user(name)
    assert presence.device == device


# Order


@pytest.mark.core
async def test_the_bus_has_every_frame_once_and_ids_only_rise(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")

    async def sender(number: int) -> list[int]:
        ids = []
        for at in range(15):
            target = ({"users": ["ann"]}, {"names": ["one"]}, {})[(number + at) % 3]
            ids.append((await node.send(f"{number} {at}", **target)).id)
        return ids

    sent = await asyncio.gather(*(sender(number) for number in range(4)))
    await site.heard_all()
    ids = [envelope.frame.id for envelope in node.frames]
    assert ids[:-1] == sorted(id_ for some in sent for id_ in some)


@pytest.mark.core
async def test_an_end_stands_on_the_bus_between_the_frames_before_and_after_it(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    before = await node.send("before", names=["one"])
    await node.kick("bye", names=["one"])
    await node.join("one", "ann")
    after = await node.send("after", names=["one"])
    await until(lambda: len(node.envelopes) == 3, what="frame, end, frame")
    assert [getattr(envelope, "frame", None) and envelope.frame.id for envelope in node.envelopes] == [
        before.id,
        None,
        after.id,
    ]
