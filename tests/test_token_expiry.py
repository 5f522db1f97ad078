"""Streams that end with their token, when that is configured, and only then."""

from __future__ import annotations

import asyncio

from tests.broker_process import SECRET
from tests.served import Serve
from tests.waiting import until

SOON = {"sse": {"heartbeat_interval": 0.2}}
ENDING = SOON | {"jwt": {"end_streams": True, "secret": SECRET}}


async def test_a_stream_ends_within_a_heartbeat_of_its_tokens_end(serve: Serve) -> None:
    broker = await serve(ENDING)
    short, long = broker.mint("u", "short", ttl=2), broker.mint("u", "long", ttl=60)
    async with broker.client("u", "short", token=short) as ending, broker.client("u", "long", token=long) as staying:
        assert (await broker.api.send("both")).result == 2
        assert (await ending.next_frame()).data == "both"
        await until(lambda: len(broker.broker.registry) == 1, seconds=10, what="the end of the stream")
        await ending.wait_closed()
        assert (await broker.api.info(device="short")).result["online"] is False
        assert (await broker.api.send("one")).result == 1
        assert (await staying.next_frame()).data == "both"
        assert (await staying.next_frame()).data == "one"
    assert broker.broker.expired == 1


async def test_without_the_setting_a_stream_outlives_its_token(serve_embedded: Serve) -> None:
    broker = await serve_embedded(SOON)
    async with broker.client("u", "d", token=broker.mint("u", "d", ttl=1)) as client:
        await asyncio.sleep(2.5)  # the time itself is what is tested: the token's second, and some heartbeats
        assert (await broker.api.send("still here")).result == 1
        assert (await client.next_frame()).data == "still here"
