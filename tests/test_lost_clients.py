"""Clients that fail (CONTRACT section 7): one that reads nothing, one that vanishes, one whose instance is killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.broker_process import BrokerProcess
from tests.event_client import Api
from tests.redis_servers import RedisServer
from tests.served import Serve
from tests.waiting import until

RunBroker = Callable[..., Awaitable[BrokerProcess]]
HEARTBEAT = 1.0


async def offline(api: Api, device: str, *, seconds: float = 10) -> None:
    """Wait until a device is not online any more."""

    async def gone() -> bool:
        return not (await api.info(device=device)).result["online"]

    await until(gone, seconds=seconds, what=f"{device} offline")


async def test_a_client_that_vanishes_is_noticed_within_three_heartbeats(serve: Serve) -> None:
    """No FIN, no reset, no acknowledgement: only silence."""
    broker = await serve({"sse": {"heartbeat_interval": HEARTBEAT}})
    client, other = await broker.client("u", "d").open(), await broker.client("u", "e").open()
    start = time.monotonic()
    client.vanish()
    await offline(broker.api, "d", seconds=20)
    assert time.monotonic() - start < 3 * HEARTBEAT + 0.5
    assert not other.closed
    assert (await broker.api.send("x", uid="u")).result == 1
    assert (await other.next_frame()).data == "x"
    await client.close()
    await other.close()


async def test_a_client_that_does_not_read_is_dropped_and_resumes(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """At the bound of its buffer; meanwhile nobody else waits for it; with its last id it misses nothing."""
    caplog.set_level("INFO", "sse_broker.broker")
    broker = await serve({"sse": {"heartbeat_interval": 30}})
    slow = await broker.client("u", "slow", receive_buffer_bytes=4096).open()
    async with broker.client("u", "quick") as quick:
        await broker.api.send("first", uid="u")
        last_id = (await slow.next_frame()).id
        slow.stop_reading()
        sent = 0
        while (await broker.api.info(device="slow")).result["online"]:
            assert sent < 60, "ten times its bound and still open"
            assert (await broker.api.send(f"{sent} " + "x" * 200_000, uid="u")).result in (1, 2)
            await quick.wait_for(lambda event, number=sent: str(event.data).startswith(f"{number} "), seconds=5)  # type: ignore[misc]
            sent += 1
        assert "stream closed: user u, device slow, heartbeat_fail" in caplog.messages[-1]
        async with broker.client("u", "slow", last_id=last_id) as again:
            for number in range(sent):
                assert str((await again.next_frame()).data).startswith(f"{number} ")
            assert [event.event for event in again.system] == ["sys_connected"]
    await slow.close()


async def test_a_device_of_a_killed_instance_goes_on_elsewhere(
    run_broker: RunBroker, redis_server: RedisServer
) -> None:
    """With its last id it misses nothing; a device that does not return is cleared within three heartbeats."""
    tables = {"sse": {"heartbeat_interval": HEARTBEAT}}
    one, two = await run_broker(tables, redis=redis_server), await run_broker(tables, redis=redis_server)
    async with two.api() as api, redis_server.client() as redis, redis.pubsub() as heard:
        returning, lost = await one.client("anna", "returning").open(), await one.client("ben", "lost").open()
        await api.send("1")
        last_id = (await returning.next_frame()).id
        await heard.subscribe("sse_topic_device_offline", "sse_topic_user_offline")
        start = time.monotonic()
        await one.kill()
        await asyncio.gather(returning.close(), lost.close())
        assert (await api.send("2", device="returning")).status == 200
        assert (await api.send("3", uid="anna")).status == 200
        async with two.client("anna", "returning", last_id=last_id) as client:
            await api.send("4")
            assert [(await client.next_frame()).data for _ in range(3)] == ["2", "3", "4"]
            await offline(api, "lost", seconds=20)
            assert time.monotonic() - start < 3 * HEARTBEAT + 1
            told = []
            while len(told) < 3:
                message = await asyncio.wait_for(heard.get_message(timeout=None), 5)
                if message["type"] != "message":
                    continue
                text = json.loads(message["data"])
                told.append((message["channel"], text["device_name"], text["reason"], text["payload"]))
            assert told[0] == ("sse_topic_device_offline", "returning", "extrude_offline", client.address)
            assert told[1:] == [
                ("sse_topic_device_offline", "lost", "instance_clear", one.address),
                ("sse_topic_user_offline", "lost", "instance_clear", one.address),
            ]
            assert (await api.info()).result["instance_count"] == 1
            assert not client.closed
