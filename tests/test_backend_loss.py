"""What a failover takes along although it was acknowledged: the instance that was told notices it by itself, whatever the others
have written since, and puts it right without a second word.

A failover that loses is played by hand: what the shard held at some moment is put back, with an id key that has gone on.
"""

from __future__ import annotations

import pytest

from sse_broker.presence import Device
from sse_broker.redis_keys import shard_key
from tests.backends import Node, Site, offline, online, stop_beating
from tests.waiting import until

pytestmark = pytest.mark.core

HEARTBEAT = 0.6
Snapshot = dict[bytes, bytes]


async def snapshot(site: Site) -> Snapshot:
    """Return what the shard holds, but for what lives for moments alone."""
    keys = [key async for key in site.raw.scan_iter(match=shard_key("*"))]
    dumps = {key: await site.raw.dump(key) for key in keys if b":done:" not in key}
    return {key: dump for key, dump in dumps.items() if dump}


async def lose(site: Site, kept: Snapshot) -> None:
    """Put back what was there, as if another instance that lacks nothing had written since, and cut every connection."""
    keys = [key async for key in site.raw.scan_iter(match=shard_key("*"))]
    seconds, micros = await site.raw.time()
    pipe = site.raw.pipeline(transaction=True)
    pipe.delete(*keys)
    for key, dump in kept.items():
        pipe.restore(key, 10_000 if b":node:" in key else 0, dump)
    pipe.set(shard_key("id"), seconds * 1_000_000 + micros + 1_000_000)
    pipe.client_kill_filter(_type="normal", skipme=True)
    await pipe.execute()


async def missed(node: Node, count: int = 1) -> None:
    """Wait until an instance was told so often that frames may be missing."""
    await until(lambda: len(node.missed_after) >= count, what="word that frames may be missing")


async def pair(site: Site) -> tuple[Node, Node]:
    """Return two instances that have beaten."""
    return await site.node(heartbeat_seconds=HEARTBEAT), await site.node(heartbeat_seconds=HEARTBEAT)


async def test_a_join_that_was_lost_is_made_again_and_its_frames_are_read_from_the_logs(shared_site: Site) -> None:
    """Nobody is announced twice. A broadcast that follows on the bus is not handed on before: its id is greater."""
    one, two = await pair(shared_site)
    kept = await snapshot(shared_site)
    device = await two.join("d")
    assert await shared_site.messages()
    await lose(shared_site, kept)
    sent = await one.send("x", names=["d"])
    await one.send("to everyone")
    await until(lambda: online(one, "d"), what="the device to be back")
    await missed(two)
    assert two.missed_after[0] < sent.id
    assert sent.id in [frame.id for frame in (await two.replay(device, sent.id - 1))[0]]
    assert await shared_site.messages() == []


async def test_a_leave_that_was_lost_leaves_no_ghost(shared_site: Site) -> None:
    one, two = await pair(shared_site)
    device: Device = await two.join("d")
    kept = await snapshot(shared_site)
    two.leave(device)
    assert [change[0] for change in await shared_site.changes()][-1] == "user_offline"
    await lose(shared_site, kept)
    await until(lambda: offline(one, "d"), what="the device to be gone")
    assert await shared_site.messages() == []


async def test_a_frame_that_was_lost_makes_all_streams_look_for_what_they_miss(shared_site: Site) -> None:
    """Also those of other instances; and who comes back with its id is told of a gap."""
    one, two = await pair(shared_site)
    device = await two.join("d")
    kept = await snapshot(shared_site)
    sent = await one.send("x")
    await shared_site.heard_all()
    await lose(shared_site, kept)
    await missed(one)
    await missed(two)
    assert await two.replay(device, sent.id - 1) == ([], True)


async def test_a_clearing_that_was_lost_is_not_announced_again(shared_site: Site) -> None:
    one, two = await pair(shared_site)
    await two.join("d")
    kept = await snapshot(shared_site)
    await stop_beating(two)
    await until(lambda: offline(one, "d"), seconds=10, what="the clearing")
    assert [change[3] for change in await shared_site.changes()][-2:] == ["instance_clear", "instance_clear"]
    kept = {key: dump for key, dump in kept.items() if not key.endswith(f"node:{two.instance.id}".encode())}
    await lose(shared_site, kept)
    await until(lambda: offline(one, "d"), seconds=10, what="the clearing once more")
    await missed(one)
    assert await shared_site.messages() == []


async def test_connections_that_are_cut_without_a_loss_make_nobody_look(shared_site: Site) -> None:
    one, two = await pair(shared_site)
    device = await two.join("d")
    await one.send("x")
    two.leave(device)
    await two.join("e")
    assert await two.kick(names=["e"]) == 1
    reconnects = [node.backend.health().reconnects for node in (one, two)]
    await shared_site.raw.client_kill_filter(_type="normal", skipme=True)
    await shared_site.heard_all()
    assert all(node.backend.health().reconnects > before for node, before in zip((one, two), reconnects, strict=True))
    assert one.missed_after == two.missed_after == []


async def test_frames_for_a_device_whose_change_of_user_was_lost_are_a_gap(shared_site: Site) -> None:
    """By its name they go to the user whom the cluster knows, and another must not see them: but hear of it."""
    one, two = await pair(shared_site)
    former = await one.join("d", "ann")
    kept = await snapshot(shared_site)
    one.leave(former)
    device = await two.join("d", "bob")
    seen = (await one.send("seen", names=["d"])).id
    two.leave(device)
    await shared_site.messages()
    await lose(shared_site, kept)
    await missed(one)
    await missed(two)
    await until(lambda: offline(one, "d"), what="the former user's ghost to be gone")
    strayed = (await one.send("x", names=["d"])).id
    for back in (two, one):
        page = (await back.open(back.device("d", "bob"), seen)).page
        assert strayed not in [frame.id for frame in page.frames]
        assert page.gap_id >= strayed
    after = (await one.send("y", names=["d"])).id
    frames, gap = await one.replay(one.device("d", "bob"), page.gap_id)
    assert ([frame.id for frame in frames], gap) == ([after], False)
    assert not (await one.open(one.device("d", "bob"), after)).page.gap


async def test_frames_for_an_open_stream_whose_change_of_user_was_lost_are_a_gap(shared_site: Site) -> None:
    one, two = await pair(shared_site)
    former = await one.join("d", "ann")
    kept = await snapshot(shared_site)
    one.leave(former)
    device = await two.join("d", "bob")
    seen = (await one.send("seen", names=["d"])).id
    await stop_beating(two)
    await lose(shared_site, kept)
    await missed(one)
    await two.backend.counts()  # it has connected anew
    strayed = (await one.send("x", names=["d"])).id
    assert two.missed_after == [], "it has put nothing right yet"
    await two.backend.membership.rejoin(announce=False)  # type: ignore[attr-defined]
    page = await two.backend.replay(device, seen)
    assert strayed not in [frame.id for frame in page.frames]
    assert page.gap_id >= strayed
    assert not (await two.backend.replay(device, page.gap_id)).gap
