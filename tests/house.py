"""One broker over the embedded backend, its clients over recorded connections, and the presence messages that it caused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sse_broker.broker import Broker
from sse_broker.memory import MemoryBackend
from sse_broker.presence import PresenceMessage, device_id_of
from sse_broker.stream import Stream
from sse_broker.target import Message, Target
from sse_broker.tokens import Claims
from tests.event_parser import Event, EventParser
from tests.recording import RecordingTransport

HEARTBEAT = 0.2
PAD = (device_id_of("pad"),)


class Connection(RecordingTransport):
    """A transport that says when it is gone, as a loop's does; `stalled` while its client takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Stream | None = None
        self.stalled = False

    def close(self) -> None:
        """Close once the client has read, so not while it is stalled."""
        super().close()
        if not self.stalled:
            self._lost()

    def abort(self) -> None:
        """Close now."""
        super().abort()
        self._lost()

    def _lost(self) -> None:
        assert self.stream is not None
        asyncio.get_running_loop().call_soon(self.stream.connection_lost, None)


class Client:
    """A client of the broker: its stream and what it was sent."""

    def __init__(self, stream: Stream, connection: Connection) -> None:
        self.stream = stream
        self.connection = connection
        connection.stream = stream

    @property
    def events(self) -> list[Event]:
        """Everything that was written, as a client reads it."""
        return EventParser().feed(b"".join(self.connection.writes))

    @property
    def ids(self) -> list[int]:
        """The ids of the frames, in order."""
        return [event.id for event in self.events if event.id is not None]

    @property
    def names(self) -> list[str]:
        """The names of the events without an id."""
        return [event.event for event in self.events if event.id is None]

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self.stream.connection_lost(None)


class House:
    """A broker that runs, and the presence messages that it caused."""

    def __init__(self, *, max_frames: int = 100, max_buffer_bytes: int = 100_000, max_streams: int = 0) -> None:
        self.backend = MemoryBackend(max_frames=max_frames, expire_seconds=3600)
        self.heard: list[PresenceMessage] = []
        self.backend.listeners.append(self.heard.append)
        self.broker = Broker(
            self.backend,
            address="127.0.0.1:8080",
            heartbeat_seconds=HEARTBEAT,
            max_buffer_bytes=max_buffer_bytes,
            max_streams=max_streams,
        )

    def new(self, name: str = "pad", uid: str = "ann", digest: str = "") -> Client:
        """Return a client whose stream has not joined yet."""
        claims = Claims(uid, None, time.time() + 600, digest)
        return Client(self.broker.new_stream(claims, name, "203.0.113.9:40001", chunked=False), Connection())

    async def open(self, name: str = "pad", uid: str = "ann", last_id: int | None = None, digest: str = "") -> Client:
        """Open a stream as `/events` does."""
        client = self.new(name, uid, digest)
        joined = await self.broker.join(client.stream, last_id)
        await self.broker.run(client.stream, client.connection, joined, last_id)
        return client

    async def send(self, data: str = "x", **target: tuple[str, ...]) -> int:
        """Send to `users` and `devices` (ids), or to everyone; return the frame's id."""
        (sent,) = await self.broker.send([Message(Target(**target), "", data)])
        return sent.id

    async def send_many(self, count: int) -> list[int]:
        """Send frames to ann, and return their ids."""
        return [one.id for one in await self.broker.send([Message(Target(users=("ann",)), "", "x")] * count)]

    @property
    def reasons(self) -> list[str]:
        """Why devices went, in order."""
        return [message.reason for message in self.heard if message.channel == "sse_topic_device_offline"]


MakeHouse = Callable[..., Awaitable[House]]
