"""Clearing in the hard cases: two instances die at once, the one that clears dies in the middle, a stream is over and its
instance was not told. At the level of the backend (tests/test_backend_cluster.py has the plain cases).
"""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker import redis_membership
from sse_broker.presence import Reason
from sse_broker.redis_keys import inbox
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


async def test_two_instances_that_die_at_once_are_cleared_once_by_two_that_live(shared_site: Site) -> None:
    one, two, *dead = [await shared_site.node(heartbeat_seconds=0.4) for _ in range(4)]
    homes = {f"d{number}": dead[number % 2] for number in range(12)}
    for name, home in homes.items():
        await home.join(name, f"user of {name}")
    await one.join("stays", "ann")
    await shared_site.changes()
    await asyncio.gather(*(stop_beating(node) for node in dead))
    began = time.monotonic()
    await until(lambda: _left(two, 2, 1), what="the clearing of both")
    assert time.monotonic() - began < 3 * 0.4 + 1, "within three heartbeat intervals, and a second for a busy machine"
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
