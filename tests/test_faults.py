"""Redis goes away, freezes, loses its data or cuts every connection, under traffic: open streams stay open, `/send` says so
instead of pretending, and afterwards everything goes on by itself, with nothing lost, doubled or silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults import Scene
from tests.redis_servers import RedisServer
from tests.waiting import until


@pytest.fixture
async def lasting_redis() -> AsyncIterator[RedisServer]:
    """A Redis that keeps its data over restarts."""
    async with RedisServer(persist=True) as server:
        yield server


async def test_a_redis_that_restarts_with_its_data_costs_no_frame_and_no_stream(lasting_redis: RedisServer) -> None:
    """Presence messages that nobody listened to while pub/sub was cut are excused, nothing else."""
    async with Scene(lasting_redis) as scene:
        with scene.recorder.fault(messages=True, after=3):
            await lasting_redis.restart()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_is_killed_and_comes_back_later_costs_no_frame(lasting_redis: RedisServer) -> None:
    """While it is away `/send` answers 503 at once; streams stay open."""
    async with Scene(lasting_redis) as scene:
        with scene.recorder.fault(messages=True, after=3):
            await lasting_redis.kill()
            await scene.refused(20)
            scene.check_streams_stayed_open()
            await lasting_redis.start()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_comes_back_empty_is_filled_again_and_the_loss_is_told(redis_server: RedisServer) -> None:
    """Frames accepted before may be lost with it, but then each stream says so."""
    async with Scene(redis_server, becomes=False) as scene:
        with scene.recorder.fault(messages=True, data=True, after=3):
            await redis_server.kill()
            await scene.refused(20)
            await redis_server.start()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()
        for device in scene.steady:
            await device.client.wait_for(lambda event: event.event == "sys_replay_gap", seconds=5)


async def test_a_redis_that_freezes_for_15_s_is_noticed_and_goes_on(redis_server: RedisServer) -> None:
    """What was asked shortly before may still be carried out; nobody was told that it was."""
    async with Scene(redis_server) as scene:
        with scene.recorder.fault(after=3):
            redis_server.freeze()
            start = asyncio.get_running_loop().time()
            await scene.refused(5)
            await until(lambda: asyncio.get_running_loop().time() - start > 15, seconds=20)
            scene.check_streams_stayed_open()
            redis_server.thaw()
            await scene.accepted()
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_connections_to_redis_that_are_cut_again_and_again_cost_nothing(redis_server: RedisServer) -> None:
    """Not even a presence message, as the listener's connection is spared."""
    async with Scene(redis_server) as scene, redis_server.client() as redis:
        for _ in range(12):
            await redis.client_kill_filter(_type="normal")
            await scene.accepted(12)
        scene.check_streams_stayed_open()
        scene.check_answers()


async def test_a_redis_that_is_flushed_under_load_is_filled_again(redis_server: RedisServer) -> None:
    """The cluster finds itself forgotten, comes back, and announces nobody twice.

    Nobody changes users here: that a device was another's before is lost too.
    """
    async with Scene(redis_server, becomes=False) as scene:
        for _ in range(3):
            with scene.recorder.fault(data=True, after=2):
                await redis_server.flush()
                await scene.accepted(30)
        scene.check_streams_stayed_open()
        scene.check_answers()
