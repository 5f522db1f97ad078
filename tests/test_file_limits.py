"""As many streams as files may be open, by the process itself."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

from sse_broker.server import SPARE_FILES
from tests.broker_process import BrokerProcess

STREAMS = 20


async def test_no_more_streams_are_taken_than_files_may_be_open() -> None:
    limit = SPARE_FILES + STREAMS
    program = ("prlimit", f"--nofile={limit}:{limit}", sys.executable, "-X", "dev", "-m", "sse_broker")
    async with BrokerProcess(program=program) as broker, AsyncExitStack() as stack:
        for number in range(STREAMS):
            await stack.enter_async_context(broker.client("u", f"d{number}"))
        extra = broker.client("u", "one too many")
        stack.push_async_callback(extra.close)
        answer = await extra.connect()
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        async with broker.api() as api:
            assert (await api.send("x", uid="u")).result == STREAMS
