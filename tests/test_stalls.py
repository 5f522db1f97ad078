"""What is noticed of a machine that keeps processes waiting."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ChildProcess
from tests.stalls import stalls_noted, waited_seconds
from tests.waiting import until

BUSY = "while True: pass"


class Stalls:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, float]] = []

    def note(self, start: float, end: float) -> None:
        """Write down."""
        self.noted.append((start, end))


@pytest.fixture
def starved(tmp_path: Path) -> Iterator[ChildProcess]:
    """A process that would run and hardly can: two others have its processor."""
    processor = max(os.sched_getaffinity(0))
    children = [
        ChildProcess(["nice", "-n", niceness, sys.executable, "-c", BUSY], tmp_path / f"{number}.txt")
        for number, niceness in enumerate(("19", "0", "0"))
    ]
    for child in children:
        os.sched_setaffinity(child.pid, {processor})
    yield children[0]
    for child in children:
        child.signal(9)
        child._process.wait()


async def test_a_standstill_of_this_process_is_noted_with_its_time() -> None:
    stalls = Stalls()
    async with stalls_noted(stalls.note):
        start = time.monotonic()
        asyncio.get_running_loop().call_soon(time.sleep, 1.2)
        await until(lambda: stalls.noted)
    ((began, ended),) = stalls.noted
    assert start - 0.1 < began < start + 0.1
    assert start + 1.2 <= ended < start + 2


async def test_a_process_that_gets_no_processor_is_noted(starved: ChildProcess) -> None:
    stalls, start = Stalls(), time.monotonic()
    async with stalls_noted(stalls.note, lambda: [starved.pid]):
        await until(lambda: stalls.noted, seconds=20, what="the stall")
    began, ended = stalls.noted[0]
    assert start - 1 < began < ended <= time.monotonic()


async def test_a_process_that_is_stopped_or_sleeps_waits_for_nothing(tmp_path: Path) -> None:
    """That is a fault of a test, or of the program."""
    child = ChildProcess([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "output.txt")
    try:
        child.freeze()
        before = waited_seconds(child.pid)
        await asyncio.sleep(1.2)
        assert waited_seconds(child.pid) - before < 0.5
    finally:
        await child.kill()
    assert waited_seconds(child.pid) == 0
