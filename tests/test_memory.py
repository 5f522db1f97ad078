"""The embedded backend, where it is more than the contract that it shares (tests/test_backend*.py)."""

from __future__ import annotations

import asyncio
import time

import pytest

from sse_broker.memory import MemoryBackend
from sse_broker.presence import DEVICE_OFFLINE, DEVICE_ONLINE, USER_OFFLINE, USER_ONLINE, PresenceMessage, Reason
from tests.backends import Clock, Node


@pytest.fixture
def clock() -> Clock:
    """The backend's clock."""
    return Clock()


@pytest.fixture
async def node(clock: Clock) -> Node:
    """An instance over the embedded backend that keeps five frames, for a minute."""
    node = Node(MemoryBackend(max_frames=5, expire_seconds=60, clock=clock), "127.0.0.1:8080")
    await node.start()
    return node


def backend(node: Node) -> MemoryBackend:
    assert isinstance(node.backend, MemoryBackend)
    return node.backend


async def test_a_frame_is_delivered_before_the_sender_has_its_answer(node: Node) -> None:
    device = await node.join("a", "ann")
    sent = await node.send("x", users=["ann"])
    assert [frame.id for frame in node.heard(device)] == [sent.id]


async def test_a_sender_waits_until_there_is_room(node: Node) -> None:
    gate = asyncio.Event()

    async def room() -> None:
        await gate.wait()

    node.room = room  # type: ignore[method-assign]
    sending = asyncio.create_task(node.send("x"))
    await asyncio.sleep(0)
    assert node.frames, "it is on its way"
    assert not sending.done()
    gate.set()
    assert (await sending).id == node.frames[0].frame.id


async def test_ids_rise_within_one_microsecond(node: Node, clock: Clock) -> None:
    frozen = time.time()
    clock.__class__ = type("Frozen", (Clock,), {"__call__": lambda self: frozen})
    ids = [(await node.send("x")).id for _ in range(50)]
    assert ids == list(range(ids[0], ids[0] + 50))


async def test_what_has_expired_is_forgotten(node: Node, clock: Clock) -> None:
    """Nothing grows with the number of users and devices that ever were."""
    one = backend(node)
    for number in range(50):
        device = await node.join(
            f"d{number}", f"u{number}", token_digest=f"t{number}", token_expires_at=time.time() + 30
        )
        await node.send("x", users=[f"u{number}"], names=[f"d{number}", f"never here {number}"])
        if number % 2:
            node.leave(device)
        else:
            await node.kick(names=[f"d{number}"])
    assert (len(one._logs), len(one._owners), len(one._revoked)) == (150, 50, 25)
    clock.offset_seconds = 62
    await node.send("x")
    assert (len(one._logs), len(one._owners), len(one._revoked)) == (1, 0, 0)
    assert (len(one._presences), len(one._user_devices)) == (0, 0)


async def test_what_has_not_expired_is_kept(node: Node, clock: Clock) -> None:
    one = backend(node)
    device = await node.join("a", "ann", token_digest="t", token_expires_at=time.time() + 600)
    await node.kick(names=["a"])
    clock.offset_seconds = 50
    await node.send("x", names=["a"])
    clock.offset_seconds = 100
    await node.send("y")
    assert (len(one._logs), len(one._owners), len(one._revoked)) == (2, 1, 1)
    frames, gap = await node.replay(device, 1)
    assert [frame.data for frame in frames] == ["x", "y"]
    assert gap


async def test_a_device_that_stays_keeps_its_place_however_long(node: Node, clock: Clock) -> None:
    await node.join("a", "ann")
    clock.offset_seconds = 10_000
    await node.send("x")
    assert await backend(node).counts() == (1, 1)


async def test_every_listener_hears_every_message_in_order(node: Node) -> None:
    heard: list[list[PresenceMessage]] = [[], []]
    for some in heard:
        backend(node).listeners.append(some.append)
    device = await node.join("a", "ann")
    node.leave(device, Reason.HEARTBEAT_FAIL)
    assert heard[0] == heard[1]
    assert [message.channel for message in heard[0]] == [DEVICE_ONLINE, USER_ONLINE, DEVICE_OFFLINE, USER_OFFLINE]


async def test_who_hears_a_message_finds_that_it_is_so_already(node: Node) -> None:
    """Online follows registration, offline follows removal: of the device, and of its user."""
    one = backend(node)
    seen: list[tuple[str, bool, bool]] = []

    def look(message: PresenceMessage) -> None:
        seen.append((message.channel, message.device_id in one._presences, message.uid in one._user_devices))

    one.listeners.append(look)
    device = await node.join("a", "ann")
    node.leave(device)
    assert seen == [
        (DEVICE_ONLINE, True, True),
        (USER_ONLINE, True, True),
        (DEVICE_OFFLINE, False, False),
        (USER_OFFLINE, False, False),
    ]


async def test_a_backend_that_was_not_started_lists_no_instance(clock: Clock) -> None:
    assert await MemoryBackend(max_frames=5, expire_seconds=60, clock=clock).instances() == []
