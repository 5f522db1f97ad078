"""When an instance beats, clears, joins again and compares. How is the backend's matter (tests/test_backend_cluster.py);
here a membership only writes down what it is asked to do, and answers what the test says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from sse_broker.cluster import Beat, Cluster
from sse_broker.errors import Unavailable
from sse_broker.presence import Device
from tests.recording import make_device
from tests.waiting import until

HEARTBEAT = 0.06
WELL = Beat(known=True, cleared=False, epoch=1, device_count=0, dead=())


class Members:
    """A membership that answers `beat` with `answer`, or fails while `away`."""

    def __init__(self) -> None:
        self.answer = WELL
        self.away = False
        self.broken = False
        self.beats: list[tuple[float, float]] = []
        self.calls: list[tuple[object, ...]] = []
        self.devices: list[Device] = []
        self.left_again = 0

    async def beat(self, ttl_seconds: float) -> Beat:
        self.beats.append((time.monotonic(), ttl_seconds))
        self._fail()
        return self.answer

    def leave_again(self) -> None:
        self.left_again += 1

    async def clear(self, instance_id: str) -> int:
        self._fail()
        self.calls.append(("clear", instance_id))
        self.answer = replace(self.answer, dead=tuple(one for one in self.answer.dead if one != instance_id))
        return 1

    async def rejoin(self, *, announce: bool) -> None:
        self._fail()
        self.calls.append(("rejoin", announce))

    async def compare(self, devices: Sequence[Device]) -> None:
        self._fail()
        self.calls.append(("compare", list(devices)))

    def local_devices(self) -> Sequence[Device]:
        return self.devices

    def _fail(self) -> None:
        if self.away:
            raise Unavailable("Redis is out of reach")
        if self.broken:
            raise RuntimeError("unexpected")

    async def some_beats(self, count: int = 3) -> None:
        """Wait for some more heartbeats, each of which is done with before the next."""
        wanted = len(self.beats) + count
        await until(lambda: len(self.beats) >= wanted, what=f"{count} heartbeats")


Start = Callable[[Members], Awaitable[Cluster]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """A function that starts a cluster over a membership; each is closed at the end."""
    clusters: list[Cluster] = []

    async def run(members: Members) -> Cluster:
        cluster = Cluster(members, HEARTBEAT)
        clusters.append(cluster)
        await cluster.start()
        assert members.calls.pop() == ("rejoin", False)
        return cluster

    yield run
    for cluster in clusters:
        await cluster.close()


async def test_an_instance_is_a_member_before_the_start_is_over(start: Start) -> None:
    members = Members()
    await start(members)
    assert len(members.beats) == 1
    assert members.calls == []


async def test_a_start_out_of_reach_says_so(start: Start) -> None:
    members = Members()
    members.away = True
    with pytest.raises(Unavailable):
        await start(members)


async def test_it_beats_several_times_while_a_heartbeat_lives(start: Start) -> None:
    members = Members()
    await start(members)
    await members.some_beats(6)
    ttl = members.beats[0][1]
    assert ttl == pytest.approx(2 * HEARTBEAT)
    spans = sorted(later - sooner for (sooner, _), (later, _) in zip(members.beats, members.beats[1:], strict=False))
    assert spans[0] < ttl / 3


async def test_a_well_cluster_is_left_alone(start: Start) -> None:
    members = Members()
    members.devices = [make_device()]
    members.answer = replace(WELL, device_count=1)
    await start(members)
    await members.some_beats(6)
    assert members.calls == []


async def test_who_left_unsaid_is_said_to_have_left_once_presence_is_right(start: Start) -> None:
    members = Members()
    await start(members)
    members.answer = replace(WELL, known=False)
    await members.some_beats(3)
    said = members.left_again
    await members.some_beats(3)
    assert members.left_again == said, "not while this instance is no member"
    members.answer = WELL
    await until(lambda: members.left_again > said, what="word of those who left")


async def test_the_dead_are_cleared_once(start: Start) -> None:
    members = Members()
    await start(members)
    members.answer = replace(WELL, dead=("one", "two"))
    await members.some_beats(4)
    assert members.calls == [("clear", "one"), ("clear", "two")]


async def test_who_had_trouble_itself_judges_nobody_for_a_while(start: Start) -> None:
    """When Redis was frozen every heartbeat has expired, and everybody is alive."""
    members = Members()
    await start(members)
    members.away = True
    await members.some_beats(2)
    members.answer = replace(WELL, dead=("one",))
    members.away = False
    failed_at, _ = members.beats[-1]
    await until(lambda: members.calls, what="the clearing in the end")
    assert time.monotonic() - failed_at > 2 * HEARTBEAT
    assert members.calls[0] == ("clear", "one")


async def test_a_new_connection_beats_at_once_and_judges_nobody(start: Start) -> None:
    members = Members()
    cluster = Cluster(members, 60)
    await cluster.start()
    members.calls.clear()
    try:
        members.answer = replace(WELL, dead=("one",))
        cluster.hurry()
        await until(lambda: len(members.beats) == 2, seconds=0.9, what="a heartbeat long before its time")
        cluster.hurry()
        await until(lambda: len(members.beats) == 3, seconds=0.9, what="and again")
        assert members.calls == []
    finally:
        await cluster.close()


@pytest.mark.parametrize(
    ("answer", "announce"),
    [
        (replace(WELL, cleared=True), True),
        (replace(WELL, known=False), False),
        (replace(WELL, known=False, cleared=True), True),
        (replace(WELL, epoch=2), False),
    ],
    ids=["cleared", "forgotten", "both", "data lost"],
)
async def test_an_instance_that_lost_its_place_joins_its_devices_again(
    start: Start, answer: Beat, announce: bool
) -> None:
    """They were announced as gone when it was cleared, and only then are they announced as back."""
    members = Members()
    members.devices = [make_device()]
    members.answer = replace(WELL, device_count=1)
    await start(members)
    members.answer = replace(answer, device_count=1)
    await until(lambda: members.calls, what="the joining")
    members.answer = replace(WELL, device_count=1, epoch=answer.epoch)
    await members.some_beats()
    assert members.calls[0] == ("rejoin", announce)
    assert {call[0] for call in members.calls} == {"rejoin"}


async def test_a_joining_that_failed_is_made_up_for_with_its_announcements(start: Start) -> None:
    """Once it is a member again, the word that it was cleared is gone."""
    members = Members()
    members.devices = [make_device()]
    await start(members)
    failed = asyncio.Event()

    async def fail_once(*, announce: bool) -> None:
        members.rejoin = type(members).rejoin.__get__(members)  # type: ignore[method-assign]
        members.answer = replace(WELL, epoch=2, device_count=1)
        failed.set()
        raise Unavailable("Redis is out of reach")

    members.rejoin = fail_once  # type: ignore[method-assign]
    members.answer = replace(WELL, cleared=True, device_count=1)
    await failed.wait()
    await until(lambda: members.calls, what="the joining")
    await members.some_beats()
    assert members.calls == [("rejoin", True)]


async def test_both_sides_are_compared_when_their_numbers_differ_for_some_beats(
    start: Start,
) -> None:
    """Not at once: a join or a leave may be on its way."""
    members = Members()
    members.devices = [make_device()]
    await start(members)
    await until(lambda: members.calls, what="the comparison")
    assert members.calls[0] == ("compare", members.devices)
    assert len(members.beats) >= 4, "that of the start, and three more"


async def test_numbers_that_differ_now_and_then_are_no_reason(start: Start) -> None:
    members = Members()
    await start(members)
    for at in range(8):
        members.answer = replace(WELL, device_count=at % 2)
        await members.some_beats(1)
    assert members.calls == []


@pytest.mark.parametrize("trouble", ["away", "broken"])
async def test_trouble_ends_no_heartbeat(start: Start, trouble: str) -> None:
    members = Members()
    await start(members)
    setattr(members, trouble, True)
    await members.some_beats(3)
    setattr(members, trouble, False)
    await members.some_beats(3)


async def test_closing_ends_the_task_and_what_never_started_can_be_closed() -> None:
    members = Members()
    cluster = Cluster(members, HEARTBEAT)
    await cluster.close()
    await cluster.start()
    await cluster.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cluster"]
