"""The wheel that walks the streams: silence is broken, presence renewed, a stalled end cut off."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence

import pytest

import sse_broker.heartbeats
from sse_broker.frame import HEARTBEAT
from sse_broker.heartbeats import SLOTS, Heartbeats
from sse_broker.presence import Reason
from sse_broker.stream import Stream
from sse_broker.system_events import end
from tests.recording import OpenStream, make_device
from tests.waiting import until

INTERVAL = 0.16
TICK = INTERVAL / SLOTS


class Wheel:
    """Heartbeats that run, and what they had renewed."""

    def __init__(self) -> None:
        self.renewed: list[str] = []
        self.heartbeats = Heartbeats(INTERVAL, self._renew)

    def _renew(self, streams: Sequence[Stream]) -> None:
        self.renewed += [stream.device.device_name for stream in streams]

    def add(self, name: str = "d") -> OpenStream:
        """Return an open stream that the wheel looks after."""
        one = OpenStream(make_device(name))
        self.heartbeats.add(one.stream)
        return one


@pytest.fixture
async def wheel() -> AsyncIterator[Wheel]:
    """A wheel that turns; at the end it is stopped."""
    wheel = Wheel()
    wheel.heartbeats.start()
    yield wheel
    await wheel.heartbeats.close()


def beats(one: OpenStream) -> int:
    return one.transport.writes.count(HEARTBEAT.plain)


async def test_a_silent_stream_gets_a_comment_again_and_again(wheel: Wheel) -> None:
    one = wheel.add()
    await until(lambda: beats(one) >= 3, what="three heartbeats")
    assert set(one.transport.writes) == {HEARTBEAT.plain}


async def test_a_heartbeat_follows_the_last_after_a_whole_interval(wheel: Wheel) -> None:
    one = wheel.add()
    times = []
    for number in range(1, 5):
        await until(lambda number=number: beats(one) >= number, pause_seconds=0.002, what=f"heartbeat {number}")
        times.append(time.monotonic())
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert min(gaps) > INTERVAL - 4 * TICK, "not twice an interval"


async def test_a_stream_that_writes_gets_none(wheel: Wheel) -> None:
    busy, silent = wheel.add("busy"), wheel.add("silent")

    def two_beats() -> bool:
        busy.stream.active = True  # as each write does
        return beats(silent) >= 2

    await until(two_beats, pause_seconds=0, what="two heartbeats of the other")
    assert beats(busy) == 0


async def test_each_stream_is_looked_after_wherever_it_stands_on_the_wheel(wheel: Wheel) -> None:
    streams = [wheel.add(f"d{number}") for number in range(3 * SLOTS)]
    await until(lambda: all(beats(one) for one in streams), what="a heartbeat for each")
    await until(lambda: set(wheel.renewed) == {f"d{number}" for number in range(3 * SLOTS)}, what="each renewed")


async def test_presence_is_renewed_once_for_each_heartbeat_of_a_silent_stream(wheel: Wheel) -> None:
    one = wheel.add()
    await until(lambda: beats(one) >= 4, what="four heartbeats")
    assert 3 <= wheel.renewed.count("d") <= 5


async def test_a_stream_that_ended_is_not_renewed_and_falls_out(wheel: Wheel) -> None:
    gone, other = wheel.add("gone"), wheel.add("other")
    gone.stream.connection_lost(None)
    await until(lambda: beats(other) >= 2, what="two turns")
    assert "gone" not in wheel.renewed
    assert gone.transport.writes == []
    assert gone.stream not in [stream for slot in wheel.heartbeats._slots for stream in slot]


async def test_a_client_that_does_not_take_the_end_is_cut_off_after_some_time(wheel: Wheel) -> None:
    one = wheel.add()
    one.stream.end(end(Reason.KICK, "bye"), Reason.KICK)
    assert one.transport.calls == ["close"]
    await until(lambda: "abort" in one.transport.calls, what="the abort")
    assert one.stream.end_reason is Reason.KICK
    assert beats(one) == 0


async def test_a_transport_that_fails_keeps_no_heartbeat_and_no_renewal_from_the_others(wheel: Wheel) -> None:
    streams = [wheel.add(f"d{number}") for number in range(4 * SLOTS)]
    for bad in streams[: 2 * SLOTS]:
        bad.transport.error = RuntimeError("the handler is closed")
    await until(lambda: all(beats(one) >= 2 for one in streams[2 * SLOTS :]), what="heartbeats of the good ones")
    assert {f"d{number}" for number in range(2 * SLOTS, 4 * SLOTS)} <= set(wheel.renewed)
    assert all("abort" in bad.transport.calls for bad in streams[: 2 * SLOTS])


async def test_a_renewal_that_fails_stops_nothing() -> None:
    asked: list[int] = []

    def renew(streams: Sequence[Stream]) -> None:
        asked.append(len(streams))
        raise RuntimeError("no")

    heartbeats = Heartbeats(INTERVAL, renew)
    heartbeats.start()
    one = OpenStream()
    heartbeats.add(one.stream)
    try:
        await until(lambda: beats(one) >= 2 and len(asked) >= 2, what="heartbeats in spite of it")
    finally:
        await heartbeats.close()


async def test_whoever_asks_sees_that_the_loop_stood_still_and_after_a_minute_nobody(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two monitors that ask must not take it from each other."""
    monkeypatch.setattr(sse_broker.heartbeats, "LAG_WINDOW_SECONDS", 1.0)
    time.sleep(0.3)  # noqa: ASYNC251  # the loop stands still
    await until(lambda: wheel.heartbeats.lag_seconds > 0.2, what="the delay")
    assert wheel.heartbeats.lag_seconds > 0.2, "told again"
    await until(lambda: wheel.heartbeats.lag_seconds < 0.2, seconds=5, what="the end of the window")


async def test_one_task_serves_all_streams(wheel: Wheel) -> None:
    before = len(asyncio.all_tasks())
    streams = [wheel.add(f"d{number}") for number in range(200)]
    await until(lambda: beats(streams[0]) >= 1, what="a heartbeat")
    assert len(asyncio.all_tasks()) == before


async def test_after_the_close_nothing_is_written() -> None:
    wheel = Wheel()
    wheel.heartbeats.start()
    one = wheel.add()
    await until(lambda: beats(one) >= 1, what="a heartbeat")
    await wheel.heartbeats.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "heartbeats"]


async def test_closing_what_never_started_is_no_error() -> None:
    await Wheel().heartbeats.close()
