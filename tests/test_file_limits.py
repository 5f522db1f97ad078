"""As many streams as files may be open, by the process itself."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

from sse_broker.server import SPARE_FILES
from tests.broker_process import BrokerProcess

STREAMS = 20


async def test_no_more_streams_are_taken_than_files_may_be_open() -> None:
    limit = SPARE_FILES + STREAMS
    async with BrokerProcess(program=program(limit)) as broker, AsyncExitStack() as stack:
        for number in range(STREAMS):
            await stack.enter_async_context(broker.client("u", f"d{number}"))
        extra = broker.client("u", "one too many")
        stack.push_async_callback(extra.close)
        answer = await extra.connect()
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        async with broker.api() as api:
            assert (await api.send("x", uid="u")).result == STREAMS


async def test_a_process_that_may_open_hardly_any_file_does_not_start_and_says_why() -> None:
    broker = BrokerProcess(program=program(150))
    try:
        broker.launch()
        assert await broker.wait(seconds=60) == 1
        why = "only 150 files may be open, and 200 are needed beside those of streams: ulimit -n"
        assert broker.stderr_text() == f"sse-broker: {why}\n"
    finally:
        await broker.discard()


def program(limit: int) -> tuple[str, ...]:
    """Return the broker as a process that may have so many files open."""
    return ("prlimit", f"--nofile={limit}:{limit}", sys.executable, "-X", "dev", "-m", "sse_broker")
