"""The contract of `sse_broker/backend.py` where connections to Redis are cut: nothing lost, nothing done twice."""

from __future__ import annotations

import asyncio

import pytest

from sse_broker.presence import Reason
from tests.backends import Site, online
from tests.cutting_proxy import CuttingProxy
from tests.redis_servers import RedisServer
from tests.waiting import until


async def test_the_bus_goes_on_where_it_was_after_every_kind_of_cut(
    shared_proxy: CuttingProxy, shared_site: Site, redis_server: RedisServer
) -> None:
    sender = await shared_site.node()
    node = await shared_site.node(addr=shared_proxy.addr)
    device = await node.join("a", "ann")
    sent = []
    for round_ in range(6):
        sent.append((await sender.send(f"{round_}", names=["a"])).id)
        if round_ % 2:
            await shared_proxy.cut_connections()
        else:
            await redis_server.cut_clients()
            await shared_site.resubscribe()
        sent.append((await sender.send(f"{round_} behind the cut", names=["a"])).id)
    await until(lambda: len(node.heard(device)) >= len(sent), what="every frame")
    assert [frame.id for frame in node.heard(device)] == sent, "nothing lost, nothing doubled"
    assert node.missed_after == []
    await node.close()


async def test_a_join_that_is_sent_again_does_not_replace_who_came_meanwhile(
    shared_proxy: CuttingProxy, shared_site: Site
) -> None:
    """Its answer was lost, the client gave up and connected to another instance: that stream is the newer one."""
    one, two = await shared_site.node(addr=shared_proxy.addr), await shared_site.node()
    await shared_site.changes()
    shared_proxy.deaf = True
    device = one.device("a", "ann")
    joining = asyncio.create_task(one.open(device))
    await until(lambda: online(two, "a"), what="the join whose answer nobody hears")
    newer = await two.join("a", "ann")
    await shared_proxy.cut_connections()
    shared_proxy.deaf = False
    await joining
    await until(lambda: one.ends, what="the end of the older stream")
    assert [(end.connection_id, end.reason) for end in one.ends] == [(device.connection_id, Reason.EXTRUDE)]
    await shared_site.heard_all()
    assert two.ends == []
    presence = await two.backend.device(newer.device_id)
    assert presence is not None
    assert presence.device == newer
    assert [channel for channel, *_ in await shared_site.changes()] == [
        "device_online",
        "user_online",
        "device_offline",
        "device_online",
    ]
    await one.close()


@pytest.mark.parametrize("what", ["publish", "kick"])
async def test_a_call_that_is_sent_again_is_carried_out_once(
    shared_proxy: CuttingProxy, shared_site: Site, what: str
) -> None:
    one, two = await shared_site.node(addr=shared_proxy.addr), await shared_site.node()
    device = await two.join("a", "ann")
    await shared_site.heard_all()  # so that no heartbeat of the beginning is under way
    before = len(two.envelopes)
    shared_proxy.deaf = True
    if what == "publish":
        call = asyncio.create_task(one.send("x", names=["a"]))
    else:
        call = asyncio.create_task(one.kick("bye", names=["a"]))
    await until(lambda: len(two.envelopes) > before, what="its effect")
    await shared_proxy.cut_connections()
    shared_proxy.deaf = False
    answer = await call
    if what == "publish":
        assert [frame.id for frame in two.heard(device)[1:]] == [answer.id]
        assert answer.count == 1
    else:
        assert answer == 1, "the answer is that of the first time"
    await shared_site.heard_all()
    assert len(two.envelopes) == before + 2, "once, and the mark"
    await one.close()
