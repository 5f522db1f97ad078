"""Redis goes away, freezes, loses its data or cuts every connection, under traffic: open streams stay open, `/send` says so
instead of pretending, and afterwards everything goes on by itself, with nothing lost, doubled or silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults import HEARTBEAT_SECONDS, Scene, Stage
from tests.lifetimes import started
from tests.waiting import until

FREEZE_SECONDS = 15


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Two brokers, which no test here starts again."""
    yield from started(Stage(2))


async def test_a_redis_that_restarts_with_its_data_costs_no_frame_and_no_stream(stage: Stage) -> None:
    """Presence messages that nobody listened to while pub/sub was cut are excused, nothing else."""
    async with Scene(stage) as scene:
        with scene.recorder.fault(messages=True, after=3):
            await scene.redis.restart()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_is_killed_and_comes_back_later_costs_no_frame(stage: Stage) -> None:
    """While it is away `/send` answers 503 at once; streams stay open."""
    async with Scene(stage) as scene:
        with scene.recorder.fault(messages=True, after=3):
            await scene.redis.kill()
            await scene.refused(20)
            scene.check_streams_stayed_open()
            await scene.redis.start()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_comes_back_empty_is_filled_again_and_the_loss_is_told(stage: Stage) -> None:
    """Frames accepted before may be lost with it, but then each stream says so."""
    async with Scene(stage, becomes=False) as scene:
        with scene.recorder.fault(messages=True, data=True, after=3):
            await stage.forget()
            await scene.refused(20)
            await scene.redis.start()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
        for device in scene.steady:
            await device.client.wait_for(lambda event: event.event == "sys_replay_gap", seconds=5)


async def test_a_redis_that_freezes_for_15_s_is_noticed_and_goes_on(stage: Stage) -> None:
    """What was asked shortly before may still be carried out; nobody was told that it was."""
    loop = asyncio.get_running_loop()
    async with Scene(stage) as scene:
        with scene.recorder.fault(after=3):
            scene.redis.freeze()
            start = loop.time()
            await scene.refused(5)
            await until(lambda: loop.time() - start > FREEZE_SECONDS, seconds=FREEZE_SECONDS + 5)
            scene.check_streams_stayed_open()
            scene.redis.thaw()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_connections_to_redis_that_are_cut_again_and_again_cost_nothing(stage: Stage) -> None:
    """Not even a presence message, as the listener's connection is spared."""
    async with Scene(stage) as scene, scene.redis.client() as redis:
        for _ in range(10):
            await redis.client_kill_filter(_type="normal")
            await scene.accepted(10)
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_is_flushed_under_load_is_filled_again(stage: Stage) -> None:
    """The cluster finds itself forgotten, comes back, and announces nobody twice.

    Nobody changes users here: that a device was another's before is lost too.
    """
    async with Scene(stage, becomes=False) as scene:
        for _ in range(3):
            with scene.recorder.fault(data=True, after=2):
                await scene.redis.flush()
                await scene.accepted(30)
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_is_full_refuses_sends_and_all_goes_on_once_it_has_room(stage: Stage) -> None:
    """Heartbeats of the instances are refused as well, and yet nobody is taken for dead afterwards."""
    loop = asyncio.get_running_loop()
    async with Scene(stage) as scene:
        with scene.recorder.fault(after=4):
            try:
                await scene.redis.ask("CONFIG", "SET", "maxmemory", "1mb")
                start = loop.time()
                await scene.refused(20)
                await until(lambda: loop.time() - start > 3 * HEARTBEAT_SECONDS, seconds=20, what="three heartbeats")
                scene.check_streams_stayed_open()
            finally:
                await scene.redis.ask("CONFIG", "SET", "maxmemory", "0")
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
        assert "cleared" not in scene.warnings()
