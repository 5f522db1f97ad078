"""Presence messages on Redis pub/sub (docs/contract.md, section 4), heard by a plain subscriber while clients come and go."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.event_client import EventClient
from tests.redis_servers import RedisServer
from tests.served import Serve, ServedBroker
from tests.waiting import until

DEVICE_ONLINE, DEVICE_OFFLINE = "sse_topic_device_online", "sse_topic_device_offline"
USER_ONLINE, USER_OFFLINE = "sse_topic_user_online", "sse_topic_user_offline"
CHANNELS = (DEVICE_ONLINE, DEVICE_OFFLINE, USER_ONLINE, USER_OFFLINE)
MARK = "tests_mark"


@dataclass(frozen=True)
class Heard:
    """A presence message, in short: channel, user, device name, reason, payload."""

    channel: str
    uid: str
    device: str
    reason: str
    payload: str


class Listener:
    """Hears every presence message, in order, and checks the form of each."""

    def __init__(self, redis: Redis) -> None:
        self.heard: list[Heard] = []
        self._redis = redis
        self._passed = self._marks = self._seen_marks = 0

    async def run(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        async for message in messages:
            if message["type"] != "message":
                continue
            if message["channel"] == MARK:
                self._seen_marks += 1
                continue
            told = json.loads(message["data"])
            assert set(told) == {"uid", "device_id", "device_name", "trigger_time", "reason", "payload"}
            assert all(type(value) is str for value in told.values())
            assert told["device_id"] == hashlib.md5(told["device_name"].encode()).hexdigest()
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told["trigger_time"])
            self.heard.append(
                Heard(message["channel"], told["uid"], told["device_name"], told["reason"], told["payload"])
            )

    async def next(self, count: int) -> list[Heard]:
        """Return the next messages, so many."""
        await until(lambda: len(self.heard) >= self._passed + count, what=f"{count} messages after {self.heard[-4:]}")
        self._passed += count
        return self.heard[self._passed - count : self._passed]

    async def assert_no_more(self, *brokers: ServedBroker) -> None:
        """Check that nothing came that was not asked for, also behind what these brokers, which still run, have to say."""
        for broker in brokers:
            assert (await broker.api.info()).status == 200  # behind every leave
        await self._redis.publish(MARK, "")
        self._marks += 1
        await until(lambda: self._seen_marks == self._marks, what="the mark on the subscription")
        assert self.heard[self._passed :] == []


@pytest.fixture
async def listener(redis_server: RedisServer) -> AsyncIterator[Listener]:
    """A subscriber of all four channels."""
    async with redis_server.client() as redis, redis.pubsub() as subscription:
        listener = Listener(redis)
        await subscription.subscribe(*CHANNELS, MARK)
        for _ in (*CHANNELS, MARK):
            await subscription.get_message(timeout=5)
        task = asyncio.create_task(listener.run(subscription.listen()))
        yield listener
        assert not task.done() or task.exception() is None, task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def connected(broker: ServedBroker, listener: Listener, uid: str, device: str, messages: int) -> EventClient:
    """Open a stream and pass over the messages that tell of it."""
    client = await broker.client(uid, device).open()
    await listener.next(messages)
    return client


async def test_coming_and_going_is_announced_once(serve_on_redis: Serve, listener: Listener) -> None:
    """The device first, then its user; with names of every kind."""
    broker = await serve_on_redis()
    uid, device = 'anna "é"/\\', "phone \n😀\0,"
    async with broker.client(uid, device, via="query"):
        assert await listener.next(2) == [
            Heard(DEVICE_ONLINE, uid, device, "connected", broker.address),
            Heard(USER_ONLINE, uid, device, "device_online", broker.address),
        ]
    assert await listener.next(2) == [
        Heard(DEVICE_OFFLINE, uid, device, "disconnect", ""),
        Heard(USER_OFFLINE, uid, device, "disconnect", ""),
    ]
    await broker.stop()
    await listener.assert_no_more()


async def test_a_user_is_online_from_the_first_device_to_the_last(serve_on_redis: Serve, listener: Listener) -> None:
    """On whichever instances these are."""
    one, two = await serve_on_redis(), await serve_on_redis()
    first = await connected(one, listener, "anna", "first", 2)
    second = await two.client("anna", "second").open()
    assert await listener.next(1) == [Heard(DEVICE_ONLINE, "anna", "second", "connected", two.address)]
    await first.close()
    assert await listener.next(1) == [Heard(DEVICE_OFFLINE, "anna", "first", "disconnect", "")]
    await second.close(abrupt=True)
    assert await listener.next(2) == [
        Heard(DEVICE_OFFLINE, "anna", "second", "disconnect", ""),
        Heard(USER_OFFLINE, "anna", "second", "disconnect", ""),
    ]
    await listener.assert_no_more(one, two)


async def test_online_follows_registration_and_offline_follows_removal(
    serve_on_redis: Serve, listener: Listener
) -> None:
    """Who hears a message and asks at once finds that it is so."""
    broker = await serve_on_redis()
    client = await broker.client("u", "d").open()
    await listener.next(2)
    assert (await broker.api.info(device="d")).result["online"] is True
    await client.close()
    await listener.next(2)
    assert (await broker.api.info(device="d")).result["online"] is False
    assert (await broker.api.info(uid="u")).result["online"] is False


async def test_extrusion_of_the_only_device_tells_no_user_message(serve_on_redis: Serve, listener: Listener) -> None:
    """Device offline, then device online; also from one instance to another."""
    one, two = await serve_on_redis(), await serve_on_redis()
    older = await connected(one, listener, "anna", "d", 2)
    for broker in (one, two):
        newer = await broker.client("anna", "d").open()
        assert await listener.next(2) == [
            Heard(DEVICE_OFFLINE, "anna", "d", "extrude_offline", newer.address),
            Heard(DEVICE_ONLINE, "anna", "d", "connected", broker.address),
        ]
        await older.wait_closed()
        await older.close()
        older = newer
    await older.close()
    await listener.next(2)
    await one.stop()
    await two.stop()
    await listener.assert_no_more()


async def test_a_device_that_changes_its_user_tells_of_both(serve_on_redis: Serve, listener: Listener) -> None:
    broker = await serve_on_redis()
    older = await connected(broker, listener, "anna", "d", 2)
    async with broker.client("ben", "d") as newer:
        assert await listener.next(4) == [
            Heard(DEVICE_OFFLINE, "anna", "d", "extrude_offline", newer.address),
            Heard(USER_OFFLINE, "anna", "d", "extrude_offline", newer.address),
            Heard(DEVICE_ONLINE, "ben", "d", "connected", broker.address),
            Heard(USER_ONLINE, "ben", "d", "device_online", broker.address),
        ]
    await listener.next(2)
    await older.close()
    await listener.assert_no_more(broker)


async def test_a_kick_is_announced_with_its_data(serve_on_redis: Serve, listener: Listener) -> None:
    one, two = await serve_on_redis(), await serve_on_redis()
    client = await connected(one, listener, "anna", "d", 2)
    await two.api.kick(device="d", data='go "away"\né')
    assert await listener.next(2) == [
        Heard(DEVICE_OFFLINE, "anna", "d", "kick_offline", 'go "away"\né'),
        Heard(USER_OFFLINE, "anna", "d", "kick_offline", 'go "away"\né'),
    ]
    await client.wait_closed()
    await client.close()
    await one.stop()
    await listener.assert_no_more(two)


async def test_an_instance_that_closes_tells_of_each_device(serve_on_redis: Serve, listener: Listener) -> None:
    broker, other = await serve_on_redis(), await serve_on_redis()
    clients = [await connected(broker, listener, "anna", "1", 2), await connected(broker, listener, "anna", "2", 1)]
    clients.append(await connected(other, listener, "ben", "3", 2))
    await broker.stop()
    heard = await listener.next(3)
    gone = {Heard(DEVICE_OFFLINE, "anna", device, "instance_close", broker.address) for device in "12"}
    assert set(heard[:2]) == gone
    assert heard[2] == Heard(USER_OFFLINE, "anna", heard[1].device, "instance_close", broker.address)
    await listener.assert_no_more(other)
    for client in clients:
        await client.close()


async def test_a_client_that_does_not_read_is_announced_as_failed(serve_on_redis: Serve, listener: Listener) -> None:
    broker = await serve_on_redis({"sse": {"max_buffer_bytes": 1024 * 1024}})
    client = await broker.client("u", "d", receive_buffer_bytes=4096).open()
    await listener.next(2)
    client.stop_reading()
    while not listener.heard[2:]:
        assert (await broker.api.send("x" * 900_000)).status == 200
        assert len(listener.heard) <= 4
    assert await listener.next(2) == [
        Heard(DEVICE_OFFLINE, "u", "d", "heartbeat_fail", ""),
        Heard(USER_OFFLINE, "u", "d", "heartbeat_fail", ""),
    ]
    await client.close()
    await listener.assert_no_more(broker)


async def test_many_changes_of_one_device_are_told_in_order(serve_on_redis: Serve, listener: Listener) -> None:
    """Online and offline take turns, however fast it moves between instances."""
    brokers = [await serve_on_redis(), await serve_on_redis()]
    for number in range(20):
        client = await brokers[number % 2].client("u", "d").open()
        if number % 3:
            await client.close(abrupt=bool(number % 2))
    await until(lambda: listener.heard[-1:] and listener.heard[-1].channel == USER_OFFLINE, what="the end")
    of_device = [one.channel for one in listener.heard if one.channel in (DEVICE_ONLINE, DEVICE_OFFLINE)]
    assert of_device == [DEVICE_ONLINE, DEVICE_OFFLINE] * 20
    of_user = [one.channel for one in listener.heard if one.channel in (USER_ONLINE, USER_OFFLINE)]
    assert of_user == [USER_ONLINE, USER_OFFLINE] * (len(of_user) // 2)


async def test_who_is_refused_while_redis_is_away_is_no_news_when_its_data_is_lost(
    serve_on_redis: Serve, redis_server: RedisServer, listener: Listener
) -> None:
    """Nor has it any effect on the stream of the same device elsewhere, which the cluster has to find out about again."""
    tables = {"sse": {"heartbeat_interval": 1}}
    home, away = await serve_on_redis(tables), await serve_on_redis(tables)
    stays = await connected(home, listener, "ann", "phone", 2)
    async with redis_server.client() as redis:
        await redis.ping()
        redis_server.freeze()
        await until(lambda: _is_refused(away), what="an outage that is known", seconds=20)
        for uid, device in (("ann", "phone"), ("eve", "desk")):
            refused = away.client(uid, device)
            assert (await refused.connect()).status == 503
            await refused.close()
        flushing = asyncio.create_task(redis.flushall())
        await asyncio.sleep(0)
        redis_server.thaw()
        await flushing
    await until(lambda: _has(away, 1), what="the device in its place again", seconds=20)
    for broker in (home, away):
        membership = broker.backend.membership  # type: ignore[attr-defined]
        await membership.settled(time.monotonic() + 10)
    assert (await away.api.send("hello", uid="ann")).result == 1
    await stays.wait_for(lambda event: event.data == "hello")
    assert [event.event for event in stays.system] == ["sys_connected", "sys_replay_gap"]
    await listener.assert_no_more(home, away)
    await stays.close()


async def _is_refused(broker: ServedBroker) -> bool:
    answer = await broker.api.send("into the void", uid="nobody")
    return answer.status == 503 and "out of reach" in answer.msg


async def _has(broker: ServedBroker, devices: int) -> bool:
    cluster = await broker.api.info()
    return cluster.status == 200 and (cluster.result["instance_count"], cluster.result["device_count"]) == (2, devices)
