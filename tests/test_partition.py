"""Half a network: a broker that is cut off from Redis, from its clients, or from everything, by silence and not by resets, for
longer than it takes to be cleared; then the network heals. Real brokers and a real Redis in network namespaces of the test's own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.broker_process import BrokerProcess
from tests.devices import Device
from tests.event_client import Api
from tests.faults import HEARTBEAT_SECONDS, TABLES, Scene, Stage
from tests.history import Heard
from tests.lifetimes import started
from tests.networks import Network, why_not
from tests.redis_servers import RedisServer
from tests.waiting import until

# What a busy machine may add to the times that are promised.
SLACK_SECONDS = 2.5
PROMISED_SECONDS = 3 * HEARTBEAT_SECONDS
# A call of Redis may take two; once it has been away for a second, none is tried.
FIRST_REFUSAL_SECONDS = 3.5
NODES = ("one", "two", "three")
# Clients and brokers are in the front, brokers and Redis in the back; the test is in both, to hear and judge.
FRONT, BACK = "front", "back"


class SplitStage(Stage):
    """Three brokers and Redis, each a host of its own."""

    def __init__(self) -> None:
        self.network = Network({FRONT: "10.1.0", BACK: "10.2.0"})
        self.brokers: list[BrokerProcess] = []

    async def connect(self) -> None:
        """Make the network."""
        await self.network.start()
        await self.network.add("test", 1, FRONT, BACK)
        await self.network.add("redis", 2, BACK)
        for number, name in enumerate(NODES, 11):
            await self.network.add(name, number, FRONT, BACK)

    async def start(self) -> None:
        """See Stage; on the host of the test."""
        there = self.network.inside("redis")
        self.own = self.redis = RedisServer(persist=True, host=self.network.address(BACK, 2), before=there)
        for number, name in enumerate(NODES, 11):
            server = {**TABLES["server"], "host": self.network.address(FRONT, number), "port": 8080}
            tables = {**TABLES, "server": server, "api": {"allow_anonymous": True}}
            program = (*self.network.inside(name), sys.executable, "-X", "dev", "-m", "sse_broker")
            self.brokers.append(BrokerProcess(tables, redis=self.redis, program=program))
        await super().start()

    async def heal(self) -> None:
        """See Stage."""
        for name in NODES:
            self.network.heal(name, FRONT, BACK)
        await super().heal()


@pytest.fixture(scope="module")
def stage() -> Iterator[SplitStage]:
    """The brokers are never started again. The module's tests run on the host `test`."""
    if reason := why_not():
        pytest.skip(reason)
    stage = SplitStage()
    try:
        asyncio.run(stage.connect())
        with stage.network.entered("test"):
            yield from started(stage)
    finally:
        asyncio.run(stage.network.stop())


def told(messages: Sequence[Heard]) -> list[tuple[str, str, str]]:
    """Return channel, reason and payload of each message."""
    return [(message.channel, message.reason, message.payload) for message in messages]


def until_settled(scene: Scene, device: Device) -> list[Heard]:
    """Return the presence messages about a device before the end of the scene, at which every device leaves."""
    return [message for message in scene.heard_of(device) if message.at < scene.recorder.settled_at]


async def choose(scene: Scene, number: int) -> tuple[BrokerProcess, list[Device]]:
    """Return a broker, which is asked for nothing from now on, and the steady devices there."""
    victim = scene.brokers[number]
    hit = scene.devices_at(victim, scene.steady)
    assert len(hit) > 1
    scene.traffic.spare(victim)
    await scene.accepted(5)  # so that nothing is on its way there
    return victim, hit


async def passed(start: float, seconds: float) -> None:
    """Wait until so much time has passed since a moment."""
    await until(lambda: time.monotonic() - start > seconds, seconds=seconds + 5, what="the time of the cut")


async def whole(scene: Scene, start: float) -> None:
    """Wait until every broker says that all are there, and check that it did not take too long since a moment."""

    async def all_know_all() -> bool:
        answers = [await api.info() for api in apis]
        return all(answer.status == 200 and answer.result["instance_count"] == len(NODES) for answer in answers)

    apis = [await Api(broker.base_url).__aenter__() for broker in scene.brokers]
    try:
        await until(all_know_all, seconds=20, what="a cluster that is whole")
        took = time.monotonic() - start
        assert took < PROMISED_SECONDS + SLACK_SECONDS, f"{took:.1f} s"
    finally:
        for api in apis:
            await api.close()


async def heard(scene: Scene, devices: Sequence[Device], count: int, start: float) -> None:
    """Wait for so many presence messages of each device, and check that they did not take too long since a moment."""
    await until(
        lambda: all(len(scene.heard_of(device)) >= count for device in devices),
        seconds=20,
        what=f"{count} presence messages each",
    )
    took = max(scene.heard_of(device)[count - 1].at for device in devices) - start
    assert took < PROMISED_SECONDS + SLACK_SECONDS, f"{took:.1f} s"


async def check_refusals(victim: BrokerProcess) -> None:
    """Sends and streams are refused there, the first ones soon and all later ones at once."""
    async with Api(victim.base_url) as api:
        for longest_seconds in (FIRST_REFUSAL_SECONDS, FIRST_REFUSAL_SECONDS, 1, 1, 1):
            start = time.monotonic()
            answer = await api.send("for nobody")
            assert answer.status == 503, answer
            took = time.monotonic() - start
            assert took < longest_seconds, f"{took:.1f} s"
    client = victim.client("stranger", "stranger")
    answer = await client.connect(seconds=FIRST_REFUSAL_SECONDS)
    await client.close()
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_a_node_that_is_cut_off_from_redis_is_cleared_once_and_comes_back_with_its_streams(
    stage: SplitStage,
) -> None:
    """Meanwhile it refuses sends quickly, and its clients notice nothing but a silence."""
    async with Scene(stage, steady=12) as scene:
        victim, hit = await choose(scene, 0)
        with scene.recorder.fault(after=3):
            stage.network.cut(NODES[0], BACK)
            start = time.monotonic()
            await check_refusals(victim)
            await heard(scene, hit, 2, start)
            await passed(start, PROMISED_SECONDS)
            await scene.accepted()
            stage.network.heal(NODES[0], BACK)
            start = time.monotonic()
            await heard(scene, hit, 3, start)
            await whole(scene, start)
        scene.check_streams_stayed_open()
        scene.traffic.spare()
    for device in hit:
        assert told(until_settled(scene, device)) == [
            ("device_online", "connected", victim.address),
            ("device_offline", "instance_clear", victim.address),
            ("device_online", "connected", victim.address),
        ]


async def test_a_node_that_is_cut_off_from_its_clients_stays_a_member_and_they_go_on_elsewhere(
    stage: SplitStage,
) -> None:
    """It drops their streams, as they acknowledge nothing; nobody is cleared."""
    async with Scene(stage, steady=12) as scene:
        victim, hit = await choose(scene, 1)
        lost, *back = hit
        lost.retire()
        for device in scene.recorder.devices:
            device.silence_seconds = 2 * HEARTBEAT_SECONDS
        with scene.recorder.fault(after=3):
            stage.network.cut(NODES[1], FRONT)
            start = time.monotonic()
            await heard(scene, hit, 2, start)
            await until(lambda: all(device.connected and len(device.visits) > 1 for device in back), seconds=20)
            await passed(start, PROMISED_SECONDS)
            await scene.accepted()
            stage.network.heal(NODES[1], FRONT)
            await whole(scene, time.monotonic())
        assert told(scene.heard_of(lost)) == [
            ("device_online", "connected", victim.address),
            ("device_offline", "heartbeat_fail", ""),
        ]
        lost.come_back()
        scene.traffic.spare()
        await scene.accepted(40)
    assert "instance_clear" not in [message.reason for message in scene.recorder.heard or ()]
    assert all(len(until_settled(scene, device)) == 3 for device in hit), "gone once and come once"


async def test_a_node_that_is_cut_off_from_everything_is_cleared_once_and_joins_again(stage: SplitStage) -> None:
    """Its clients go on elsewhere; what it still believes of them when it is back confuses nobody."""
    async with Scene(stage, steady=12) as scene:
        victim, hit = await choose(scene, 2)
        lost, *back = hit
        lost.retire()
        for device in scene.recorder.devices:  # longer than it takes to be cleared
            device.silence_seconds = 4 * HEARTBEAT_SECONDS
        with scene.recorder.fault(after=3):
            stage.network.cut(NODES[2], FRONT, BACK)
            start = time.monotonic()
            await heard(scene, hit, 2, start)
            await until(lambda: all(device.connected and len(device.visits) > 1 for device in back), seconds=20)
            await passed(start, PROMISED_SECONDS)
            await scene.accepted()
            stage.network.heal(NODES[2], FRONT, BACK)
            await whole(scene, time.monotonic())
        scene.traffic.spare()
        lost.come_back()
        await scene.accepted(40)
    for device in hit:
        first, second, third = told(until_settled(scene, device))
        assert (first, second) == (
            ("device_online", "connected", victim.address),
            ("device_offline", "instance_clear", victim.address),
        )
        assert third[:2] == ("device_online", "connected")
        assert device is lost or third[2] != victim.address
