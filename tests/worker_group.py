"""A broker of several workers as a test sees it: its processes, its instances, and a verdict on what its clients saw."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.broker_process import BrokerProcess
from tests.devices import Device
from tests.event_client import Api
from tests.history import decide
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.waiting import until

# A start of several processes takes its time on a busy machine.
patiently = partial(until, seconds=60)
RunBroker = Callable[..., Awaitable[BrokerProcess]]
NO_SHARED_PORT = pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system can not share a port")


def tables(workers: int = 3, **server: object) -> dict[str, dict[str, object]]:
    """Return a configuration with workers and short heartbeats."""
    return {"server": {"workers": workers, **server}, "sse": {"heartbeat_interval": 1}}


def pids(broker: BrokerProcess) -> set[int]:
    """Return the processes of the workers that the kernel knows."""
    children = Path(f"/proc/{broker.pid}/task/{broker.pid}/children")
    return {int(pid) for pid in children.read_text().split()} if children.exists() else set()


async def all_serve(broker: BrokerProcess, workers: int = 3) -> None:
    """Wait until each worker has said that it serves, and is a live instance of the cluster."""
    await patiently(lambda: "demo page" in broker.stderr_text(), what="a start")
    async with broker.api() as api:
        await patiently(lambda: has_instances(api, workers), what=f"{workers} instances")


async def has_instances(api: object, workers: int) -> bool:
    """Whether the cluster has so many instances."""
    answer = await api.info()  # type: ignore[attr-defined]
    return answer.status == 200 and answer.result["instance_count"] == workers


@asynccontextmanager
async def judged(
    broker: BrokerProcess, redis_server: RedisServer, *, devices: int, workers: int
) -> AsyncIterator[tuple[Recorder, list[Device], Api]]:
    """Have devices connected, and after the block, once so many workers serve again, a verdict on all that was seen."""
    crowd = [
        Device(f"d{n}", f"u{n % 4}", [broker.base_url], broker.mint, draw=random.Random(n)) for n in range(devices)
    ]
    recorder = Recorder(crowd)
    async with broker.api() as api, redis_server.client() as redis:
        try:
            await recorder.listen(redis)
            for device in crowd:
                device.start()
            await patiently(lambda: all(device.connected for device in crowd))
            yield recorder, crowd, api
            await patiently(lambda: has_instances(api, workers), what="every instance")
            await recorder.settle(api, seconds=60)
            history = recorder.history(presence_seconds=4)
            history.online_at_end = await recorder.online(api)
        finally:
            await recorder.stop()
    assert decide(history) == []
