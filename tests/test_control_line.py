"""What a parent and its workers say to each other."""

from __future__ import annotations

import asyncio
import json

import pytest

from sse_broker.config import ApiConfig, Config, JwtConfig, RedisConfig, ServerConfig
from sse_broker.control_line import ALIVE, READY, ParentEnd, from_tables, to_tables
from tests.broker_process import SECRET
from tests.waiting import until


async def test_a_parent_that_stood_still_itself_takes_no_worker_for_dead() -> None:
    line, theirs = await ParentEnd.open(Config(), 1)
    with theirs:
        theirs.sendall(f"{ALIVE}\n".encode())
        hearing = asyncio.create_task(line.hear(0.2))
        deadline = asyncio.get_running_loop().time() + 0.1
        await until(lambda: asyncio.get_running_loop().time() > deadline)
        while asyncio.get_running_loop().time() < deadline + 0.3:
            pass  # the loop of the parent stands still
        theirs.sendall(f"{ALIVE}\n{READY}\n".encode())
        assert await hearing == READY
        with pytest.raises(TimeoutError):
            await line.hear(0.1)
        await line.close()


def test_a_configuration_passes_the_line_unchanged() -> None:
    config = Config(
        server=ServerConfig(workers=4, trusted_proxies=("10.0.0.0/8", "::1"), drain_seconds=2.5),
        api=ApiConfig(keys=("a-key-of-some-length", "another-of-that-kind")),
        jwt=JwtConfig(secret=SECRET, previous_secrets=(SECRET[::-1],)),
        redis=RedisConfig(addrs=("127.0.0.1:6379", "127.0.0.1:6380"), password="päss\n"),
    )
    assert from_tables(json.loads(json.dumps(to_tables(config)))) == config
