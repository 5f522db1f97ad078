"""The contract of `sse_broker/backend.py` where several instances share one Redis: one order, one truth, and what heals."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from sse_broker.envelope import EndEnvelope, FrameEnvelope
from sse_broker.errors import Unauthorized
from sse_broker.frame import Frame
from sse_broker.presence import Reason
from sse_broker.redis_keys import inbox, shard_key
from tests.backends import Node, Site, offline, online, stop_beating
from tests.cutting_proxy import CuttingProxy
from tests.waiting import until

# Frames


@pytest.mark.core
async def test_counts_are_cluster_wide_and_each_instance_hears_for_its_own_devices(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    a, b, c = await one.join("a", "ann"), await two.join("b", "ann"), await two.join("c", "ben")
    for_ann = await one.send("ann", users=["ann"])
    for_c = await one.send("c", names=["c"])
    for_all = await two.send("all")
    assert (for_ann.count, for_c.count, for_all.count) == (2, 1, 3)
    await shared_site.heard_all()
    assert one.frames[:-1] == [
        FrameEnvelope(Frame(for_ann.id, "", "ann"), (a.device_id,)),
        FrameEnvelope(Frame(for_all.id, "", "all"), None),
    ]
    assert two.frames[:-1] == [
        FrameEnvelope(Frame(for_ann.id, "", "ann"), (b.device_id,)),
        FrameEnvelope(Frame(for_c.id, "", "c"), (c.device_id,)),
        FrameEnvelope(Frame(for_all.id, "", "all"), None),
    ]


@pytest.mark.core
async def test_every_instance_has_one_and_the_same_order(shared_site: Site) -> None:
    nodes = [await shared_site.node() for _ in range(3)]

    async def sender(node: Node) -> list[int]:
        return [(await node.send()).id for _ in range(15)]

    sent = await asyncio.gather(*(sender(node) for node in nodes for _ in range(2)))
    await shared_site.heard_all()
    expected = sorted(id_ for ids in sent for id_ in ids)
    assert len(set(expected)) == 90
    for node in nodes:
        assert [envelope.frame.id for envelope in node.frames][:-1] == expected


@pytest.mark.core
async def test_what_was_missed_on_one_instance_is_replayed_on_another(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    device = await one.join("a", "ann")
    last = (await one.send("seen", users=["ann"])).id
    one.leave(device)
    missed = [(await one.send("missed", **target)).id for target in ({"users": ["ann"]}, {"names": ["a"]}, {})]
    joined = await two.open(two.device("a", "ann"), last)
    assert [frame.id for frame in joined.page.frames] == missed
    assert not joined.page.gap


@pytest.mark.core
async def test_nothing_falls_between_replay_and_bus_when_a_device_changes_instances(shared_site: Site) -> None:
    nodes = [await shared_site.node(max_frames=10_000) for _ in range(2)]
    start = (await nodes[0].send("start")).id
    sent: list[int] = []
    seen: list[int] = []
    wandering = True

    async def sender(node: Node) -> None:
        for target in itertools.cycle(({"names": ["a"]}, {"users": ["ann"]}, {})):
            if not wandering:
                return
            sent.append((await node.send("x", **target)).id)

    async def wanderer() -> None:
        nonlocal wandering
        last = start
        for at in range(12):
            node = nodes[at % 2]
            device = node.device("a", "ann")
            joined = await node.open(device, last)
            frames, gap = await node.replay(device, last, joined.page)
            assert not gap
            seen.extend(frame.id for frame in frames if frame.id <= joined.id)
            after = max(last, joined.id)
            live = await until(
                lambda node=node, device=device, after=after: [f.id for f in node.heard(device) if f.id > after],
                what="a frame on the bus",
            )
            seen.extend(live)
            last = live[-1]
        wandering = False

    await asyncio.gather(*(sender(node) for node in nodes), wanderer())
    node = nodes[0]
    frames, _ = await node.replay(node.device("a", "ann"), seen[-1])
    assert [*seen, *(frame.id for frame in frames)] == sorted(sent), "each once, in order"


async def test_ids_rise_over_a_flush(shared_site: Site) -> None:
    node = await shared_site.node()
    before = await node.send()
    assert shared_site.servers is not None
    await shared_site.servers.flush()
    assert (await node.send()).id > before.id


@pytest.mark.parametrize("who", ["the sender", "another instance"])
async def test_ids_rise_over_a_flush_and_a_clock_that_is_behind(shared_site: Site, who: str) -> None:
    """As after a failover to a replica that lost something and whose clock is behind: the bus reads on from a greater id."""
    one, two = await shared_site.node(), await shared_site.node()
    await one.send()
    await shared_site.clock_goes_back(3600)
    given = int(await shared_site.raw.get(shard_key("id")))
    before = await one.send()
    assert before.id > given
    await until(lambda: before.id in [envelope.frame.id for envelope in two.frames], what="the frame on the other")
    assert shared_site.servers is not None
    await shared_site.servers.flush()
    await until(lambda: _known(shared_site), what="the instances in the cluster again")
    after = await (one if who == "the sender" else two).send()
    assert after.id > before.id
    await until(lambda: after.id in [envelope.frame.id for envelope in two.frames], what="the frame on the bus")
    await until(lambda: after.id in [envelope.frame.id for envelope in one.frames], what="the frame on the other's bus")


async def _known(site: Site) -> bool:
    known = await site.raw.hkeys(shard_key("nodes"))
    return all(node.instance.id.encode() in known for node in site.nodes)


async def test_what_a_failover_lost_is_told_as_a_gap(shared_site: Site) -> None:
    """The promoted replica lacks the last frame and knows nothing of its id; the instances do."""
    one, two = await shared_site.node(heartbeat_seconds=0.4), await shared_site.node(heartbeat_seconds=0.4)
    seen = (await one.send("seen")).id
    lost = (await one.send("lost")).id
    await until(lambda: lost in [envelope.frame.id for envelope in two.frames], what="the frame on both")
    await shared_site.raw.xdel(shard_key("log:all"), f"{lost}-0")
    await shared_site.raw.set(shard_key("id"), seen)
    await until(lambda: one.missed_after and two.missed_after, what="the word that something may be missing")
    after = await two.send("after")
    assert after.id > lost
    for last_id, told in ((seen, True), (after.id, False)):
        _, gap = await one.replay(one.device("a", "ann"), last_id)
        assert gap is told
    await shared_site.heard_all()
    assert one.missed_after == two.missed_after == [lost], "once"


async def test_an_id_from_a_far_future_does_not_use_up_the_ids(shared_site: Site) -> None:
    node = await shared_site.node(heartbeat_seconds=0.4)
    await shared_site.raw.xadd(inbox(node.instance.id), {"e": "", "d": "x"}, id=f"{2**53 - 2}-0")
    await until(lambda: node.frames, what="the hostile entry")
    await shared_site.raw.delete(shard_key(f"node:{node.instance.id}"))
    await until(lambda: shared_site.raw.exists(shard_key(f"node:{node.instance.id}")), what="the next heartbeat")
    other = await shared_site.node()
    await node.close()
    assert (await other.send()).id < (time.time() + 3600) * 1e6


# Presence


async def test_a_device_that_comes_on_another_instance_ends_on_the_first(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    old = await one.join("a", "ann")
    await shared_site.changes()
    new = await two.join("a", "ann", device_address="198.51.100.7:1234")
    assert await shared_site.changes() == [
        ("device_offline", "a", "ann", "extrude_offline", "198.51.100.7:1234"),
        ("device_online", "a", "ann", "connected", two.instance.address),
    ]
    await shared_site.heard_all()
    assert one.ends == [EndEnvelope(old.device_id, old.connection_id, Reason.EXTRUDE, "198.51.100.7:1234")]
    assert two.ends == []
    one.leave(old)
    assert await shared_site.changes() == []
    presence = await one.backend.device(new.device_id)
    assert presence is not None
    assert presence.device == new


async def test_the_same_truth_is_known_everywhere(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    devices = [await one.join("a", "ann"), await two.join("b", "ann"), await two.join("c", "ben")]
    for node in (one, two):
        assert await node.backend.counts() == (2, 3)
        assert [presence.device for presence in await node.backend.user("ann")] == devices[:2]
        found = await node.backend.instances()
        assert [(instance.id, instance.device_count) for instance in found] == [
            (one.instance.id, 1),
            (two.instance.id, 2),
        ]


@pytest.mark.core
async def test_a_kick_reaches_devices_of_every_instance_and_their_tokens_are_refused_by_every_instance(
    shared_site: Site,
) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    until_then = {"token_expires_at": time.time() + 600}
    a = await one.join("a", "ann", token_digest="first", **until_then)
    b = await two.join("b", "ann", token_digest="second", **until_then)
    assert await one.kick("bye", users=["ann"]) == 2
    await shared_site.heard_all()
    assert one.ends == [EndEnvelope(a.device_id, a.connection_id, Reason.KICK, "bye")]
    assert two.ends == [EndEnvelope(b.device_id, b.connection_id, Reason.KICK, "bye")]
    for node in (one, two):
        for digest in ("first", "second"):
            with pytest.raises(Unauthorized):
                await node.join("c", "ann", token_digest=digest, **until_then)


async def test_a_user_with_devices_on_two_instances_goes_with_the_last(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    a, b = await one.join("a", "ann"), await two.join("b", "ann")
    await shared_site.changes()
    one.leave(a)
    assert [channel for channel, *_ in await shared_site.changes()] == ["device_offline"]
    two.leave(b)
    assert [channel for channel, *_ in await shared_site.changes()] == ["device_offline", "user_offline"]


# Instances that come and go


async def test_an_instance_that_closes_is_listed_no_more_and_gets_no_inbox(shared_site: Site) -> None:
    one, two = await shared_site.node(), await shared_site.node()
    await two.close()
    assert [instance.id for instance in await one.backend.instances()] == [one.instance.id]
    await one.send()
    assert not await shared_site.raw.exists(inbox(two.instance.id))


@pytest.mark.core
async def test_an_instance_that_dies_without_a_word_is_cleared_once_by_the_others(shared_site: Site) -> None:
    # So long that what a busy machine adds is little against it.
    nodes = [await shared_site.node(heartbeat_seconds=2) for _ in range(3)]
    dead = nodes[0]
    devices = [await dead.join(f"d{number}", f"u{number % 2}") for number in range(5)]
    await nodes[1].join("stays", "u1")
    last = (await nodes[1].send("seen")).id
    await shared_site.changes()
    await stop_beating(dead)
    began = time.monotonic()

    async def cleared() -> bool:
        return len(await nodes[1].backend.instances()) == 2 and await nodes[1].backend.counts() == (1, 1)

    await until(cleared, seconds=20, what="the clearing")
    assert time.monotonic() - began < 3 * 2 + 0.5, "within three heartbeat intervals, and a little for a busy machine"
    changes = await shared_site.changes()
    assert {(reason, payload) for *_, reason, payload in changes} == {("instance_clear", dead.instance.address)}
    assert sorted(name for channel, name, *_ in changes if channel == "device_offline") == [
        device.device_name for device in devices
    ]
    assert [uid for channel, _, uid, *_ in changes if channel == "user_offline"] == ["u0"]
    assert await shared_site.changes() == []
    # What is sent meanwhile is there for a device that connects again elsewhere.
    sent = await nodes[2].send("while away", names=["d0"])
    assert sent.count == 0
    joined = await nodes[2].open(nodes[2].device("d0", "u0"), last)
    assert [frame.id for frame in joined.page.frames] == [sent.id]


async def test_an_instance_that_lives_is_not_cleared_whoever_thinks_so(shared_site: Site) -> None:
    """What an instance saw before another beat again counts for nothing when it comes to act."""
    one, two = await shared_site.node(), await shared_site.node()
    await one.join("a", "ann")
    await shared_site.changes()
    assert await two.backend.membership.clear(one.instance.id) == 0  # type: ignore[attr-defined]
    assert await two.backend.membership.clear("never heard of") == 0  # type: ignore[attr-defined]
    assert await shared_site.changes() == []
    assert await two.backend.counts() == (1, 1)
    assert len(await two.backend.instances()) == 2


async def test_an_instance_that_was_cleared_and_lives_joins_its_devices_again_and_says_so(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    other = await shared_site.node(heartbeat_seconds=0.4)
    node = await shared_site.node(heartbeat_seconds=0.4, addr=shared_proxy.addr)
    await node.join("a", "ann")
    await node.join("moves", "ben")
    start = (await other.send("seen")).id
    await until(lambda: any(envelope.frame.id == start for envelope in node.frames), what="the bus of the node")
    await shared_site.changes()
    await shared_proxy.cut()
    await until(lambda: _only(other), what="the clearing of the instance that is cut off")
    moved = await other.join("moves", "ben")
    missed = await other.send("missed", users=["ann"])
    assert missed.count == 0
    await shared_proxy.mend()
    await until(lambda: online(other, "a"), what="the device in its place again")
    changes = await shared_site.changes()
    assert [change for change in changes if change[1] == "a"] == [
        ("device_offline", "a", "ann", "instance_clear", node.instance.address),
        ("user_offline", "a", "ann", "instance_clear", node.instance.address),
        ("device_online", "a", "ann", "connected", node.instance.address),
        ("user_online", "a", "ann", "device_online", node.instance.address),
    ]
    await until(lambda: node.ends, what="the end of the stream whose device moved on")
    assert [(end.device_id, end.reason, end.payload) for end in node.ends] == [
        (moved.device_id, Reason.EXTRUDE, moved.device_address)
    ]
    assert node.missed_after, "what was sent meanwhile is in the logs alone"
    assert start <= node.missed_after[-1] < missed.id
    assert (await other.send("again", users=["ann"])).count == 1
    await shared_site.heard_all()
    await node.close()


@pytest.mark.core
async def test_devices_are_joined_again_without_a_word_after_a_flush(shared_site: Site) -> None:
    """Nobody was told that they went."""
    node, other = [await shared_site.node(heartbeat_seconds=0.4) for _ in range(2)]
    await node.join("a", "ann")
    await other.join("b", "ben")
    await shared_site.changes()
    assert shared_site.servers is not None
    await shared_site.servers.flush()

    async def back() -> bool:
        return await node.backend.counts() == (2, 2)

    await until(back, what="both devices in their places again")
    assert await shared_site.changes() == []
    assert (await node.send(users=["ben"])).count == 1
    assert node.missed_after
    assert other.missed_after
    await shared_site.heard_all()


async def test_a_device_that_redis_holds_and_the_instance_has_not_is_removed(shared_site: Site) -> None:
    """A ghost: its leave was lost in some way that nobody thought of."""
    node = await shared_site.node(heartbeat_seconds=0.2)
    ghost = await node.join("ghost", "ann")
    await node.join("real", "ben")
    node.streams.pop(ghost.connection_id)
    await until(lambda: offline(node, "ghost"), what="the end of the ghost")
    assert [change for change in await shared_site.changes() if change[1] == "ghost"][2:] == [
        ("device_offline", "ghost", "ann", "disconnect", ""),
        ("user_offline", "ghost", "ann", "disconnect", ""),
    ]
    assert await node.backend.counts() == (1, 1)


async def test_a_device_that_the_instance_has_and_redis_lost_is_put_back(shared_site: Site) -> None:
    node = await shared_site.node(heartbeat_seconds=0.2)
    lost = await node.join("lost", "ann")
    await node.join("real", "ben")
    here = await node.backend.device(lost.device_id)
    node.backend.leave(lost, Reason.DISCONNECT)  # and the instance keeps the stream
    assert await node.backend.device(lost.device_id) is None
    await shared_site.raw.delete(shard_key(f"done:{lost.connection_id}"))  # so that it does not look like one that left
    await until(lambda: online(node, "lost"), what="the device in its place")
    assert await node.backend.device(lost.device_id) == here
    assert await node.backend.counts() == (2, 2)


async def _only(node: Node) -> bool:
    return [instance.id for instance in await node.backend.instances()] == [node.instance.id] and (
        await node.backend.counts() == (0, 0)
    )
