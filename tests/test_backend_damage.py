"""What others wrote into Redis, or left there by damage: skipped and counted, and it harms nobody."""

from __future__ import annotations

import pytest

from sse_broker.presence import Reason, device_id_of
from sse_broker.redis_keys import inbox, shard_key
from tests.backends import Site, offline, stop_beating
from tests.waiting import until

HOSTILE_FIELDS = [
    {b"e": b"sys_kick_offline", b"d": b"forged"},
    {b"e": b"two\nlines", b"d": b"x"},
    {b"e": b"", b"d": b"\xff\xfe"},
    {b"e": b"\xed\xa0\x80", b"d": b"x"},
    {b"d": b"no event"},
    {b"e": b"no data"},
    {b"\xff": b"\xff"},
    {b"e": b"", b"x": b"y", b"t": b"not a number", b"d": b"\x80"},
    {b"e": b"", b"x": b"y", b"t": b""},
]


@pytest.mark.parametrize("log_name", ["log:all", "log:u:ann", f"log:d:{device_id_of('a')}:ann"])
async def test_damaged_entries_of_a_log_are_skipped_and_counted(shared_site: Site, log_name: str) -> None:
    node = await shared_site.node()
    device = await node.join("a", "ann")
    target = {"log:all": {}, "log:u:ann": {"users": ["ann"]}}.get(log_name, {"names": ["a"]})
    start = (await node.send("start")).id
    sent = []
    for fields in HOSTILE_FIELDS:
        sent.append((await node.send("good", **target)).id)
        await shared_site.raw.xadd(shard_key(log_name), fields, id=f"{sent[-1]}-1")
    joined = await node.open(device, start)
    frames, _ = await node.replay(device, start, joined.page)
    assert [frame.id for frame in frames] == sent
    assert node.backend.damaged == len(HOSTILE_FIELDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [24, 25, 60])
async def test_a_replay_goes_on_behind_more_damage_than_a_page_holds(shared_site: Site, count: int) -> None:
    node = await shared_site.node()
    device = await node.join("a", "ann")
    start = (await node.send("start")).id
    for number in range(count):
        await shared_site.raw.xadd(shard_key("log:all"), {b"\xff": b"\xff"}, id=f"{start + 1 + number}-0")
    good = (await node.send("good")).id
    for page in ((await node.open(device, start)).page, None):
        frames, _ = await node.replay(device, start, page)
        assert [frame.id for frame in frames] == [good]


async def test_an_entry_with_an_id_beyond_all_of_ours_ends_no_replay(shared_site: Site) -> None:
    node = await shared_site.node()
    device = await node.join("a", "ann")
    start = (await node.send("start")).id
    sent = [(await node.send("good", users=["ann"])).id for _ in range(24)]
    await shared_site.raw.xadd(shard_key("log:u:ann"), {b"e": b"", b"d": b"x"}, id=f"{2**53}-0")
    frames, _ = await node.replay(device, start)
    assert [frame.id for frame in frames] == sent


HOSTILE_ENVELOPES = [
    *HOSTILE_FIELDS,
    {b"k": b"end", b"i": b"x"},
    {b"k": b"end", b"i": b"x", b"c": b"y", b"r": b"no such reason", b"p": b""},
    {b"k": b"\xff"},
    {b"t": b"a b c"},
]


async def test_damaged_entries_of_an_inbox_are_skipped_and_counted(shared_site: Site) -> None:
    node = await shared_site.node()
    device = await node.join("a", "ann")
    sent = []
    for fields in HOSTILE_ENVELOPES:
        sent.append((await node.send("good", names=["a"])).id)
        await shared_site.raw.xadd(inbox(node.instance.id), fields, id=f"{sent[-1]}-1")
    await until(lambda: len(node.heard(device)) >= len(sent), what="the good ones")
    await shared_site.heard_all()
    assert [frame.id for frame in node.heard(device)][: len(sent)] == sent
    assert node.ends == []
    assert node.backend._bus.damaged == len(HOSTILE_ENVELOPES)  # type: ignore[attr-defined]


HOSTILE_ROUTES = [
    b"",
    b" ",
    b"\xff\xfe\x00",
    b"one",
    b"one two",
    b"one two three",
    b"one two {}",
    b"one two []",
    b"one two null",
    b'one two {"uid": 5}',
    b'one two {"uid": "ann", "device_name": ["a"], "token_expires_at": "soon"}',
    b'one two {"uid": "\\ud800", "device_name": "\\ud800"}',
    b"one two " + b"[" * 2000,
]


@pytest.mark.parametrize("of_a_member", [False, True])
@pytest.mark.parametrize("route", HOSTILE_ROUTES, ids=lambda route: str(route[:40]))
async def test_a_damaged_route_harms_no_call_and_is_replaced(
    shared_site: Site, route: bytes, of_a_member: bool
) -> None:
    node = await shared_site.node(heartbeat_seconds=0.3)
    if of_a_member:
        route = route.replace(b"one", node.instance.id.encode())
    device = await node.join("a", "ann")
    await node.join("b", "ann")
    await shared_site.raw.hset(shard_key("routes"), device.device_id, route)
    assert (await node.send("x", users=["ann"])).count in (1, 2)
    assert (await node.send("x", users=["ann"], names=["a", "b"])).count in (1, 2)
    await node.send("x")
    assert "b" in [presence.device.device_name for presence in await node.backend.user("ann")]
    await node.backend.device(device.device_id)
    await node.backend.counts()
    node.backend.leave(device, Reason.DISCONNECT)
    await shared_site.raw.hset(shard_key("routes"), device.device_id, route)
    assert await node.kick("bye", users=["ann"], names=["a"]) in (1, 2)
    await shared_site.raw.hset(shard_key("routes"), device.device_id, route)
    again = await node.join("a", "ann")
    presence = await node.backend.device(device.device_id)
    assert presence is not None
    assert presence.device == again
    assert (await node.send("x", names=["a"])).count == 1
    assert {key async for key in shared_site.raw.scan_iter("*inbox:*")} <= {inbox(node.instance.id).encode()}


async def test_a_damaged_route_keeps_no_dead_instance_from_being_cleared(shared_site: Site) -> None:
    dead, node = [await shared_site.node(heartbeat_seconds=0.4) for _ in range(2)]
    device = await dead.join("a", "ann")
    await dead.join("b", "ben")
    await shared_site.raw.hset(shard_key("routes"), device.device_id, b"\xff")
    await stop_beating(dead)

    async def cleared() -> bool:
        return len(await node.backend.instances()) == 1 and await offline(node, "b")

    await until(cleared, what="the clearing")
    assert not await shared_site.raw.exists(shard_key(f"held:{dead.instance.id}"))


async def test_a_damaged_route_does_not_outlive_its_device(shared_site: Site) -> None:
    node = await shared_site.node(heartbeat_seconds=0.2)
    device = await node.join("a", "ann")
    await node.join("b", "ben")
    await shared_site.raw.hset(shard_key("routes"), device.device_id, b"\xff")
    node.leave(device)

    async def gone() -> bool:
        return (await node.backend.counts())[1] == 1

    await until(gone, what="the end of the route")
    assert not await shared_site.raw.hexists(shard_key("routes"), device.device_id)
