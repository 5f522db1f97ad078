"""The broker: one instance's node, registry, delivery and heartbeats over a backend. It owns what happens to a stream from
its joining to its end, and what a back end may ask. It knows no HTTP library and no Redis.
"""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager

from sse_broker import system_events
from sse_broker.backend import Backend, Joined, Page, Presence
from sse_broker.delivery import Delivery
from sse_broker.envelope import Envelope, FrameEnvelope
from sse_broker.errors import Unavailable
from sse_broker.heartbeats import Heartbeats
from sse_broker.log_lines import HotLog
from sse_broker.presence import Device, Instance, Reason, Touch, device_id_of
from sse_broker.registry import Registry
from sse_broker.stream import Stream, Transport
from sse_broker.target import Message, Sent, Target
from sse_broker.tokens import Claims
from sse_broker.traffic import Traffic
from sse_broker.version import VERSION

log = logging.getLogger(__name__)
stream_log = HotLog(log)

# Streams that read from the logs at the same time after envelopes were missed.
CATCH_UP_STREAMS = 32
RETRY_SECONDS = 0.5


class Broker:
    """One instance. `start` and `close` own everything that runs in it."""

    def __init__(
        self,
        backend: Backend,
        *,
        address: str,
        heartbeat_seconds: float,
        max_buffer_bytes: int,
        max_streams: int = 0,
        end_expired: bool = False,
    ) -> None:
        self.backend = backend
        self.instance = Instance(os.urandom(8).hex(), address, VERSION, time.time())
        self.registry = Registry()
        self.traffic = Traffic()
        self.delivery = Delivery(self.registry, self.traffic)
        self.draining = False
        self._heartbeats = Heartbeats(heartbeat_seconds, self._renew)
        self._heartbeat_seconds = heartbeat_seconds
        self._max_buffer_bytes = max_buffer_bytes
        self._max_streams = max_streams
        self._end_expired = end_expired
        self.expired = 0
        self._catching_up: set[asyncio.Task[None]] = set()
        self._catch_up_failed = False

    # --- life ---

    async def start(self) -> None:
        """Begin to deliver. Raises: StartError when the backend is out of reach."""
        self.delivery.start()
        await self.backend.start(self.instance, self)
        self._heartbeats.start()

    async def drain(self, seconds: float) -> None:
        """Refuse new streams, end every open one with a word, and wait at most `seconds` for the clients to take it."""
        self.draining = True
        streams = tuple(self.registry)
        address = self.instance.address
        for stream in streams:
            self.registry.remove(stream)
            self.backend.leave(stream.device, Reason.INSTANCE_CLOSE, address)
        try:
            for start in range(0, len(streams), 250):
                for stream in streams[start : start + 250]:
                    self.delivery.finish(stream)
                    stream.end(system_events.end(Reason.INSTANCE_CLOSE, address), Reason.INSTANCE_CLOSE)
                await asyncio.sleep(0)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not all(stream.gone for stream in streams):
                await asyncio.sleep(0.02)
        finally:  # also when nobody wants to wait any longer
            for stream in streams:
                if not stream.gone:
                    stream.abort(Reason.INSTANCE_CLOSE)

    async def close(self) -> None:
        """End every task; streams must have been drained."""
        while self._catching_up:
            for task in self._catching_up:
                task.cancel()
            await asyncio.gather(*self._catching_up, return_exceptions=True)
        await self._heartbeats.close()
        await self.backend.close()
        await self.delivery.close()

    # --- streams ---

    def new_stream(self, claims: Claims, device_name: str, client_address: str, *, chunked: bool) -> Stream:
        """Return a stream that has not joined yet. Raises: Unavailable when draining or full."""
        if self.draining:
            raise Unavailable("this instance is shutting down; connect again, another one will answer")
        if self._max_streams and len(self.registry) >= self._max_streams:
            raise Unavailable("this instance holds as many streams as it may; try again later", 5)
        device = Device(
            uid=claims.uid,
            device_id=device_id_of(device_name),
            device_name=device_name,
            connection_id=os.urandom(8).hex(),
            device_address=client_address,
            instance_id=self.instance.id,
            instance_address=self.instance.address,
            login_time=time.time(),
            token_digest=claims.digest,
            token_expires_at=claims.expires_at,
        )
        return Stream(device, chunked=chunked, max_buffer_bytes=self._max_buffer_bytes)

    async def join(self, stream: Stream, last_id: int | None) -> Joined:
        """Register a stream as holding and make its device present. Raises: Unauthorized, Unavailable."""
        self.registry.add(stream)
        try:
            joined = await self.backend.join(stream.device, last_id)
        except BaseException:
            self.registry.remove(stream)
            raise
        if self.draining:
            self.leave(stream)
            raise Unavailable("this instance is shutting down; connect again, another one will answer")
        return joined

    def leave(self, stream: Stream, reason: Reason = Reason.DISCONNECT) -> None:
        """Forget a stream and remove its presence, if another has not done so."""
        if self.registry.remove(stream):
            self.backend.leave(stream.device, reason)

    async def run(
        self, stream: Stream, transport: Transport, joined: Joined, last_id: int | None, head: bytes = b""
    ) -> None:
        """Open a joined stream on its transport: say so, replay, go live. Return when it is live or over.

        `head` is what has to be written first: the head of the response.
        """
        device = stream.device
        stream_log.info("stream open: user %s, device %s, %s", device.uid, device.device_name, device.device_address)
        stream.begin(last_id, joined.id)
        stream.attach(transport, system_events.connected(device.device_address), self._lost, head)
        self._heartbeats.add(stream)
        self.traffic.opened += 1
        self.traffic.resumed += last_id is not None
        if last_id is not None and last_id > joined.id:
            # An id that this data set never gave, so lost with another: waiting for a greater one could take for ever.
            stream.write_block(system_events.replay_gap(last_id, joined.id))
            stream.begin(None, joined.id)
        if last_id is not None or stream.overflowed:
            await self._replay(stream, joined.page)
        # The replay has read everything up to the joining; what was held from before it is for a former user's eyes.
        if joined.id > stream.last_id:
            stream.last_id = joined.id
        if held := stream.go_live():
            self.delivery.count(held)

    def _lost(self, stream: Stream) -> None:
        reason = stream.end_reason or Reason.DISCONNECT
        self.traffic.offline[reason] += 1
        self.leave(stream, reason)
        if stream.failure is not None:
            log.warning("a stream failed: %s", stream.failure)
        stream_log.info("stream closed: user %s, device %s, %s", stream.device.uid, stream.device.device_name, reason)

    async def _replay(self, stream: Stream, page: Page) -> None:
        """Write pages until none is left, as fast as the client reads."""
        told_id = 0
        while not stream.ended:
            if page.gap_id > told_id:
                # Told again when more was dropped while a slow client was reading.
                told_id = page.gap_id
                self.traffic.gaps += 1
                oldest_id = next((frame.id for frame in page.frames if frame.id > told_id), told_id + 1)
                stream.write_block(system_events.replay_gap(stream.last_id, oldest_id))
            for frame in page.frames:
                if stream.paused:
                    await self._writable(stream)
                self.traffic.replayed_frames += stream.replay(frame)
            if not page.more:
                if not stream.overflowed:
                    return
                stream.drop_held()
            page = await self._next_page(stream)

    async def _next_page(self, stream: Stream) -> Page:
        while not stream.ended:
            try:
                return await self.backend.replay(stream.device, stream.last_id)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
        return Page()

    async def _writable(self, stream: Stream) -> None:
        """Wait until the client has read on; give up on one that reads nothing for two heartbeats."""
        loop = asyncio.get_running_loop()
        while stream.paused:
            backlog_bytes = stream.backlog_bytes
            woken = asyncio.Event()
            stream.when_writable(woken.set)
            # Not `asyncio.timeout`, which wants a task around it: on the short way there may be none yet.
            timer = loop.call_later(2 * self._heartbeat_seconds, woken.set)
            try:
                await woken.wait()
            finally:
                timer.cancel()
            if stream.paused and stream.backlog_bytes >= backlog_bytes:
                stream.abort(Reason.HEARTBEAT_FAIL)

    def _renew(self, streams: Sequence[Stream]) -> None:
        if self._end_expired:
            now = time.time()
            for stream in streams:
                if stream.device.token_expires_at <= now:
                    self._expire(stream)
            streams = [stream for stream in streams if not stream.ended]
        self.backend.renew([Presence(stream.device, self._touch(stream)) for stream in streams])

    def _expire(self, stream: Stream) -> None:
        """End a stream whose token has expired; its client comes back with another one, or is refused."""
        self.expired += 1
        self.delivery.finish(stream)
        self.leave(stream)
        stream.end(system_events.expired(), Reason.DISCONNECT)

    @staticmethod
    def _touch(stream: Stream) -> Touch:
        written = stream.last_id if stream.last_id > stream.floor_id else stream.asked_id
        return Touch(time.time(), written)

    # --- the bus (see `Receiver`) ---

    def receive(self, envelope: Envelope) -> None:
        """Take the next envelope from the bus."""
        if isinstance(envelope, FrameEnvelope):
            if envelope.device_ids is None:
                self.delivery.to_everyone(envelope.frame)
            else:
                self.delivery.to_devices(envelope.frame, envelope.device_ids)
            return
        stream = self.registry.connection(envelope.connection_id)
        if stream is not None:
            self.registry.remove(stream)
            self.delivery.finish(stream)
            stream.end(system_events.end(envelope.reason, envelope.payload), envelope.reason)

    def devices(self) -> Sequence[Device]:
        """Return the devices whose streams are open here or about to be."""
        return [stream.device for stream in self.registry]

    async def room(self) -> None:
        """Wait until the next envelopes may come."""
        await self.delivery.room()

    def missed(self, after_id: int) -> None:
        """Have every live stream catch up from the logs."""
        self.traffic.catch_ups += 1
        self._catch_up_failed = False
        after_id = self.delivery.done_up_to(after_id)
        streams = [stream for stream in self.registry if stream.hold(after_id)]
        self._own(self._catch_up_all(streams))

    async def _catch_up_all(self, streams: list[Stream]) -> None:
        left = iter(streams)

        async def worker() -> None:
            for stream in left:
                with self._failing(stream):
                    page = await self._next_page(stream)
                    # A client that reads slowly must not keep those behind it waiting.
                    self._own(self._catch_up(stream, page))

        await asyncio.gather(*(worker() for _ in range(CATCH_UP_STREAMS)))

    async def _catch_up(self, stream: Stream, page: Page) -> None:
        with self._failing(stream):
            await self._replay(stream, page)
            self.delivery.count(stream.go_live())

    @contextmanager
    def _failing(self, stream: Stream) -> Iterator[None]:
        """End a stream that can not catch up, whatever the error: holding for ever, it would lack everything from now on."""
        try:
            yield
        except Exception as error:
            if not self._catch_up_failed:  # the same error may meet thousands
                self._catch_up_failed = True
                log.exception("a stream can not catch up; its client has to come back")
            stream.fail(error)

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="catch up")
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    # --- what a back end asks ---

    async def send(self, messages: Sequence[Message]) -> list[Sent]:
        """Publish messages. Raises: Unavailable."""
        try:
            sent = await self.backend.publish(messages)
        except Unavailable:
            self.traffic.refused_messages += len(messages)
            raise
        self.traffic.messages += len(sent)
        return sent

    @property
    def loop_lag_seconds(self) -> float:
        """By how many seconds the event loop was late at most in the last minute."""
        return self._heartbeats.lag_seconds

    async def kick(self, target: Target, data: str) -> int:
        """End the streams of some users and devices; return how many devices were online. Raises: Unavailable."""
        return await self.backend.kick(target, data)

    async def device(self, device_id: str) -> Presence | None:
        """Return a device if it is online. Raises: Unavailable."""
        presence = await self.backend.device(device_id)
        return presence and self._fresh(presence)

    async def user(self, uid: str) -> list[Presence]:
        """Return a user's online devices, oldest login first. Raises: Unavailable."""
        return [self._fresh(presence) for presence in await self.backend.user(uid)]

    def _fresh(self, presence: Presence) -> Presence:
        """For a stream of this instance, what it knows is newer than what it stored last."""
        stream = self.registry.connection(presence.device.connection_id)
        if stream is None:
            return presence
        return Presence(presence.device, Touch(presence.touch.time, self._touch(stream).last_frame_id))
