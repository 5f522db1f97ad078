"""What an operator should know of a Redis before a broker relies on it: is it there, new enough, and set up to keep what it
acknowledged. It only asks; findings are pairs of a level (ok, advice, wrong) and a sentence.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from sse_broker.config import RedisConfig
from sse_broker.redis_client import RedisClient
from sse_broker.redis_connection import FAILURES, REFUSALS

SECONDS = 5.0
# Exact trimming by id, exclusive ranges and absolute expiry: all scripts need them.
OLDEST = (6, 2)
SLOW_SECONDS = 0.005


async def redis_findings(config: RedisConfig) -> list[tuple[str, str]]:
    """Look at the server that has the broker's keys."""
    client = RedisClient(config)
    try:
        connection = await client.connect()
        try:
            started = time.monotonic()
            await connection.call([("PING",)], SECONDS)
            seconds = time.monotonic() - started
            info = (await connection.call([("INFO", "everything")], SECONDS))[0]
        finally:
            connection.drop()
    except REFUSALS as error:
        return [("wrong", f"Redis refuses the connection: {error}")]
    except FAILURES as error:
        return [("wrong", f"Redis is out of reach: {error or type(error).__name__}")]
    if isinstance(info, ResponseError):
        return [("ok", "Redis answers"), ("advice", f"Redis does not say how it is set up: {info}")]
    fields = _fields(info)
    return [*_reach(fields, seconds), *_memory(fields), *_persistence(fields)]


def _fields(info: Any) -> dict[str, str]:
    text = info.decode() if isinstance(info, bytes) else str(info)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def _reach(fields: Mapping[str, str], seconds: float) -> Iterator[tuple[str, str]]:
    version = fields.get("valkey_version") or fields.get("redis_version", "0")
    name = "Valkey" if "valkey_version" in fields else "Redis"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        yield "wrong", f"{name} {version} is too old: 6.2 or newer is needed"
    else:
        yield "ok", f"{name} {version} answers in {seconds * 1000:.1f} ms"
    if seconds > SLOW_SECONDS:
        yield "advice", "Redis is far away: every send and connect waits for a round trip"


def _memory(fields: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    policy = fields.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield "wrong", f"maxmemory-policy is {policy}: Redis may drop routes and frames; set noeviction"
    elif fields.get("maxmemory", "0") == "0":
        yield "advice", "maxmemory is not set: a full machine ends Redis, where a limit would only refuse sends"


def _persistence(fields: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if fields.get("aof_enabled") != "1":
        yield (
            "advice",
            "appendonly is off: a restart of Redis loses what was kept for replay, and clients hear of a gap",
        )
    if fields.get("role") == "master" and fields.get("connected_slaves", "0") == "0":
        yield "advice", "the master has no replica: while it is away, sends are refused"
