"""Clients that fail on the embedded backend (docs/contract.md, section 7): one that reads nothing, one that vanishes. Those of a
cluster: test_client_faults.
"""

from __future__ import annotations

import time

import pytest

from tests.event_client import Api
from tests.served import Serve
from tests.waiting import until

HEARTBEAT = 1.0


async def offline(api: Api, device: str, *, seconds: float = 10) -> None:
    """Wait until a device is not online any more."""

    async def gone() -> bool:
        return not (await api.info(device=device)).result["online"]

    await until(gone, seconds=seconds, what=f"{device} offline")


async def test_a_client_that_vanishes_is_noticed_within_three_heartbeats(serve_embedded: Serve) -> None:
    """No FIN, no reset, no acknowledgement: only silence."""
    broker = await serve_embedded({"sse": {"heartbeat_interval": HEARTBEAT}})
    client, other = await broker.client("u", "d").open(), await broker.client("u", "e").open()
    start = time.monotonic()
    client.vanish()
    await offline(broker.api, "d", seconds=20)
    assert time.monotonic() - start < 3 * HEARTBEAT + 1.5  # what a busy machine may add
    assert not other.closed
    assert (await broker.api.send("x", uid="u")).result == 1
    assert (await other.next_frame()).data == "x"
    await client.close()
    await other.close()


async def test_a_client_that_does_not_read_is_dropped_and_resumes(
    serve_embedded: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """At the bound of its buffer; meanwhile nobody else waits for it; with its last id it misses nothing."""
    caplog.set_level("INFO", "sse_broker.broker")
    broker = await serve_embedded({"sse": {"heartbeat_interval": 30}})
    slow = await broker.client("u", "slow", receive_buffer_bytes=4096).open()
    async with broker.client("u", "quick") as quick:
        await broker.api.send("first", uid="u")
        last_id = (await slow.next_frame()).id
        slow.stop_reading()
        sent = 0
        while (await broker.api.info(device="slow")).result["online"]:
            assert sent < 60, "ten times its bound and still open"
            assert (await broker.api.send(f"{sent} " + "x" * 200_000, uid="u")).result in (1, 2)
            await quick.wait_for(lambda event, number=sent: str(event.data).startswith(f"{number} "), seconds=5)  # type: ignore[misc]
            sent += 1
        assert "stream closed: user u, device slow, heartbeat_fail" in caplog.messages[-1]
        async with broker.client("u", "slow", last_id=last_id) as again:
            for number in range(sent):
                assert str((await again.next_frame()).data).startswith(f"{number} ")
            assert [event.event for event in again.system] == ["sys_connected"]
    await slow.close()
