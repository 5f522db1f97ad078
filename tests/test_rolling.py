"""A rolling restart, as an upgrade is made: three brokers are asked to end and started again one after the other, while sends go
on and devices come back with their last id as the broker's `retry:` tells them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults import START_SECONDS, Scene, Stage
from tests.lifetimes import started
from tests.waiting import until

# The broker asks for up to five seconds; so the test is shorter.
LONGEST_RETRY_SECONDS = 1.2
CLOSES_MS = range(1000, 5001)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Three brokers."""
    yield from started(Stage(3))


async def test_a_rolling_restart_of_all_brokers_under_load_costs_nobody_a_frame(stage: Stage) -> None:
    """No fault is declared to the judge: nothing is lost, doubled or out of order, and every presence message is due."""
    async with Scene(stage, steady=21) as scene:
        for device in scene.recorder.devices:
            device.longest_retry_seconds = LONGEST_RETRY_SECONDS
        started = len(scene.traffic.answers)
        for broker in scene.brokers:
            hit = scene.devices_at(broker, scene.steady)
            assert hit
            visits = {device: len(device.visits) for device in hit}
            code, _ = await broker.terminate()
            assert code == 0, broker.stderr_text()[-4000:]
            await until(
                lambda visits=visits: all(d.connected and len(d.visits) > before for d, before in visits.items()),  # type: ignore[misc]
                seconds=20,
                what="every device elsewhere",
            )
            await broker.start(seconds=START_SECONDS)
            await scene.accepted(10)
        statuses = Counter(answer.status if answer else 0 for *_, answer in scene.traffic.answers[started:])
        # Those to a broker that is down have no answer, and none is refused by one that is up or on its way down.
        assert statuses.keys() <= {200, 503, 0}
        assert statuses[200] > 3 * statuses[503]
    closes = [
        event
        for device in scene.steady
        for visit in device.visits
        for event in visit.client.system
        if event.event == "sys_instance_close"
    ]
    assert len(closes) >= len(scene.steady), "each device was on a broker that was restarted"
    retries = [event.retry or 0 for event in closes]
    assert all(retry in CLOSES_MS for retry in retries), retries
    # Drawn at random for each: 21 that lie within two of the four seconds are one case in 50,000.
    assert max(retries) - min(retries) > 2000, retries
    assert len(set(retries)) > len(retries) / 2, retries
