"""The contract of `sse_broker/backend.py`, over every backend: whose frames a device gets, and what is known of who is here."""

from __future__ import annotations

import time

import pytest

from sse_broker.backend import Presence
from sse_broker.presence import Touch, device_id_of
from sse_broker.redis_keys import shard_key
from tests.backends import Site
from tests.waiting import until

# Change of user on a device


async def test_a_device_under_another_user_gets_nothing_that_was_kept_under_the_former(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    device = await node.join("pad", "ann")
    await node.send("for the device", names=["pad"])
    node.leave(device)
    await node.send("for the device, away", names=["pad"])
    await node.send("for the user", users=["ann"])
    everyone = await node.send("for everyone")
    ben = node.device("pad", "ben")
    frames, _ = await node.replay(ben, start, (await node.open(ben, start)).page)
    assert [frame.id for frame in frames] == [everyone.id]
    mine = await node.send("for ben's device", names=["pad"])
    frames, _ = await node.replay(ben, start)
    assert [frame.id for frame in frames] == [everyone.id, mine.id]


async def test_a_device_that_moves_while_it_is_online_gets_nothing_of_the_former_user_either(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    await node.join("pad", "ann")
    await node.send("for ann's device", names=["pad"])
    ben = node.device("pad", "ben")
    frames, _ = await node.replay(ben, start, (await node.open(ben, start)).page)
    assert frames == []


async def test_the_former_user_who_returns_to_a_device_is_told_of_a_loss_or_has_none(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    device = await node.join("pad", "ann")
    node.leave(device)
    kept = await node.send("for ann's device", names=["pad"])
    node.leave(await node.join("pad", "ben"))
    ann = node.device("pad", "ann")
    frames, gap = await node.replay(ann, start, (await node.open(ann, start)).page)
    assert gap or [frame.id for frame in frames] == [kept.id]


async def test_what_came_before_a_device_had_a_user_is_for_its_first(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    early = await node.send("for whoever comes", names=["pad"])
    joined = await node.open(node.device("pad", "ann"), start)
    assert [frame.id for frame in joined.page.frames] == [early.id]
    joined = await node.open(node.device("pad", "ben"), start)
    assert joined.page.frames == ()


async def test_the_same_user_on_a_device_keeps_what_was_sent_to_it(site: Site) -> None:
    node = await site.node()
    start = (await node.send("start")).id
    device = await node.join("pad", "ann")
    node.leave(device)
    kept = await node.send("for the device", names=["pad"])
    joined = await node.open(node.device("pad", "ann"), start)
    assert [frame.id for frame in joined.page.frames] == [kept.id]


async def test_who_a_device_belonged_to_is_remembered_as_long_as_something_comes_for_it(site: Site) -> None:
    """Else what comes for a device that is long away would go to whoever takes it next."""
    await site.begin_long_ago()
    node = await site.node(expire_seconds=2)
    site.catch_up_with_the_present()
    node.leave(await node.join("pad", "ann"))
    assert await node.backend.counts() == (0, 0)
    last_id = (await node.send("seen")).id
    for number in range(3):  # more than two seconds in all
        if site.servers is None:
            site.clock.offset_seconds += 1.2
        else:
            await until(lambda: _left_ms(site, "pad", 900), what="most of the time that it has")
        last_id = (await node.send("seen")).id if number == 1 else last_id
        await node.send("for ann's device", names=["pad"])
    ben = node.device("pad", "ben")
    frames, _ = await node.replay(ben, last_id, (await node.open(ben, last_id)).page)
    assert frames == []
    ann = node.device("pad", "ann")
    frames, _ = await node.replay(ann, last_id, (await node.open(ann, last_id)).page)
    assert [frame.data for frame in frames] == ["for ann's device"] * 2


async def _left_ms(site: Site, name: str, ms: int) -> bool:
    """Tell whether what is kept for a device, or before that the memory of its user, lives for less than this."""
    logs = [key async for key in site.raw.scan_iter(f"*log:d:{device_id_of(name)}*")]
    return bool(await site.raw.pttl(logs[0] if logs else shard_key(f"owner:{device_id_of(name)}")) < ms)


# What is known


@pytest.mark.core
async def test_a_device_is_known_with_all_that_it_came_with(site: Site) -> None:
    node = await site.node()
    device = await node.join(
        "one", "ann", token_digest="digest", token_expires_at=time.time() + 60.5, login_time=1_700_000_000.25
    )
    presence = await node.backend.device(device.device_id)
    assert presence == Presence(device, Touch(1_700_000_000.25, 0))


async def test_a_device_that_is_not_online_is_none(site: Site) -> None:
    node = await site.node()
    assert await node.backend.device(device_id_of("one")) is None
    node.leave(await node.join("one", "ann"))
    assert await node.backend.device(device_id_of("one")) is None


async def test_a_user_s_devices_come_oldest_login_first(site: Site) -> None:
    node = await site.node()
    now = time.time()
    for number in range(8):
        await node.join(f"d{number}", "ann", login_time=now + number)
    await node.join("other", "ben")
    assert [one.device.device_name for one in await node.backend.user("ann")] == [f"d{number}" for number in range(8)]
    await node.join("d0", "ann", login_time=now + 100)
    assert [one.device.device_name for one in await node.backend.user("ann")][-1] == "d0"
    assert await node.backend.user("nobody") == []


async def test_counts_are_of_distinct_users_and_devices(site: Site) -> None:
    node = await site.node()
    assert await node.backend.counts() == (0, 0)
    one = await node.join("one", "ann")
    await node.join("two", "ann")
    await node.join("three", "ben")
    assert await node.backend.counts() == (2, 3)
    node.leave(one)
    assert await node.backend.counts() == (2, 2)


async def test_an_instance_is_listed_with_its_number_of_devices(site: Site) -> None:
    node = await site.node()
    await node.join("one", "ann")
    await node.join("two", "ben")
    (found,) = await node.backend.instances()
    assert (found.id, found.address, found.version, found.start_time, found.device_count) == (
        node.instance.id,
        node.instance.address,
        node.instance.version,
        node.instance.start_time,
        2,
    )


# Renewal


@pytest.mark.core
async def test_a_renewal_is_seen_in_what_is_known(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    touch = Touch(device.login_time + 42.5, 2**53 - 1)
    node.backend.renew([Presence(device, touch)])

    async def known() -> bool:
        found = await node.backend.device(device.device_id)
        return found is not None and found.touch == touch

    await until(known, what="the renewal")
    (one,) = await node.backend.user("ann")
    assert one == Presence(device, touch)


@pytest.mark.core
async def test_the_renewal_of_an_old_stream_is_not_its_successor_s(site: Site) -> None:
    node = await site.node()
    old = await node.join("one", "ann")
    new = await node.join("one", "ann")
    bystander = await node.join("two", "ben")
    node.backend.renew([Presence(old, Touch(1.0, 99)), Presence(bystander, Touch(2.0, 1))])

    async def known() -> bool:
        found = await node.backend.device(bystander.device_id)
        return found is not None and found.touch.time == 2.0

    await until(known, what="the renewal beside it")
    presence = await node.backend.device(new.device_id)
    assert presence == Presence(new, Touch(new.login_time, 0))


async def test_a_renewal_brings_nobody_back(site: Site) -> None:
    node = await site.node()
    device = await node.join("one", "ann")
    bystander = await node.join("two", "ben")
    node.leave(device)
    await site.changes()
    node.backend.renew([Presence(device, Touch(1.0, 1)), Presence(bystander, Touch(2.0, 1))])

    async def known() -> bool:
        found = await node.backend.device(bystander.device_id)
        return found is not None and found.touch.time == 2.0

    await until(known, what="the renewal beside it")
    assert await node.backend.device(device.device_id) is None
    assert await node.backend.counts() == (1, 1)
    assert await site.changes() == []


@pytest.mark.core
async def test_many_renewals_at_once_are_all_made(site: Site) -> None:
    node = await site.node()
    devices = [await node.join(f"d{number}", "ann") for number in range(60)]
    node.backend.renew([Presence(device, Touch(float(at + 1), at)) for at, device in enumerate(devices)])

    async def known() -> bool:
        found = {one.device.device_id: one.touch for one in await node.backend.user("ann")}
        return found == {device.device_id: Touch(float(at + 1), at) for at, device in enumerate(devices)}

    await until(known, what="sixty renewals")
