"""What joins, leaves, clearings and losses of data do to each other when they cross. The heartbeat of an instance is stopped
here, and the test beats and joins again by hand, at the worst moments.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from sse_broker.cluster import Beat
from sse_broker.envelope import EndEnvelope
from sse_broker.errors import Unavailable
from sse_broker.presence import Reason
from sse_broker.redis_backend import RedisBackend
from sse_broker.redis_lane import PATIENCE_SECONDS
from sse_broker.redis_membership import RedisMembership
from tests.backends import Node, Site, offline, online, stop_beating
from tests.cutting_proxy import CuttingProxy
from tests.waiting import until

TTL_SECONDS = 60.0


async def quiet_node(site: Site, **options: Any) -> Node:
    """Start an instance that beats only when the test has it beat."""
    node = await site.node(heartbeat_seconds=0.9, **options)
    await stop_beating(node)
    return node


def membership_of(node: Node) -> RedisMembership:
    """Return a node's membership."""
    assert isinstance(node.backend, RedisBackend)
    return node.backend.membership


async def beat(node: Node) -> Beat:
    """Have an instance beat, and go on as its cluster does where presence is right."""
    found = await membership_of(node).beat(TTL_SECONDS)
    if found.known and not found.cleared:
        membership_of(node).leave_again()
    return found


async def clear(site: Site, dead: Node, by: Node) -> None:
    """Have an instance taken for dead and cleared."""
    await site.raw.delete(f"{{sse}}:node:{dead.instance.id}")
    await membership_of(by).clear(dead.instance.id)


async def flush(site: Site) -> None:
    """Lose all data, on every server."""
    assert site.servers is not None
    await site.servers.flush()


# A connection that is over


async def test_a_join_that_arrives_behind_its_leave_makes_no_ghost(shared_site: Site) -> None:
    """As when Redis was frozen, the client was told 503, and what was sent is carried out late."""
    node = await quiet_node(shared_site)
    device = node.device("a", "ann")
    node.leave(device)
    await node.backend.join(device, None)
    assert not await online(node, "a")
    assert await shared_site.changes() == []


async def test_a_join_that_arrives_behind_the_device_s_next_stream_does_not_replace_it(shared_site: Site) -> None:
    node = await quiet_node(shared_site)
    first = node.device("a", "ann")
    node.leave(first)
    second = await node.join("a", "ann")
    await node.backend.join(first, None)
    presence = await node.backend.device(second.device_id)
    assert presence is not None
    assert presence.device == second
    await shared_site.heard_all()
    assert node.ends == []


async def test_a_stream_that_was_ended_by_another_instance_is_not_put_back_before_it_hears_so(
    shared_site: Site,
) -> None:
    """The one that replaced it may be gone already, too; a comparison must not take it for lost."""
    one, two = await quiet_node(shared_site), await quiet_node(shared_site)
    membership_of(one)._bus.pause()  # a bus that lags
    old = await one.join("a", "ann")
    two.leave(await two.join("a", "ann"))
    await shared_site.changes()
    await membership_of(one).compare(membership_of(one).local_devices())
    assert not await online(one, "a")
    assert await shared_site.changes() == []
    membership_of(one)._bus.resume()
    await until(lambda: old.connection_id not in one.streams, what="the word of its end")


# Clearing


async def test_that_it_was_cleared_is_told_until_it_has_joined_again(shared_site: Site) -> None:
    """The answer in which it is told first may be lost."""
    node, other = await quiet_node(shared_site), await quiet_node(shared_site)
    await node.join("a", "ann")
    await clear(shared_site, node, other)
    for _ in range(3):
        found = await beat(node)
        assert (found.known, found.cleared) == (False, True)
    await membership_of(node).rejoin(announce=True)
    found = await beat(node)
    assert (found.known, found.cleared, found.device_count) == (True, False, 1)


async def test_no_frame_falls_into_the_hole_between_clearing_and_joining_again(shared_site: Site) -> None:
    """What was for a device alone is in the logs; a broadcast behind it must not come by the bus before that is read."""
    node, other = await quiet_node(shared_site), await quiet_node(shared_site)
    device = await node.join("a", "ann")
    before = await other.send("before", names=["a"])
    await shared_site.heard_all()
    await clear(shared_site, node, other)
    lost = await other.send("lost", names=["a"])
    broadcast = await other.send("to everyone")
    await beat(node)
    also_lost = await other.send("lost too", users=["ann"])
    await other.send("to everyone too")
    assert node.heard(device)[-1].id < lost.id, "and none of the broadcasts"
    await membership_of(node).rejoin(announce=True)
    after = await other.send("after", names=["a"])
    await until(lambda: node.heard(device)[-1].id == after.id, what="the next frame on the bus")
    (missed_after,) = node.missed_after
    assert before.id <= missed_after < lost.id
    frames, gap = await node.replay(device, missed_after)
    assert not gap
    assert {lost.id, broadcast.id, also_lost.id, after.id} <= {frame.id for frame in frames}


async def test_nothing_is_read_from_the_logs_before_an_instance_is_a_member_again(shared_site: Site) -> None:
    """A page that was read sooner could lack a frame that the bus will not bring either."""
    node, other = await quiet_node(shared_site), await quiet_node(shared_site)
    device = await node.join("a", "ann")
    await clear(shared_site, node, other)
    joined: list[float] = []

    def missed(after_id: int) -> None:
        async def read() -> None:
            await node.backend.replay(device, after_id)
            found = await beat(node)
            joined.append(found.known and found.device_count == 1)

        tasks.append(asyncio.create_task(read()))

    tasks: list[asyncio.Task[None]] = []
    node.missed = missed  # type: ignore[method-assign]
    await membership_of(node).rejoin(announce=True)
    await asyncio.gather(*tasks)
    assert joined == [True]


async def test_a_device_that_joins_while_its_instance_is_cleared_is_announced_once(shared_site: Site) -> None:
    node, other = await quiet_node(shared_site), await quiet_node(shared_site)
    await node.join("a", "ann")
    await clear(shared_site, node, other)
    await shared_site.changes()
    joining = asyncio.create_task(node.join("b", "ben"))
    await until(lambda: len(node.streams) == 2, what="the second stream on its way")
    await membership_of(node).rejoin(announce=True)
    await joining
    address = node.instance.address
    assert sorted(await shared_site.changes()) == [
        ("device_online", "a", "ann", "connected", address),
        ("device_online", "b", "ben", "connected", address),
        ("user_online", "a", "ann", "device_online", address),
        ("user_online", "b", "ben", "device_online", address),
    ]


# Loss of data


async def test_devices_that_leave_while_many_are_put_back_leave_no_ghosts(
    shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Putting back takes several calls; who left since the first must not come back in the last."""
    monkeypatch.setattr("sse_broker.redis_membership.REJOIN_DEVICES", 5)
    node = await quiet_node(shared_site)
    devices = [await node.join(f"d{number}", f"u{number}") for number in range(200)]
    await shared_site.messages()
    await flush(shared_site)
    back = asyncio.create_task(membership_of(node).rejoin(announce=False))
    await until(lambda: shared_site.raw.hlen("{sse}:routes"), what="the first of them in their place", pause_seconds=0)
    assert not back.done(), "too late"
    for device in devices[::2]:
        node.leave(device)
    await back
    await until(lambda: _counts(node, len(devices) // 2), what="those who stay")
    changes = await shared_site.changes()
    assert sorted(change for change in changes if change[0] == "device_offline") == sorted(
        ("device_offline", device.device_name, device.uid, "disconnect", "") for device in devices[::2]
    )
    assert not [change for change in changes if change[0].endswith("online")]


async def _counts(node: Node, devices: int) -> bool:
    await beat(node)
    return await node.backend.counts() == (devices, devices)


async def test_who_left_while_the_data_was_lost_is_announced_all_the_same(shared_site: Site) -> None:
    """With the reason, and not before the other instances have put back the other devices of the user."""
    one, two = await quiet_node(shared_site), await quiet_node(shared_site)
    leaver, stayer = await one.join("a", "ann"), await one.join("b", "ben")
    await two.join("c", "ann")
    await shared_site.changes()
    await flush(shared_site)
    one.leave(leaver, Reason.HEARTBEAT_FAIL)
    await membership_of(one).rejoin(announce=False)
    assert await shared_site.changes() == [], "not yet: nobody knows whether the user has other devices"
    await membership_of(two).rejoin(announce=False)
    await until(lambda: _left(one, "a"), what="its going")
    assert await shared_site.changes() == [("device_offline", "a", "ann", "heartbeat_fail", "")]
    assert await online(one, "b")
    assert stayer.connection_id in one.streams


async def _left(node: Node, name: str) -> bool:
    await beat(node)
    return not await online(node, name)


async def test_a_device_that_comes_while_the_data_is_lost_is_announced_once(shared_site: Site) -> None:
    """It was never announced before, so putting presence right silently must pass it over."""
    node = await quiet_node(shared_site)
    await node.join("a", "ann")
    await shared_site.changes()
    await flush(shared_site)
    joining = asyncio.create_task(node.join("b", "ben"))
    await until(lambda: len(node.streams) == 2, what="the second stream on its way")
    await membership_of(node).rejoin(announce=False)
    await joining
    address = node.instance.address
    assert await shared_site.changes() == [
        ("device_online", "b", "ben", "connected", address),
        ("user_online", "b", "ben", "device_online", address),
    ]


async def test_a_device_that_moves_while_the_data_is_lost_is_announced_in_order(shared_site: Site) -> None:
    """It waits until the instance that it left has put it back, and is then replaced as ever."""
    one, two = await quiet_node(shared_site), await quiet_node(shared_site)
    await one.join("a", "ann")
    await shared_site.changes()
    await flush(shared_site)
    await membership_of(two).rejoin(announce=False)
    moving = asyncio.create_task(two.join("a", "ann", device_address="198.51.100.7:1"))
    await membership_of(one).rejoin(announce=False)
    await moving
    assert await shared_site.changes() == [
        ("device_offline", "a", "ann", "extrude_offline", "198.51.100.7:1"),
        ("device_online", "a", "ann", "connected", two.instance.address),
    ]


async def test_of_two_streams_of_a_device_the_newer_stays_when_the_word_of_it_was_lost(shared_site: Site) -> None:
    node = await quiet_node(shared_site)
    membership_of(node)._bus.pause()
    old = await node.join("a", "ann")
    new = await node.join("a", "ann", device_address="198.51.100.7:1")
    await flush(shared_site)
    await membership_of(node).rejoin(announce=False)
    assert node.ends == [EndEnvelope(old.device_id, old.connection_id, Reason.EXTRUDE, "198.51.100.7:1")]
    presence = await node.backend.device(new.device_id)
    assert presence is not None
    assert presence.device.connection_id == new.connection_id


async def test_who_was_refused_while_redis_was_away_leaves_nothing_behind_when_data_is_lost(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    """No word of a device that never came, and none to the stream of the same device elsewhere."""
    other, node = await quiet_node(shared_site), await quiet_node(shared_site, addr=shared_proxy.addr)
    stays = await other.join("phone", "ann")
    await other.join("pad", "ben")
    await shared_site.changes()
    await shared_proxy.cut()
    lane = node.backend._lane  # type: ignore[attr-defined]
    asking = asyncio.create_task(node.backend.counts())
    await until(lambda: lane._away_since and time.monotonic() > lane._away_since + PATIENCE_SECONDS, what="an outage")
    for name, uid in (("phone", "ann"), ("desk", "eve")):
        with pytest.raises(Unavailable, match="out of reach"):
            await node.join(name, uid)
    assert [one.script.name for one in lane._waiting] == ["overview"]
    await flush(shared_site)
    await shared_proxy.mend()
    assert await asking == (0, 0)
    for one in (node, other):
        await until(lambda one=one: _beats(one), what="Redis")
        await membership_of(one).rejoin(announce=False)
    for one in (node, other):
        await membership_of(one).settled(time.monotonic() + 10)
        await beat(one)
    assert await shared_site.changes() == []
    assert other.ends == []
    assert await online(other, "phone")
    assert await online(other, "pad")
    presence = await node.backend.device(stays.device_id)
    assert presence is not None
    assert presence.device.connection_id == stays.connection_id
    assert await node.backend.counts() == (2, 2)


async def _beats(node: Node) -> bool:
    with suppress(Unavailable):
        await beat(node)
        return True
    return False


async def test_a_join_that_is_given_up_unsent_needs_no_leave_and_one_that_was_sent_is_taken_back(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    other, node = await quiet_node(shared_site), await quiet_node(shared_site, addr=shared_proxy.addr)
    lane = node.backend._lane  # type: ignore[attr-defined]
    shared_proxy.deaf = True
    sent = asyncio.create_task(node.join("a", "ann"))
    await until(lambda: online(other, "a"), what="the join whose answer nobody hears")
    behind = asyncio.create_task(node.join("b", "ben"))
    await asyncio.sleep(0)
    for task in (behind, sent):
        task.cancel()
    await asyncio.gather(sent, behind, return_exceptions=True)
    assert [one.script.name for one in lane._waiting if one.answer is None] == ["leave"], "for the first alone"
    await shared_proxy.cut_connections()
    shared_proxy.deaf = False
    await until(lambda: offline(other, "a"), what="its going")
    assert await shared_site.changes() == [
        ("device_online", "a", "ann", "connected", node.instance.address),
        ("user_online", "a", "ann", "device_online", node.instance.address),
        ("device_offline", "a", "ann", "disconnect", ""),
        ("user_offline", "a", "ann", "disconnect", ""),
    ]


async def test_many_who_left_while_the_data_was_lost_do_not_keep_the_heartbeat_back(
    shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than may wait: they are announced all the same, and sends are taken meanwhile."""
    monkeypatch.setattr("sse_broker.redis_lane.MAX_WAITING", 50)
    node = await quiet_node(shared_site)
    devices = [await node.join(f"d{number}", "ann") for number in range(120)]
    await flush(shared_site)
    for device in devices:
        node.leave(device)
    assert not (await beat(node)).known
    assert (await node.send()).count == 0
    await membership_of(node).rejoin(announce=False)
    await until(lambda: _counts(node, 0), what="the going of all")
    changes = await shared_site.changes()
    assert sorted(name for channel, name, *_ in changes if channel == "device_offline") == sorted(
        device.device_name for device in devices
    )


async def test_an_instance_that_dies_while_it_puts_back_what_it_holds_leaves_no_ghosts(shared_site: Site) -> None:
    """Its routes are there and it is no member; others find it all the same."""
    node, other = await quiet_node(shared_site), await quiet_node(shared_site)
    device = await node.join("a", "ann")
    await flush(shared_site)
    await membership_of(node)._put_back([device], announce=False)
    await membership_of(other).rejoin(announce=False)
    assert await online(other, "a")
    found = await beat(other)
    assert found.dead == (node.instance.id,)
    await membership_of(other).clear(node.instance.id)
    assert await other.backend.counts() == (0, 0)
    assert (await beat(other)).dead == ()


async def test_a_join_that_waits_for_a_membership_in_vain_is_unavailable(
    shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_broker.redis_backend.JOIN_SECONDS", 0.3)
    node = await quiet_node(shared_site)
    await flush(shared_site)
    with pytest.raises(Unavailable):
        await node.join("a", "ann")
