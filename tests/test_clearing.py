"""Clearing in the hard cases: two instances die at once, the one that clears dies in the middle, a stream is over and its
instance was not told. At the level of the backend (tests/test_backend_cluster.py has the plain cases).
"""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker import redis_membership
from sse_broker.clock import local_now
from sse_broker.cluster import seconds_between_beats
from sse_broker.presence import Reason
from sse_broker.redis_keys import inbox, shard_key
from sse_broker.redis_member_scripts import CLEAR
from tests.backends import Node, Site, online, stop_beating
from tests.cutting_proxy import CuttingProxy
from tests.waiting import until


async def test_a_stream_whose_device_moved_on_and_left_while_its_instance_was_cut_off_is_ended(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    """The word that it is over went with the inbox when the instance was cleared, and nobody has the device now."""
    other = await shared_site.node(heartbeat_seconds=0.4)
    node = await shared_site.node(heartbeat_seconds=0.4, addr=shared_proxy.addr)
    old = await node.join("moves", "ann")
    await node.join("stays", "ben")
    await shared_proxy.cut()
    moved = await other.join("moves", "ann")
    await until(lambda: _left(other, 1, 1), what="the clearing of the instance that is cut off")
    other.leave(moved)
    await shared_proxy.mend()
    await until(lambda: online(other, "stays"), what="the device in its place again")
    await until(lambda: node.ends, seconds=2, what="the end of the stream that is over")
    assert [(end.connection_id, end.reason) for end in node.ends] == [(old.connection_id, Reason.EXTRUDE)]
    changes = [change for change in await shared_site.changes() if change[:2] == ("device_online", "moves")]
    assert [payload for *_, payload in changes] == [node.instance.address, other.instance.address]
    await node.close()


async def test_a_stream_whose_device_was_kicked_while_its_instance_was_cut_off_is_ended_however_long_that_takes(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    """The word of the kick went with the inbox; that the connection is over is known for seconds, the token for its time."""
    other = await shared_site.node(heartbeat_seconds=0.4)
    node = await shared_site.node(heartbeat_seconds=0.4, addr=shared_proxy.addr)
    kicked = await node.join("kicked", "ann", token_digest="first", token_expires_at=time.time() + 600)
    await node.join("stays", "ben", token_digest="second", token_expires_at=time.time() + 600)
    await shared_proxy.cut()
    assert await other.kick("bye", names=["kicked"]) == 1
    await until(lambda: _left(other, 1, 0), what="the clearing of the instance that is cut off")
    assert node.ends == []
    await shared_site.raw.delete(shard_key(f"done:{kicked.connection_id}"))
    await shared_proxy.mend()
    await until(lambda: online(other, "stays"), what="the other device in its place again")
    await until(lambda: node.ends, seconds=2, what="the end of the stream of the kicked device")
    assert [(end.connection_id, end.reason) for end in node.ends] == [(kicked.connection_id, Reason.KICK)]
    changes = [change[:4] for change in await shared_site.changes() if change[1] == "kicked"]
    assert changes == [
        ("device_online", "kicked", "ann", "connected"),
        ("user_online", "kicked", "ann", "device_online"),
        ("device_offline", "kicked", "ann", "kick_offline"),
        ("user_offline", "kicked", "ann", "kick_offline"),
    ]
    await node.close()


@pytest.mark.parametrize("target", [{"users": ["ben"]}, {"names": ["d"]}, {}], ids=["user", "device", "everyone"])
async def test_what_is_sent_to_a_device_of_an_instance_that_is_half_cleared_arrives_once(
    shared_proxy: CuttingProxy, shared_site: Site, target: dict[str, list[str]]
) -> None:
    """Its inbox may have a hole, so the frame is in the logs alone, from where the instance reads it once it is back."""
    other = await shared_site.node()
    node = await shared_site.node(heartbeat_seconds=0.4, addr=shared_proxy.addr)
    device = await node.join("d", "ben")
    last = (await other.send("seen")).id
    await until(lambda: last in [envelope.frame.id for envelope in node.frames], what="the bus of the node")
    await shared_proxy.cut()
    await stop_beating(other)  # so that only one step of the clearing is made
    await shared_site.raw.delete(shard_key(f"node:{node.instance.id}"))
    lane = other.backend.membership._lane  # type: ignore[attr-defined]
    _, left, _ = await lane.call(
        CLEAR, node.instance.id, 0, local_now(), 3_600_000, other.instance.id, "instance_clear"
    )
    assert left == 1
    assert await shared_site.raw.hkeys(shard_key("outside")) == [node.instance.id.encode()]
    sent = await other.send("meanwhile", **target)
    assert sent.count == 1
    entry = f"{sent.id}-0"
    assert await shared_site.raw.xrange(inbox(node.instance.id), entry, entry) == []
    logs = [await shared_site.raw.xrange(key, entry, entry) for key in await shared_site.raw.keys(shard_key("log:*"))]
    assert sum(map(len, logs)) == 1
    await shared_proxy.mend()
    await until(lambda: node.missed_after, what="the word to read from the logs")
    await until(lambda: shared_site.raw.hexists(shard_key("nodes"), node.instance.id), what="a member again")
    live = await other.send("live", names=["d"])
    await until(lambda: live.id in [frame.id for frame in node.heard(device)], what="the frame behind it")
    assert node.missed_after[-1] < sent.id
    assert sent.id not in [frame.id for frame in node.heard(device)]
    frames, gap = await node.replay(device, last)
    assert [frame.id for frame in frames if frame.id <= sent.id] == [sent.id]
    assert not gap
    await node.close()


async def test_two_instances_that_die_at_once_are_cleared_once_by_two_that_live(shared_site: Site) -> None:
    one, two, *dead = [await shared_site.node(heartbeat_seconds=0.4) for _ in range(4)]
    homes = {f"d{number}": dead[number % 2] for number in range(12)}
    for name, home in homes.items():
        await home.join(name, f"user of {name}")
    await one.join("stays", "ann")
    await shared_site.changes()
    await asyncio.gather(*(stop_beating(node) for node in dead))
    for node in dead:
        lives_ms = await shared_site.raw.pttl(shard_key(f"node:{node.instance.id}"))
        assert lives_ms + 1000 * seconds_between_beats(0.4) < 3 * 400, "cleared within three heartbeat intervals"
    await until(lambda: _left(two, 2, 1), what="the clearing of both")
    changes = await shared_site.changes()
    assert sorted(changes) == sorted(
        (channel, name, f"user of {name}", "instance_clear", home.instance.address)
        for name, home in homes.items()
        for channel in ("device_offline", "user_offline")
    )
    await one.send()
    for node in dead:
        assert not await shared_site.raw.exists(inbox(node.instance.id))


async def test_a_clearing_is_ended_by_another_when_the_instance_that_clears_dies_in_the_middle(
    shared_proxy: CuttingProxy, shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its third step is carried out and it never learns of it. Both are cleared then, and each device is told gone once."""
    monkeypatch.setattr(redis_membership, "CLEAR_DEVICES", 2)
    dead = await shared_site.node(heartbeat_seconds=0.4)
    clearer = await shared_site.node(heartbeat_seconds=0.4, addr=shared_proxy.addr)
    homes = {f"d{number}": dead for number in range(20)} | {"e0": clearer, "e1": clearer}
    for name, home in homes.items():
        await home.join(name, f"user of {name}")
    await shared_site.changes()
    steps = 0

    def watch(data: bytes) -> None:
        nonlocal steps
        if dead.instance.id.encode() in data:
            steps += 1
            shared_proxy.deaf = steps >= 3

    shared_proxy.watch = watch
    await stop_beating(dead)
    await until(lambda: steps >= 3, what="the third step of the clearing")
    await stop_beating(clearer)
    await shared_proxy.cut()
    clearer.closed = True  # so that it is not asked for anything
    gone = [name for channel, name, *_ in await shared_site.changes() if channel == "device_offline"]
    assert 4 <= len(gone) <= 6, "it died in the middle"
    other = await shared_site.node(heartbeat_seconds=0.4)
    await until(lambda: _left(other, 1, 0), what="the clearing of both")
    changes = await shared_site.changes()
    assert {reason for *_, reason, _ in changes} == {"instance_clear"}
    gone += [name for channel, name, *_ in changes if channel == "device_offline"]
    assert sorted(gone) == sorted(homes)
    for channel, name, _, _, address in changes:
        assert (channel, address) in {(c, homes[name].instance.address) for c in ("device_offline", "user_offline")}
    await shared_proxy.mend()
    clearer.closed = False
    await clearer.close()


async def _left(node: Node, instances: int, devices: int) -> bool:
    """Whether so many instances live, and so many devices are there, each of a user of its own."""
    return len(await node.backend.instances()) == instances and await node.backend.counts() == (devices, devices)
