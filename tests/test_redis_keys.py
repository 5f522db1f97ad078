"""The names of the keys: the table in `sse_broker/redis_keys.py` says all that is in Redis, of which type and until when."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from redis.crc import key_slot

from sse_broker import redis_keys
from sse_broker.backend import Presence
from sse_broker.errors import Unauthorized
from sse_broker.presence import Reason, Touch, device_id_of
from sse_broker.redis_member_scripts import CLEAR, RETIRE
from tests.backends import Node, Site, stop_beating
from tests.waiting import until

HEARTBEAT = 0.6
EXPIRE = 120
# The longest that a key of each row may stay without its owner, in seconds. Rows without a number have an owner.
TTLS = {
    "node:INSTANCE": 2 * HEARTBEAT,
    "cleared:INSTANCE": 86_400,
    "log:all": EXPIRE,
    "log:u:UID": EXPIRE,
    "log:d:DEVICE:UID": EXPIRE,
    "owner:DEVICE": EXPIRE,
    "strayed:DEVICE:UID": EXPIRE,
    "revoked:DIGEST": 600,
    "done:NONCE": 10,
    "sse:device:{DEVICE}:CONNECTION": 4 * HEARTBEAT,
}
FOREVER = {"id", "epoch"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a key's name with its variable parts in capitals, and its type."""

    name: str
    type: str

    def matches(self, key: str) -> bool:
        """Whether a key is one of these."""
        name = self.name if self.name.startswith("sse:") else redis_keys.shard_key(self.name)
        parts = [part if not part.isupper() else "(?s:.*)" for part in re.split("([A-Z]+)", re.escape(name))]
        return re.fullmatch("".join(parts), key) is not None


def table() -> list[Row]:
    """Read the table of the module's docstring, and what it says below."""
    text = redis_keys.__doc__ or ""
    rows = [
        Row(name.strip(), cells[2].strip())
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| ") and "---" not in line)
        for name in cells[1].split(",")
        if name.strip() != "name"
    ]
    below = re.search(r"outside the shard, `([^`]+)`, (\w+)", text)
    assert below
    return [*rows, Row(below[1], below[2])]


def row_of(key: str) -> Row:
    """Return the one row that a key belongs to."""
    rows = [row for row in table() if row.matches(key)]
    assert len(rows) == 1, f"{key} is in {len(rows)} rows of the table"
    return rows[0]


async def found_keys(site: Site) -> dict[str, tuple[str, float]]:
    """Return every key of the server with its type and its seconds to live (-1: for ever)."""
    found = {}
    async for key in site.raw.scan_iter():
        kind, left_ms = (await site.raw.type(key)).decode(), await site.raw.pttl(key)
        if left_ms != -2:
            found[key.decode()] = (kind, left_ms / 1000 if left_ms > 0 else -1)
    return found


async def use_everything(site: Site, nodes: list[Node]) -> None:
    """Come, go, send, kick, renew, fail, be cleared: so that every kind of key is there once."""
    one, two, dead = nodes
    until_then: dict[str, Any] = {"token_expires_at": time.time() + 500}
    await one.send("early", names=["not here yet"])
    devices = [await node.join(f"{node.instance.address} {at}", f"u{at}") for node in nodes for at in range(3)]
    one.backend.renew([Presence(device, Touch(time.time(), 1)) for device in devices])
    for target in ({}, {"users": ["u0"]}, {"names": [devices[0].device_name, "nobody"]}):
        await two.send("x", **target)
    kicked = await one.join("kicked", "u9", token_digest="digest", **until_then)
    assert await two.kick("bye", names=[kicked.device_name]) == 1
    with pytest.raises(Unauthorized):
        await two.join("kicked", "u9", token_digest="digest", **until_then)
    one.leave(devices[0])
    await two.join(devices[1].device_name, "another user")
    before_the_data = two.device(devices[0].device_name, "somebody else")
    await two.open(before_the_data, 1)
    await stop_beating(dead)

    async def cleared() -> bool:
        return len(await one.backend.instances()) == 2

    await until(cleared, what="the clearing of the dead instance")
    await two.join("stays", "u0")
    one.backend.renew([Presence(device, Touch(time.time(), 1)) for device in one.devices()])


async def clear_half(one: Node, two: Node, _: Node) -> None:
    """Begin to clear an instance with several devices, and stop there."""
    for node in (one, two):
        await stop_beating(node)
    lane = one.backend._lane  # type: ignore[attr-defined]
    await lane.call(RETIRE, two.instance.id)  # which only ends its heartbeat while it holds devices
    removed, left, _ = await lane.call(CLEAR, two.instance.id, 1, "", 1000, one.instance.id, "")
    assert (removed, left) == (1, len(two.devices()) - 1)


async def _has_all(look: Callable[[], Awaitable[set[str]]], wanted: Iterable[str]) -> bool:
    return set(wanted) <= await look()


async def test_the_table_names_every_key_that_is_used_and_no_other(shared_site: Site) -> None:
    nodes = [await shared_site.node(heartbeat_seconds=HEARTBEAT, expire_seconds=EXPIRE) for _ in range(3)]
    await use_everything(shared_site, nodes)
    seen: set[str] = set()

    async def look() -> set[str]:
        for key, (kind, _) in (await found_keys(shared_site)).items():
            row = row_of(key)
            assert kind == row.type, key
            seen.add(row.name)
        return seen

    await until(lambda: _has_all(look, TTLS), what="a key of every row that has a TTL")
    await clear_half(*nodes)
    await look()
    assert seen == {row.name for row in table()}


async def test_each_key_has_a_ttl_or_an_owner_that_removes_it(shared_site: Site) -> None:
    nodes = [await shared_site.node(heartbeat_seconds=HEARTBEAT, expire_seconds=EXPIRE) for _ in range(3)]
    await use_everything(shared_site, nodes)
    for key, (_, seconds) in (await found_keys(shared_site)).items():
        limit = TTLS.get(row_of(key).name)
        assert (limit is None and seconds == -1) or (limit is not None and 0 < seconds <= limit), (key, seconds)
    for node in nodes:
        for device in node.devices():
            node.leave(device, Reason.INSTANCE_CLOSE, node.instance.address)
        await node.close()
    left = {key: seconds for key, (_, seconds) in (await found_keys(shared_site)).items()}
    assert {row_of(key).name for key, seconds in left.items() if seconds == -1} == FOREVER
    assert not [key for key in left if "inbox" in key or "held" in key or "routes" in key or "user" in key]


async def test_what_an_instance_left_behind_is_removed_by_the_others(shared_site: Site) -> None:
    """It died with devices, and nobody comes for them."""
    nodes = [await shared_site.node(heartbeat_seconds=HEARTBEAT, expire_seconds=EXPIRE) for _ in range(2)]
    await nodes[0].join("a", "ann")
    await nodes[1].send("x")
    await stop_beating(nodes[0])

    async def cleared() -> bool:
        return await nodes[1].backend.counts() == (0, 0)

    await until(cleared, what="the clearing")
    await nodes[1].close()
    left = await found_keys(shared_site)
    assert {row_of(key).name for key, (_, seconds) in left.items() if seconds == -1} == FOREVER


def test_what_changes_together_is_in_one_slot_and_what_changes_often_is_spread() -> None:
    names = ["id", "epoch", "log:all", "log:u:{x}y", "routes", "user:}{"]
    shard = {key_slot(redis_keys.shard_key(name).encode()) for name in names}
    assert shard == {key_slot(redis_keys.inbox("instance {a}").encode())}
    touches = {key_slot(redis_keys.touch(device_id_of(str(at)), "c").encode()) for at in range(200)}
    assert len(touches) > 190


def test_touches_of_one_device_s_connections_are_two_keys_in_one_slot() -> None:
    old, new = redis_keys.touch("device", "old"), redis_keys.touch("device", "new")
    assert old != new
    assert key_slot(old.encode()) == key_slot(new.encode())
