"""What changes while devices are online: written in batches with its TTL, and read back without belief."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from sse_broker import redis_touches
from sse_broker.backend import Presence
from sse_broker.config import RedisConfig
from sse_broker.errors import Unavailable
from sse_broker.frame import MAX_ID
from sse_broker.presence import Device, Touch
from sse_broker.redis_client import RedisClient
from sse_broker.redis_keys import touch
from sse_broker.redis_touches import BATCH_DEVICES, Touches
from tests.cutting_proxy import CuttingProxy
from tests.recording import make_device
from tests.redis_servers import RedisServer
from tests.waiting import until

HEARTBEAT = 10.0


@pytest.fixture
async def touches(proxy: CuttingProxy) -> AsyncIterator[Touches]:
    """Touches that run; closed at the end."""
    client = RedisClient(RedisConfig(addrs=(proxy.addr,)))
    touches = Touches(client, HEARTBEAT)
    touches.start()
    yield touches
    await touches.close()


def key_of(device: Device) -> str:
    return touch(device.device_id, device.connection_id)


async def written(touches: Touches, presences: list[Presence]) -> None:
    async def read() -> bool:
        return await touches.presences([presence.device for presence in presences]) == presences

    await until(read, what="every touch")


async def test_a_device_that_was_not_renewed_was_touched_at_its_login(touches: Touches) -> None:
    device = make_device(login_time=1_700_000_000.5)
    assert await touches.presences([device]) == [Presence(device, Touch(1_700_000_000.5, 0))]
    assert await touches.presences([]) == []


async def test_renewals_are_written_with_a_ttl_of_a_little_over_three_heartbeats(
    touches: Touches, redis_server: RedisServer
) -> None:
    presence = Presence(make_device(), Touch(1_700_000_000.123456, MAX_ID))
    touches.renew([presence])
    await written(touches, [presence])
    left = int(await redis_server.ask("PTTL", key_of(presence.device)))
    assert 3 * HEARTBEAT * 1000 < left <= 4 * HEARTBEAT * 1000


async def test_nobody_to_renew_is_no_trouble(touches: Touches, caplog: pytest.LogCaptureFixture) -> None:
    """As at a turn of the heartbeats in which the last stream has gone."""
    touches.renew([])
    await until(lambda: not touches._wanted.is_set(), what="a task that waits")
    presence = Presence(make_device(), Touch(1.0, 1))
    touches.renew([presence])
    await written(touches, [presence])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_many_renewals_go_in_batches(touches: Touches, proxy: CuttingProxy) -> None:
    pieces: list[int] = []
    proxy.watch = lambda data: pieces.append(data.count(b"EVAL"))
    presences = [Presence(make_device(f"d{at}"), Touch(1_700_000_000.0 + at, at)) for at in range(3 * BATCH_DEVICES)]
    touches.renew(presences)
    await written(touches, presences)
    assert sum(pieces) == 3, "each once, in full batches"


async def test_of_several_renewals_the_last_counts(touches: Touches) -> None:
    device = make_device()
    for number in range(1, 6):
        touches.renew([Presence(device, Touch(1_700_000_000.0, number))])
    await written(touches, [Presence(device, Touch(1_700_000_000.0, 5))])


async def test_while_redis_is_away_nobody_waits_and_what_is_new_is_written_later(
    touches: Touches, proxy: CuttingProxy
) -> None:
    await proxy.cut()
    device, later = make_device("a"), make_device("b")
    touches.renew([Presence(device, Touch(1.0, 1))])
    with pytest.raises(Unavailable):
        await asyncio.wait_for(touches.presences([device]), 5)
    await proxy.mend()
    presence = Presence(later, Touch(time.time(), 2))

    async def read() -> bool:
        touches.renew([presence])
        return await touches.presences([later]) == [presence]

    await until(read, what="a renewal after the trouble", pause_seconds=0.05)


async def test_what_waits_is_bounded(touches: Touches, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older renewals are of no use once Redis is back."""
    monkeypatch.setattr(redis_touches, "MAX_WAITING", 100)
    await proxy.cut()
    for at in range(500):
        touches.renew([Presence(make_device(f"d{at}"), Touch(1.0, 1))])
    assert len(touches._waiting) == 100


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["time", "nan", "last_frame_id", "1"], Touch(1_700_000_000.0, 0)),
        (["time", "1e300"], Touch(1_700_000_000.0, 0)),
        (["time", "soon"], Touch(1_700_000_000.0, 0)),
        (["time", "-5"], Touch(1_700_000_000.0, 0)),
        (["time", "5", "last_frame_id", "x"], Touch(1_700_000_000.0, 0)),
        (["last_frame_id", "7"], Touch(1_700_000_000.0, 7)),
        (["last_frame_id", "99999999999999999999"], Touch(1_700_000_000.0, MAX_ID)),
        (["last_frame_id", "-7"], Touch(1_700_000_000.0, 0)),
        (["unknown", "field"], Touch(1_700_000_000.0, 0)),
    ],
)
async def test_a_touch_that_can_not_be_read_is_none(
    touches: Touches, redis_server: RedisServer, fields: list[str], expected: Touch
) -> None:
    device, other = make_device("a"), make_device("b")
    await redis_server.ask("HSET", key_of(device), *fields)
    assert await touches.presences([device, other]) == [
        Presence(device, expected),
        Presence(other, Touch(other.login_time, 0)),
    ]


async def test_a_key_of_another_type_harms_no_other_device(touches: Touches, redis_server: RedisServer) -> None:
    device, other = make_device("a"), make_device("b")
    await redis_server.ask("SET", key_of(device), "text")
    touches.renew([Presence(device, Touch(1.0, 1)), Presence(other, Touch(2.0, 2))])
    await written(touches, [Presence(device, Touch(device.login_time, 0)), Presence(other, Touch(2.0, 2))])
