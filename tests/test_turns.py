"""So much in one turn of the event loop: nobody is forgotten, the order stays, and others come in between."""

from __future__ import annotations

import asyncio
import itertools

from sse_broker.turns import Turns


async def test_the_first_go_on_at_once_and_the_others_in_order() -> None:
    turns = Turns(asyncio.get_running_loop(), 3)
    waiting = [turns.take() for _ in range(10)]
    assert waiting[:3] == [None] * 3
    done: list[int] = []
    for number, turn in enumerate(waiting):
        if turn is not None:
            turn.add_done_callback(lambda _, number=number: done.append(number))  # type: ignore[misc]
    seen = []
    for _ in range(6):
        seen.append(len(done))
        await asyncio.sleep(0)
    assert done == [3, 4, 5, 6, 7, 8, 9]
    assert all(after - before <= 3 for before, after in itertools.pairwise(seen)), "three in a turn"


async def test_who_gave_up_takes_no_place() -> None:
    turns = Turns(asyncio.get_running_loop(), 1)
    assert turns.take() is None
    first, second = turns.take(), turns.take()
    assert first is not None
    assert second is not None
    first.cancel()
    await asyncio.wait_for(second, 1)


async def test_when_nobody_waits_the_next_go_on_at_once() -> None:
    turns = Turns(asyncio.get_running_loop(), 1)
    for _ in range(3):
        assert turns.take() is None
        await asyncio.sleep(0)
        await asyncio.sleep(0)
