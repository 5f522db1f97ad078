"""What the contract suite of the backends stands on: instances over a backend of any kind, and what they hear.

A `Site` is one cluster, empty at first, on a kind of backend; a `Node` is one instance of it, with a receiver that only
writes down. A test that is written with these runs over every kind.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import pytest
from redis.asyncio import Redis

from sse_broker.backend import Backend, Joined, Page, Presence
from sse_broker.config import Config, JwtConfig, RedisConfig, SseConfig
from sse_broker.envelope import EndEnvelope, Envelope, FrameEnvelope
from sse_broker.frame import Frame
from sse_broker.memory import MemoryBackend
from sse_broker.presence import (
    DEVICE_OFFLINE,
    DEVICE_ONLINE,
    USER_OFFLINE,
    USER_ONLINE,
    Device,
    Instance,
    Reason,
    Touch,
    device_id_of,
)
from sse_broker.redis_backend import RedisBackend
from sse_broker.redis_keys import shard_key
from sse_broker.target import Message, Sent, Target
from tests.redis_servers import RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.waiting import until

Servers = RedisServer | SentinelSet | RedisCluster
CHANNELS = (DEVICE_ONLINE, DEVICE_OFFLINE, USER_ONLINE, USER_OFFLINE)
MARK = "tests_mark"


class Clock:
    """The time of an embedded backend: the real one, moved by `offset_seconds`."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_seconds


class Node:
    """One instance: its backend, and everything that its receiver is told, in order."""

    def __init__(self, backend: Backend, address: str) -> None:
        self.backend = backend
        self.instance = Instance(uuid.uuid4().hex[:16], address, "1.0", time.time())
        self.envelopes: list[Envelope] = []
        self.missed_after: list[int] = []
        self.streams: dict[str, Device] = {}
        self.closed = False

    # --- the receiver ---

    def receive(self, envelope: Envelope) -> None:
        """Write down; a stream that has ended is here no more."""
        self.envelopes.append(envelope)
        if isinstance(envelope, EndEnvelope):
            self.streams.pop(envelope.connection_id, None)

    def devices(self) -> Sequence[Device]:
        """Return the devices whose streams are here."""
        return list(self.streams.values())

    async def room(self) -> None:
        """There is always room."""

    def missed(self, after_id: int) -> None:
        """Write down."""
        self.missed_after.append(after_id)

    # --- what a broker does ---

    async def start(self) -> None:
        """Start the backend."""
        await self.backend.start(self.instance, self)

    async def close(self) -> None:
        """Close the backend, once."""
        if not self.closed:
            self.closed = True
            await self.backend.close()

    def device(self, name: str = "d", uid: str = "u", **fields: Any) -> Device:
        """Return a device with a new stream of this instance."""
        values: dict[str, Any] = {
            "uid": uid,
            "device_id": device_id_of(name),
            "device_name": name,
            "connection_id": uuid.uuid4().hex[:16],
            "device_address": f"203.0.113.9:{40000 + len(self.streams)}",
            "instance_id": self.instance.id,
            "instance_address": self.instance.address,
            "login_time": time.time(),
        }
        return Device(**values | fields)

    async def open(self, device: Device, last_id: int | None = None) -> Joined:
        """Join a device; it counts as here from just before, as in the broker."""
        self.streams[device.connection_id] = device
        try:
            return await self.backend.join(device, last_id)
        except BaseException:
            self.streams.pop(device.connection_id, None)
            raise

    async def join(self, name: str = "d", uid: str = "u", **fields: Any) -> Device:
        """Open a new stream of a device and return the device."""
        device = self.device(name, uid, **fields)
        await self.open(device)
        return device

    def leave(self, device: Device, reason: Reason = Reason.DISCONNECT, payload: str = "") -> None:
        """End a stream of this instance."""
        self.streams.pop(device.connection_id, None)
        self.backend.leave(device, reason, payload)

    async def send(
        self, data: str = "x", *, users: Sequence[str] = (), names: Sequence[str] = (), event: str = ""
    ) -> Sent:
        """Publish one message to users and devices (by name), or to everyone."""
        target = Target(tuple(users), tuple(map(device_id_of, names)))
        (sent,) = await self.backend.publish([Message(target, event, data)])
        return sent

    async def kick(self, data: str = "", *, users: Sequence[str] = (), names: Sequence[str] = ()) -> int:
        """Kick users and devices (by name)."""
        return await self.backend.kick(Target(tuple(users), tuple(map(device_id_of, names))), data)

    async def replay(self, device: Device, last_id: int, page: Page | None = None) -> tuple[list[Frame], bool]:
        """Read everything after an id, page by page as a broker does; return the frames, and whether a gap was told."""
        page = page or await self.backend.replay(device, last_id)
        frames, gap = list(page.frames), page.gap
        for _ in range(1000):
            if not page.more:
                return frames, gap
            page = await self.backend.replay(device, frames[-1].id if frames else last_id)
            frames += page.frames
        raise AssertionError("the replay does not end")

    async def touch(self, device: Device, at: float, last_frame_id: int) -> None:
        """Renew a device, and wait until that is known."""
        self.backend.renew([Presence(device, Touch(at, last_frame_id))])

    # --- what was heard ---

    def heard(self, device: Device) -> list[Frame]:
        """Return the frames that came by the bus for a device."""
        return [
            envelope.frame
            for envelope in self.envelopes
            if isinstance(envelope, FrameEnvelope)
            and (envelope.device_ids is None or device.device_id in envelope.device_ids)
        ]

    @property
    def frames(self) -> list[FrameEnvelope]:
        """The envelopes with frames."""
        return [envelope for envelope in self.envelopes if isinstance(envelope, FrameEnvelope)]

    @property
    def ends(self) -> list[EndEnvelope]:
        """The envelopes that end a stream."""
        return [envelope for envelope in self.envelopes if isinstance(envelope, EndEnvelope)]


class Site:
    """A cluster of one kind. `servers` is None for the embedded kind."""

    def __init__(self, servers: Servers | None) -> None:
        self.servers = servers
        self.clock = Clock()
        self.nodes: list[Node] = []
        self._heard: list[dict[str, Any]] = []
        self._marks = 0
        self._stack = AsyncExitStack()
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.servers is not None:
            await self._subscribe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._stack.aclose()

    # --- instances ---

    def config(self, **sse: Any) -> Config:
        """Return a broker's configuration for this site's Redis."""
        assert self.servers is not None
        table = self.servers.config
        redis = RedisConfig(**table | {"addrs": tuple(table["addrs"])})
        return Config(redis=redis, sse=SseConfig(**sse), jwt=JwtConfig(secret=secrets.token_hex(32)))

    def backend(
        self, *, max_frames: int = 100, expire_seconds: float = 3600, heartbeat_seconds: float = 15, addr: str = ""
    ) -> Backend:
        """Return a new backend; `addr` is another way to the Redis (through a proxy)."""
        if self.servers is None:
            memory = MemoryBackend(max_frames=max_frames, expire_seconds=expire_seconds, clock=self.clock)
            memory.listeners.append(
                lambda message: self._heard.append({"channel": message.channel} | json.loads(message.to_json()))
            )
            return memory
        config = self.config(
            heartbeat_interval=heartbeat_seconds,
            device_frame_cache_size=max_frames,
            device_frame_cache_expire=expire_seconds,
        )
        if addr:
            config = Config(redis=RedisConfig(addrs=(addr,)), sse=config.sse, jwt=config.jwt)
        return RedisBackend(config)

    async def node(self, **options: Any) -> Node:
        """Start an instance; an embedded site has one at a time."""
        if self.servers is None and any(not node.closed for node in self.nodes):
            pytest.skip("the embedded backend has one instance")
        node = Node(self.backend(**options), f"127.0.0.1:{8080 + len(self.nodes)}")
        self.nodes.append(node)
        await node.start()
        return node

    # --- hearing ---

    async def heard_all(self) -> None:
        """Wait until every instance has what was published so far, by a frame that comes behind it."""
        live = [node for node in self.nodes if not node.closed]
        sent = await live[0].send("mark")
        for node in live:
            await until(
                lambda node=node: any(envelope.frame.id == sent.id for envelope in node.frames),
                what="the last frame on the bus",
            )

    async def messages(self) -> list[dict[str, Any]]:
        """Return the presence messages since the last call, once every change so far is made and was announced."""
        for node in self.nodes:
            if not node.closed:
                await node.backend.counts()  # behind every leave
        if self.servers is not None:
            self._marks += 1
            await self.raw.publish(MARK, self._marks)
            await until(lambda: self._seen_mark >= self._marks, what="the mark on the subscription")
        heard, self._heard[:] = list(self._heard), []
        return heard

    async def changes(self) -> list[tuple[str, str, str, str, str]]:
        """Return `messages` in short: channel, device name, uid, reason, payload."""
        return [
            (
                message["channel"].removeprefix("sse_topic_"),
                message["device_name"],
                message["uid"],
                message["reason"],
                message["payload"],
            )
            for message in await self.messages()
        ]

    async def _subscribe(self) -> None:
        server = self.servers
        if isinstance(server, SentinelSet):
            server = await server.master()
        elif isinstance(server, RedisCluster):
            # On the server where the scripts publish, so that the mark can not overtake.
            server = await server.owner(await server.slot_of(shard_key("id")))
        assert isinstance(server, RedisServer)
        self._announcer: Redis = await self._stack.enter_async_context(server.client())
        self.raw: Redis = await self._stack.enter_async_context(server.client(decode_responses=False))
        await self.resubscribe()

    async def resubscribe(self) -> None:
        """Listen to presence on a new connection; what was announced while none was there is not heard."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        self._seen_mark = 0
        subscription = self._announcer.pubsub()
        await self._stack.enter_async_context(subscription)
        await subscription.subscribe(*CHANNELS, MARK)
        self._listener = asyncio.create_task(self._listen(subscription), name="presence listener")

    async def _listen(self, subscription: Any) -> None:
        async for message in subscription.listen():
            if message["type"] != "message":
                continue
            if message["channel"] == MARK:
                self._seen_mark = int(message["data"])
            else:
                self._heard.append({"channel": message["channel"]} | json.loads(message["data"]))

    # --- time ---

    async def clock_goes_back(self, seconds: float) -> None:
        """Turn back the clock that ids come from.

        A Redis server's can not be turned; but the id key says up to when ids were given, and moving that ahead leaves
        the server where it would be after its clock went back.
        """
        if self.servers is None:
            self.clock.offset_seconds -= seconds
        else:
            await self.raw.incrby(shard_key("id"), int(seconds * 1_000_000))

    async def begin_long_ago(self) -> None:
        """Have the data set begin long ago, so that an id may be old without being of a lost one. Before any node."""
        if self.servers is None:
            self.clock.offset_seconds = -1e6
        else:
            await self.raw.set(shard_key("id"), 1)
            await self.raw.set(shard_key("epoch"), 1)

    def catch_up_with_the_present(self) -> None:
        """End `begin_long_ago` for an embedded backend."""
        self.clock.offset_seconds = 0


async def stop_beating(node: Node) -> None:
    """Have an instance give no more sign of life; to the others it is dead. Its bus, which begins behind a beat, goes on."""
    bus = node.backend._bus  # type: ignore[attr-defined]
    await until(lambda: bus.following, what="the bus")
    await node.backend._cluster.close()  # type: ignore[attr-defined]


async def online(node: Node, name: str) -> bool:
    """Tell whether an instance knows a device to be online."""
    return await node.backend.device(device_id_of(name)) is not None


async def offline(node: Node, name: str) -> bool:
    """Tell whether an instance knows a device to be offline."""
    return not await online(node, name)
