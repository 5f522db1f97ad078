"""The contract of `sse_broker/backend.py`, over every backend: ids, targets and counts, order, replay, gaps.

Further parts: presence (`tests/test_backend_presence.py`), what is known (`_known`), several instances (`_cluster`), damage
(`_damage`). Kinds are chosen in tests/conftest.py (`site`).
"""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker.backend import PAGE_FRAMES
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


# Replay


@pytest.mark.core
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
async def test_what_was_sent_while_a_device_was_away_is_replayed(site: Site, target: dict[str, list[str]]) -> None:
    node = await site.node()
    device = await node.join()
    last = (await node.send("seen", **target)).id
    node.leave(device)
    missed = [await node.send(f"missed {number}", **target, event="e") for number in range(3)]
    joined = await node.open(node.device(), last)
    assert joined.page.frames == tuple(Frame(one.id, "e", f"missed {at}") for at, one in enumerate(missed))
    assert not joined.page.gap
    assert not joined.page.more


async def test_a_join_without_an_id_replays_nothing(site: Site) -> None:
    node = await site.node()
    sent = await node.send("old", names=["d"])
    joined = await node.open(node.device())
    assert joined.page.frames == ()
    assert not joined.page.gap
    assert joined.id >= sent.id


@pytest.mark.core
async def test_the_three_logs_are_replayed_as_one_in_order_and_each_frame_once(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    sent = []
    for number in range(12):
        target = [
            {"users": ["u"]},
            {"names": ["d"]},
            {},
            {"users": ["u", "someone else"], "names": ["d", "something else"]},
        ][number % 4]
        sent.append((await node.send(str(number), **target)).id)
        await node.send("not for us", users=["someone else"], names=["something else"])
    joined = await node.open(node.device(), start)
    assert [(frame.id, frame.data) for frame in joined.page.frames] == [(id_, str(at)) for at, id_ in enumerate(sent)]


@pytest.mark.core
async def test_more_than_a_page_comes_page_by_page(site: Site) -> None:
    node = await site.node()
    device = await node.join()
    start = (await node.send("start")).id
    sent = []
    for number in range(3 * PAGE_FRAMES + 1):
        target = TARGETS[("everyone", "user", "device", "device")[number % 4]]
        sent.append((await node.send(str(number), **target)).id)
    again = node.device()
    joined = await node.open(again, start)
    assert joined.page.more
    assert 0 < len(joined.page.frames) < len(sent)
    frames, gap = await node.replay(device, start, joined.page)
    assert [frame.id for frame in frames] == sent
    assert not gap


@pytest.mark.parametrize("count", [PAGE_FRAMES - 1, PAGE_FRAMES, PAGE_FRAMES + 1])
async def test_a_replay_of_about_a_page_ends(site: Site, count: int) -> None:
    node = await site.node()
    device = await node.join()
    start = (await node.send("start")).id
    sent = [one.id for one in await node.backend.publish([Message(Target(users=("u",)), "", "x")] * count)]
    frames, _ = await node.replay(device, start)
    assert [frame.id for frame in frames] == sent


async def test_a_replay_has_greater_ids_only(site: Site) -> None:
    node = await site.node()
    device = await node.join()
    sent = [(await node.send(str(number))).id for number in range(4)]
    for at, id_ in enumerate(sent):
        frames, gap = await node.replay(device, id_)
        assert [frame.id for frame in frames] == sent[at + 1 :]
        assert not gap


async def test_an_id_from_the_future_has_nothing_after_it(site: Site) -> None:
    node = await site.node()
    await node.send("x")
    joined = await node.open(node.device(), MAX_ID)
    assert joined.page.frames == ()
    assert not joined.page.more


async def test_joining_again_with_the_same_connection_only_reads_again(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    device = node.device()
    await node.open(device, start)
    sent = await node.send("x")
    await site.messages()
    joined = await node.open(device, start)
    assert [frame.id for frame in joined.page.frames] == [sent.id]
    assert await site.messages() == []
    assert await node.backend.counts() == (1, 1)
    await site.heard_all()
    assert node.ends == []


@pytest.mark.core
async def test_nothing_falls_between_replay_and_bus(site: Site) -> None:
    """Promise 3, with senders and joiners at the same time: replayed up to `Joined.id`, by the bus after it, each once."""
    node = await site.node(max_frames=1000)
    start = (await node.send("start")).id
    sent: dict[int, dict[str, list[str]]] = {}
    joins = []

    async def sender(number: int) -> None:
        for at in range(25):
            target = [{"users": [f"u{at % 3}"]}, {"names": [f"d{at % 9}"]}, {}][(number + at) % 3]
            sent[(await node.send("x", **target)).id] = target

    async def joiner(number: int) -> None:
        for at in range(3):
            name = 3 * number + at
            device = node.device(f"d{name}", f"u{name % 3}")
            last_id = start if name % 2 else None
            joined = await node.open(device, last_id)
            joins.append((device, last_id, joined))

    await asyncio.gather(*(sender(number) for number in range(3)), *(joiner(number) for number in range(6)))
    await site.heard_all()
    for device, last_id, joined in joins:
        expected = [
            id_
            for id_, target in sorted(sent.items())
            if not target or device.uid in target.get("users", ()) or device.device_name in target.get("names", ())
        ]
        live = [frame.id for frame in node.heard(device) if frame.id > joined.id][:-1]
        assert live == [id_ for id_ in expected if id_ > joined.id], "exactly once, in order"
        if last_id is not None:
            frames, gap = await node.replay(device, last_id, joined.page)
            assert [frame.id for frame in frames if frame.id <= joined.id] == [
                id_ for id_ in expected if id_ <= joined.id
            ]
            assert not gap


# Gaps: a loss is never silent, and none is told where none was


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("count", "gap"), [(5, False), (6, True)])
async def test_a_gap_is_told_exactly_when_a_frame_fell_out_of_a_log(
    site: Site, target: dict[str, list[str]], count: int, gap: bool
) -> None:
    node = await site.node(max_frames=5)
    start = node.device("start")
    last_id = (await node.open(start)).id
    sent = [(await node.send(str(number), **target)).id for number in range(count)]
    joined = await node.open(node.device(), last_id)
    assert joined.page.gap is gap
    assert [frame.id for frame in joined.page.frames] == sent[-5:], "trimmed at exactly the limit"


async def test_who_has_the_frame_that_fell_out_has_no_gap(site: Site) -> None:
    node = await site.node(max_frames=5)
    sent = [(await node.send(str(number))).id for number in range(9)]
    for at, id_ in enumerate(sent):
        frames, gap = await node.replay(node.device(), id_)
        assert gap is (at < 3)
        assert [frame.id for frame in frames] == sent[max(at + 1, 4) :]


async def test_a_batch_greater_than_a_log_leaves_the_newest_and_a_gap(site: Site) -> None:
    node = await site.node(max_frames=5)
    last_id = (await node.send("seen")).id
    sent = await node.backend.publish([Message(Target(), "", str(number)) for number in range(12)])
    frames, gap = await node.replay(node.device(), last_id)
    assert gap
    assert [frame.id for frame in frames] == [one.id for one in sent[-5:]]


async def test_what_others_lost_is_no_gap(site: Site) -> None:
    node = await site.node(max_frames=5)
    last_id = (await node.open(node.device("start"))).id
    for number in range(9):
        await node.send(str(number), users=["someone else"], names=["something else"])
    mine = await node.send("mine", users=["u"])
    frames, gap = await node.replay(node.device(), last_id)
    assert [frame.id for frame in frames] == [mine.id]
    assert not gap


async def test_an_id_older_than_the_retention_time_is_a_gap(site: Site) -> None:
    await site.begin_long_ago()
    node = await site.node(expire_seconds=100)
    site.catch_up_with_the_present()
    await node.send("x")
    now = int(time.time() * 1e6)
    for age_seconds, expected in ((90, False), (110, True)):
        _, gap = await node.replay(node.device(), now - age_seconds * 1_000_000)
        assert gap is expected


async def test_an_id_of_a_lost_data_set_is_a_gap(site: Site) -> None:
    """The embedded backend's ends with its process, a cluster's with a flush."""
    node = await site.node()
    last_id = (await node.send("lost")).id
    if site.servers is None:
        await node.close()
        node = await site.node()
    else:
        await site.servers.flush()
    sent = await node.send("kept")
    joined = await node.open(node.device(), last_id)
    assert joined.page.gap
    assert [frame.id for frame in joined.page.frames] == [sent.id]
    _, gap = await node.replay(node.device(), sent.id)
    assert not gap, "who has a frame of the new data set lacks nothing"


async def test_a_client_that_just_came_has_no_gap_on_its_return(site: Site) -> None:
    """Also when the first id of all was that of its join."""
    node = await site.node()
    device = node.device()
    joined = await node.open(device)
    node.leave(device)
    sent = await node.send("x")
    again = await node.open(node.device(), joined.id)
    assert [frame.id for frame in again.page.frames] == [sent.id]
    assert not again.page.gap
