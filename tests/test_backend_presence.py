"""The contract of `sse_broker/backend.py`, over every backend, its part about presence: who is here, extrusion, kick,
leaving, and the messages that announce it (docs/contract.md, section 4).
"""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from sse_broker.clock import local_text
from sse_broker.envelope import EndEnvelope
from sse_broker.errors import Unauthorized
from sse_broker.presence import Reason, device_id_of
from sse_broker.redis_keys import shard_key
from tests.backends import Site
from tests.waiting import until

# Messages: (channel, device name, uid, reason, payload)


async def test_the_first_device_of_a_user_is_announced_with_its_user_and_the_second_alone(site: Site) -> None:
    node = await site.node()
    here = node.instance.address
    await node.join("one", "ann")
    assert await site.changes() == [
        ("device_online", "one", "ann", "connected", here),
        ("user_online", "one", "ann", "device_online", here),
    ]
    await node.join("two", "ann")
    assert await site.changes() == [("device_online", "two", "ann", "connected", here)]


async def test_the_last_device_that_goes_takes_its_user_along_with_its_reason(site: Site) -> None:
    node = await site.node()
    one, two = await node.join("one", "ann"), await node.join("two", "ann")
    await site.changes()
    node.leave(one)
    assert await site.changes() == [("device_offline", "one", "ann", "disconnect", "")]
    node.leave(two, Reason.HEARTBEAT_FAIL)
    assert await site.changes() == [
        ("device_offline", "two", "ann", "heartbeat_fail", ""),
        ("user_offline", "two", "ann", "heartbeat_fail", ""),
    ]


@pytest.mark.parametrize(
    ("reason", "payload"),
    [(Reason.DISCONNECT, ""), (Reason.HEARTBEAT_FAIL, ""), (Reason.INSTANCE_CLOSE, "127.0.0.1:8080")],
)
async def test_a_going_is_announced_with_its_reason_and_payload(site: Site, reason: Reason, payload: str) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    await site.changes()
    node.leave(device, reason, payload)
    assert await site.changes() == [
        ("device_offline", "one", "ann", str(reason), payload),
        ("user_offline", "one", "ann", str(reason), payload),
    ]


async def test_a_message_has_the_fields_of_the_contract(site: Site) -> None:
    node = await site.node()
    device = await node.join("päd", "änn")
    sooner = local_text(time.time() - 60)
    (online, _) = await site.messages()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", online["trigger_time"])
    assert sooner < online.pop("trigger_time") <= local_text(time.time())
    assert online == {
        "channel": "sse_topic_device_online",
        "uid": "änn",
        "device_id": device.device_id,
        "device_name": "päd",
        "reason": "connected",
        "payload": node.instance.address,
    }


@pytest.mark.core
async def test_extrusion_of_the_only_device_of_a_user_says_nothing_of_the_user(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    await site.changes()
    await node.join("one", "ann", device_address="198.51.100.7:1234")
    assert await site.changes() == [
        ("device_offline", "one", "ann", "extrude_offline", "198.51.100.7:1234"),
        ("device_online", "one", "ann", "connected", node.instance.address),
    ]


@pytest.mark.core
async def test_a_device_that_comes_under_another_user_moves_from_one_to_the_other(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    await site.changes()
    await node.join("one", "ben", device_address="198.51.100.7:1234")
    assert await site.changes() == [
        ("device_offline", "one", "ann", "extrude_offline", "198.51.100.7:1234"),
        ("user_offline", "one", "ann", "extrude_offline", "198.51.100.7:1234"),
        ("device_online", "one", "ben", "connected", node.instance.address),
        ("user_online", "one", "ben", "device_online", node.instance.address),
    ]
    assert await node.backend.user("ann") == []
    assert [one.device.device_name for one in await node.backend.user("ben")] == ["one"]


@pytest.mark.core
async def test_a_kick_is_announced_with_its_data(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    await node.join("two", "ann")
    await node.join("three", "ben")
    await site.changes()
    await node.kick("be\ngone ☃", names=["one"])
    assert await site.changes() == [("device_offline", "one", "ann", "kick_offline", "be\ngone ☃")]
    await node.kick("", users=["ann"])
    assert await site.changes() == [
        ("device_offline", "two", "ann", "kick_offline", ""),
        ("user_offline", "two", "ann", "kick_offline", ""),
    ]


@pytest.mark.core
async def test_each_device_s_changes_are_announced_in_order_however_many_come_at_once(site: Site) -> None:
    node = await site.node()

    async def come_and_go(name: str) -> None:
        for _ in range(8):
            device = await node.join(name, f"user of {name}")
            node.leave(device)

    await asyncio.gather(*(come_and_go(f"d{number}") for number in range(6)))
    changes = await site.changes()
    for number in range(6):
        own = [channel for channel, name, *_ in changes if name == f"d{number}"]
        assert own == ["device_online", "user_online", "device_offline", "user_offline"] * 8


async def test_online_is_announced_after_it_is_so_and_offline_after_it_is_not(site: Site) -> None:
    """Who hears that a device is here can send to it."""
    node = await site.node()
    device = await node.join("one", "ann")
    assert [channel for channel, *_ in await site.changes()] == ["device_online", "user_online"]
    assert (await node.send(users=["ann"])).count == 1
    node.leave(device)
    assert [channel for channel, *_ in await site.changes()] == ["device_offline", "user_offline"]
    assert (await node.send(users=["ann"])).count == 0


# Extrusion


async def test_the_old_stream_of_a_device_is_ended_and_the_new_one_is_not(site: Site) -> None:
    node = await site.node()
    old = await node.join("one", "ann")
    new = await node.join("one", "ann", device_address="198.51.100.7:1234")
    await site.heard_all()
    assert node.ends == [EndEnvelope(old.device_id, old.connection_id, Reason.EXTRUDE, "198.51.100.7:1234")]
    assert node.devices() == [new]
    presence = await node.backend.device(new.device_id)
    assert presence is not None
    assert presence.device == new


async def test_a_device_that_comes_again_and_again_is_here_once(site: Site) -> None:
    node = await site.node()
    devices = await asyncio.gather(*(node.join("one", "ann") for _ in range(10)))
    await site.heard_all()
    assert await node.backend.counts() == (1, 1)
    assert (await node.send(users=["ann"])).count == 1
    presence = await node.backend.device(device_id_of("one"))
    assert presence is not None
    ended = [end.connection_id for end in node.ends]
    assert sorted([*ended, presence.device.connection_id]) == sorted(device.connection_id for device in devices)


async def test_the_end_of_an_old_stream_leaves_its_successor_alone(site: Site) -> None:
    node = await site.node()
    old = await node.join("one", "ann")
    new = await node.join("one", "ann")
    await site.changes()
    node.leave(old)
    node.leave(old, Reason.HEARTBEAT_FAIL)
    assert await site.changes() == []
    presence = await node.backend.device(new.device_id)
    assert presence is not None
    assert presence.device == new
    assert (await node.send(names=["one"])).count == 1


async def test_leaving_twice_is_leaving_once(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    await site.changes()
    node.leave(device)
    node.leave(device)
    assert [channel for channel, *_ in await site.changes()] == ["device_offline", "user_offline"]
    assert await node.backend.counts() == (0, 0)


async def test_leaving_without_having_come_is_nothing(site: Site) -> None:
    node = await site.node()
    node.leave(node.device("one", "ann"))
    assert await site.changes() == []
    assert await node.backend.counts() == (0, 0)


async def test_a_join_behind_a_leave_finds_it_carried_out(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    node.leave(device)
    await node.join("one", "ann")
    assert [(channel, reason) for channel, _, _, reason, _ in await site.changes()] == [
        ("device_online", "connected"),
        ("user_online", "device_online"),
        ("device_offline", "disconnect"),
        ("user_offline", "disconnect"),
        ("device_online", "connected"),
        ("user_online", "device_online"),
    ]


# Kick


async def test_a_kick_ends_streams_and_says_how_many(site: Site) -> None:
    node = await site.node()
    devices = [await node.join("one", "ann"), await node.join("two", "ann"), await node.join("three", "ben")]
    await node.join("stays", "cat")
    assert await node.kick("bye", users=["ann", "nobody"], names=["one", "three", "nothing"]) == 3
    await site.heard_all()
    assert sorted(node.ends, key=lambda end: end.connection_id) == sorted(
        (EndEnvelope(device.device_id, device.connection_id, Reason.KICK, "bye") for device in devices),
        key=lambda end: end.connection_id,
    )
    assert await node.backend.counts() == (1, 1)


async def test_a_kick_of_nobody_counts_0(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    node.leave(device)
    assert await node.kick(users=["ann"], names=["one", "nothing"]) == 0
    assert node.ends == []


async def test_a_second_kick_finds_nobody(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    assert await node.kick(users=["ann"]) == 1
    assert await node.kick(users=["ann"]) == 0


@pytest.mark.core
async def test_the_token_of_a_kicked_device_is_refused_and_another_is_not(site: Site) -> None:
    node = await site.node()
    until_then = {"token_expires_at": time.time() + 600}
    await node.join("one", "ann", token_digest="first", **until_then)
    await node.kick(names=["one"])
    if site.servers is not None:
        left_ms = await site.raw.pttl(shard_key("revoked:first"))
        assert 590_000 < left_ms <= 600_000, "refused until the token expires"
    with pytest.raises(Unauthorized, match="kicked"):
        await node.join("one", "ann", token_digest="first", **until_then)
    with pytest.raises(Unauthorized):
        await node.join("another device", "ann", token_digest="first", **until_then)
    assert await node.backend.counts() == (0, 0)
    await node.join("one", "ann", token_digest="second", **until_then)
    assert await node.backend.counts() == (1, 1)


async def test_a_refused_join_changes_and_announces_nothing(site: Site) -> None:
    node = await site.node()
    until_then = {"token_expires_at": time.time() + 600}
    await node.join("one", "ann", token_digest="first", **until_then)
    await node.kick(names=["one"])
    here = await node.join("one", "ann", token_digest="second", **until_then)
    await site.changes()
    with pytest.raises(Unauthorized):
        await node.join("one", "ann", token_digest="first", **until_then)
    assert await site.changes() == []
    presence = await node.backend.device(here.device_id)
    assert presence is not None
    assert presence.device == here


async def test_the_token_of_a_device_that_was_not_online_stays_good(site: Site) -> None:
    node = await site.node()
    until_then = {"token_expires_at": time.time() + 600}
    device = await node.join("one", "ann", token_digest="first", **until_then)
    node.leave(device)
    assert await node.kick(names=["one"]) == 0
    await node.join("one", "ann", token_digest="first", **until_then)


async def test_a_token_is_remembered_no_longer_than_it_is_good(site: Site) -> None:
    node = await site.node()
    expires_at = time.time() + 1.5
    await node.join("one", "ann", token_digest="first", token_expires_at=expires_at)
    await node.kick(names=["one"])
    with pytest.raises(Unauthorized):
        await node.join("one", "ann", token_digest="first", token_expires_at=expires_at)

    if site.servers is None:
        site.clock.offset_seconds = 2.6

    async def good_again() -> bool:
        try:
            await node.join("one", "ann", token_digest="first", token_expires_at=expires_at)
        except Unauthorized:
            return False
        return True

    await until(good_again, seconds=6, what="the end of the revocation", pause_seconds=0.1)
    assert time.time() + site.clock.offset_seconds >= expires_at


@pytest.mark.parametrize("expires_at", [0, 1.0])
async def test_devices_of_tokens_without_or_past_their_time_can_be_kicked(site: Site, expires_at: float) -> None:
    node = await site.node()
    await node.join("one", "ann", token_digest="first", token_expires_at=expires_at)
    await node.join("two", "ann")
    assert await node.kick(users=["ann"]) == 2
    await node.join("two", "ann")


# The end of an instance


@pytest.mark.core
async def test_an_instance_that_closes_has_carried_out_its_leaves(site: Site) -> None:
    node = await site.node()
    devices = [await node.join(f"d{number}", f"u{number}") for number in range(20)]
    await site.changes()
    for device in devices:
        node.leave(device, Reason.INSTANCE_CLOSE, node.instance.address)
    await node.close()
    await until(lambda: len(site._heard) >= 40, what="forty messages")
    changes = await site.changes()
    assert len(changes) == 40
    assert {(reason, payload) for *_, reason, payload in changes} == {("instance_close", node.instance.address)}
