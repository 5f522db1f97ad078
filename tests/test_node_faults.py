"""A broker of a cluster is killed, freezes or is asked to end, under traffic: its devices go on, and presence is told once and
as it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from tests.faults import HEARTBEAT_SECONDS, START_SECONDS, Scene, Stage
from tests.history import Heard
from tests.lifetimes import started
from tests.waiting import until

# What a busy machine may add to the three heartbeats that are promised: less than half of one.
SLACK_SECONDS = 0.6


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Three brokers; those that a test ends are started again."""
    yield from started(Stage(3))


def told(messages: Sequence[Heard]) -> list[tuple[str, str, str]]:
    """Return channel, reason and payload of each message."""
    return [(message.channel, message.reason, message.payload) for message in messages]


async def test_devices_of_a_killed_broker_go_on_elsewhere_and_who_does_not_come_back_is_cleared(stage: Stage) -> None:
    """The clearing is announced once, by one of the others."""
    async with Scene(stage, steady=12) as scene:
        victim = scene.brokers[2]
        hit = scene.devices_at(victim, scene.steady)
        assert len(hit) > 1, "by chance hardly any device is connected there"
        lost, *back = hit
        lost.retire()
        scene.traffic.spare(victim)
        with scene.recorder.fault(after=3):
            await victim.kill()
            start = time.monotonic()
            await until(lambda: all(device.connected and len(device.visits) > 1 for device in back))
            await until(lambda: scene.heard_of(lost)[1:], seconds=20, what="the word that it is cleared")
            took = scene.heard_of(lost)[1].at - start
            assert took < 3 * HEARTBEAT_SECONDS + SLACK_SECONDS, f"{took:.1f} s"
            await scene.accepted()
        assert told(scene.heard_of(lost)) == [
            ("device_online", "connected", victim.address),
            ("device_offline", "instance_clear", victim.address),
        ]
        assert all(len(device.visits) == 1 for device in scene.steady if device not in hit)
        await victim.start(seconds=START_SECONDS)
        scene.traffic.spare()
        lost.come_back()


async def test_a_broker_that_was_frozen_and_cleared_puts_its_presence_right_and_its_streams_catch_up(
    stage: Stage,
) -> None:
    """Its clients notice nothing but a silence."""
    async with Scene(stage, steady=12) as scene:
        victim = scene.brokers[1]
        hit = scene.devices_at(victim, scene.steady)
        assert hit, "by chance no device is connected there"
        scene.traffic.spare(victim)
        with scene.recorder.fault(after=3):
            victim.freeze()
            await until(lambda: all(len(scene.heard_of(device)) == 2 for device in hit), seconds=20)
            await scene.accepted()
            victim.thaw()
            await until(lambda: all(len(scene.heard_of(device)) == 3 for device in hit), seconds=20)
        for device in hit:
            assert told(scene.heard_of(device)) == [
                ("device_online", "connected", victim.address),
                ("device_offline", "instance_clear", victim.address),
                ("device_online", "connected", victim.address),
            ]
        scene.check_streams_stayed_open()
        scene.traffic.spare()


async def test_a_broker_that_is_asked_to_end_sends_its_devices_elsewhere_and_says_so(stage: Stage) -> None:
    """With nothing lost and no presence message too many, although sends go on."""
    async with Scene(stage, steady=12) as scene:
        victim = scene.brokers[0]
        hit = scene.devices_at(victim, scene.steady)
        assert hit, "by chance no device is connected there"
        scene.traffic.spare(victim)
        code, _ = await victim.terminate()
        assert code == 0
        await until(lambda: all(device.connected and len(device.visits) > 1 for device in hit), seconds=20)
        for device in hit:
            end = device.visits[0].client.events[-1]
            assert (end.event, end.data) == ("sys_instance_close", victim.address)
            assert end.retry is not None
            assert 1000 <= end.retry <= 5000
            assert told(scene.heard_of(device))[:2] == [
                ("device_online", "connected", victim.address),
                ("device_offline", "instance_close", victim.address),
            ]
        await scene.accepted()
