"""The contract of `sse_broker/backend.py`, over every backend: what is replayed, and when a gap is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker.backend import PAGE_FRAMES
from sse_broker.frame import MAX_ID, Frame
from sse_broker.target import Message, Target
from tests.backends import Site

TARGETS = {"everyone": {}, "user": {"users": ["u"]}, "device": {"names": ["d"]}}


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
