"""Clients that read nothing, read slowly, or vanish, on brokers of a cluster: nobody else waits for them, and they miss
nothing.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from tests.event_client import Api, EventClient
from tests.faults import HEARTBEAT_SECONDS, MAX_BUFFER_BYTES, Stage
from tests.lifetimes import started
from tests.recorder import Recorder
from tests.waiting import until

SLACK_SECONDS = 2.5
TEXT = "x" * 60_000
# More than the kernel takes besides, and several pages.
REPLAY_FRAMES = 140


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Two brokers."""
    yield from started(Stage(2))


class Place:
    """A user with devices at both brokers of a stage, somebody who sends to it, and a presence listener."""

    def __init__(self, stage: Stage, api: Api, recorder: Recorder, stack: AsyncExitStack) -> None:
        self.stage, self.api, self.recorder, self._stack = stage, api, recorder, stack
        self.uid = uuid.uuid4().hex[:8]
        self.sent: list[str] = []

    async def stream(self, name: str, *, at: int = 0, **options: object) -> EventClient:
        """Open a stream of a device."""
        client = self.stage.brokers[at].client(self.uid, f"{self.uid} {name}", **options)
        self._stack.push_async_callback(client.close)
        return await client.open()

    async def send(self, text: str = TEXT, **to: str) -> None:
        """Send a frame, to the user if to nobody else."""
        data = f"{len(self.sent)} {text}"
        answer = await self.api.send(data, **(to or {"uid": self.uid}))
        assert answer.status == 200, answer
        self.sent.append(data)

    def offline(self, name: str) -> list[tuple[str, float]]:
        """Return reason and time of each end of a device that was announced."""
        device = f"{self.uid} {name}"
        heard = self.recorder.heard or ()
        return [(one.reason, one.at) for one in heard if one.device == device and one.channel == "device_offline"]


@pytest.fixture
async def place(stage: Stage) -> AsyncIterator[Place]:
    """A place of one's own."""
    await stage.heal()
    async with AsyncExitStack() as stack:
        recorder = Recorder()
        stack.push_async_callback(recorder.stop)
        await recorder.listen(await stack.enter_async_context(stage.redis.client()))
        yield Place(stage, await stack.enter_async_context(stage.brokers[0].api()), recorder, stack)


def texts(client: EventClient) -> list[str | None]:
    """Return the data of all frames that a client has seen, after checking that their ids rise."""
    ids = [frame.id or 0 for frame in client.frames]
    assert all(sooner < later for sooner, later in pairwise(ids))
    return [frame.data for frame in client.frames]


async def test_a_client_that_never_reads_is_closed_and_keeps_nobody_waiting(place: Place) -> None:
    """At the bound, or when the kernel gives up on it; it comes back with its last id and has everything."""
    stalled = await place.stream("stalled", receive_buffer_bytes=4096)
    near, far = await place.stream("near"), await place.stream("far", at=1)
    await place.send("first")
    assert (await stalled.next_frame()).data == place.sent[0]
    stalled.stop_reading()
    longest = 0.0
    while not place.offline("stalled"):
        start = time.monotonic()
        await place.send()
        for client in (near, far):
            await client.wait_for(lambda event: event.data == place.sent[-1])
        longest = max(longest, time.monotonic() - start)
        assert len(place.sent) < 1000
    assert [reason for reason, _ in place.offline("stalled")] == ["heartbeat_fail"]
    assert longest < 1 + SLACK_SECONDS
    await place.send("last")
    again = await place.stream("stalled", at=1, last_id=stalled.last_id)
    await again.wait_for(lambda event: event.data == place.sent[-1])
    assert texts(stalled) + texts(again) == texts(near) == texts(far) == place.sent


async def test_a_client_that_vanishes_is_noticed_within_three_heartbeats(place: Place) -> None:
    """No FIN, no reset, nothing: as when a phone loses its network."""
    gone, there = await place.stream("gone"), await place.stream("there")
    await place.send("first")
    await gone.next_frame()
    gone.vanish()
    start = time.monotonic()
    await until(lambda: place.offline("gone"), seconds=3 * HEARTBEAT_SECONDS + SLACK_SECONDS)
    reason, at = place.offline("gone")[0]
    assert reason == "heartbeat_fail"
    assert at - start < 3 * HEARTBEAT_SECONDS + 0.5
    assert (await place.api.info(device=gone.device)).result["online"] is False
    await place.send("second")
    await there.wait_for(lambda event: event.data == place.sent[-1])
    back = await place.stream("gone", at=1, last_id=gone.last_id)
    assert (await back.next_frame()).data == place.sent[-1]


async def keep(place: Place, name: str, count: int) -> int:
    """Have a device come, go and be sent so many frames while it is away; return its last id."""
    client = await place.stream(name)
    await place.send("first")
    last_id = (await client.next_frame()).id
    assert last_id is not None
    await client.close()
    for _ in range(count):
        await place.send()
    return last_id


async def read_slowly(client: EventClient, count: int) -> None:
    """Read in bits, with pauses between, until so many frames are there."""
    while len(client.frames) < count:
        client.resume_reading()
        wanted = min(len(client.frames) + 2, count)
        await client.wait_for(lambda _: len(client.frames) >= wanted)  # noqa: B023
        client.stop_reading()
        await asyncio.sleep(0.03)
    client.resume_reading()


async def test_a_replay_of_more_than_the_bound_to_a_slow_reader_completes(place: Place) -> None:
    """The bound is on what waits in the broker, not on what a client has missed. Live frames follow in order."""
    assert REPLAY_FRAMES * len(TEXT) > 20 * MAX_BUFFER_BYTES
    last_id = await keep(place, "slow", REPLAY_FRAMES)
    client = await place.stream("slow", last_id=last_id, receive_buffer_bytes=4096)
    client.stop_reading()
    live = asyncio.create_task(_send_some(place, 10))
    await read_slowly(client, REPLAY_FRAMES)
    await live
    await client.wait_for(lambda event: event.data == place.sent[-1])
    assert texts(client) == place.sent[1:]
    assert [event.event for event in client.system] == ["sys_connected"]


async def _send_some(place: Place, count: int) -> None:
    for _ in range(count):
        await place.send()


async def test_a_replay_goes_on_when_redis_was_away_in_the_middle(place: Place) -> None:
    """Nothing of it comes twice, and the stream stays open."""
    last_id = await keep(place, "slow", REPLAY_FRAMES)
    client = await place.stream("slow", last_id=last_id, receive_buffer_bytes=4096)
    client.stop_reading()
    await place.stage.redis.kill()
    reading = asyncio.create_task(read_slowly(client, REPLAY_FRAMES))
    await until(lambda: len(client.frames) > 1, what="some of the replay")
    await until(lambda: _refused(place), what="a send that is refused")
    assert not reading.done(), "the replay was read before Redis was away"
    await place.stage.redis.start()
    await reading
    await place.send("live")
    await client.wait_for(lambda event: event.data == place.sent[-1])
    assert texts(client) == place.sent[1:]


async def _refused(place: Place) -> bool:
    return (await place.api.send("into the void", uid="nobody")).status == 503
