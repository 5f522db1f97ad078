"""Five readers of an event stream that share no code with the broker, nor with each other, and a broker that they all read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
import httpx
import httpx_sse
from aiohttp_sse_client2 import client as sse_client2  # type: ignore[import-untyped]
from playwright.async_api import Page

from tests.broker_process import BrokerProcess
from tests.event_client import Api

MIB = 1024 * 1024
PATIENCE_SECONDS = 20


def as_read(data: str) -> str:
    """Return what a reader gets for data: its lines, joined by LF."""
    return re.sub("\r\n|\r", "\n", data)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as sent, or as read; a frame without an event name is a `message`."""

    event: str
    data: str


class Reader:
    """One way of reading a stream. `limit` is the longest line that it can take, in characters."""

    name = ""
    limit = 16 * MIB

    async def open(self, broker: BrokerProcess, uid: str) -> None:
        """Open a stream for the user."""
        raise NotImplementedError

    async def expect(self, events: Sequence[str]) -> None:
        """Prepare for events with these names."""

    async def take(self, count: int) -> list[tuple[str, Frame]]:
        """Return the next so many frames with their ids."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the stream."""
        raise NotImplementedError

    def understood(self, frame: Frame) -> Frame:
        """Return what this reader should make of a frame as sent: its lines joined by LF, and where it breaks the
        standard by itself, what it is known to make of that.
        """
        return Frame(frame.event or "message", as_read(frame.data))


class Strict(Reader):
    """This project's parser."""

    def __init__(self, http: str) -> None:
        self.name, self.http = f"HTTP/{http}", http

    async def open(self, broker: BrokerProcess, uid: str) -> None:
        self.client = await broker.client(uid, self.name, http=self.http).open()

    async def take(self, count: int) -> list[tuple[str, Frame]]:
        frames = [await self.client.next_frame(seconds=PATIENCE_SECONDS) for _ in range(count)]
        return [(str(frame.id), Frame(frame.event, str(frame.data))) for frame in frames]

    async def close(self) -> None:
        await self.client.close()


class Queued(Reader):
    """A reader whose library is an endless iterator: a task fills a queue."""

    async def open(self, broker: BrokerProcess, uid: str) -> None:
        self.queue: asyncio.Queue[tuple[str, Frame]] = asyncio.Queue()
        self.connected = asyncio.Event()
        url = broker.base_url + "/events"
        headers = {"X-SSE-TOKEN": broker.mint(uid, self.name), "X-SSE-DEVICE": self.name}
        self.task = asyncio.create_task(self.run(url, headers), name=self.name)
        await asyncio.wait_for(self.connected.wait(), PATIENCE_SECONDS)

    async def run(self, url: str, headers: dict[str, str]) -> None:
        """Read until cancelled."""
        raise NotImplementedError

    def put(self, id_: str, event: str, data: str) -> None:
        """Queue a frame; the system's events only tell that the stream is open."""
        if event.startswith("sys_"):
            self.connected.set()
        else:
            self.queue.put_nowait((id_, Frame(event, data)))

    async def take(self, count: int) -> list[tuple[str, Frame]]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [await self.queue.get() for _ in range(count)]

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.result()


class Httpx(Queued):
    """httpx-sse."""

    name = "httpx-sse"

    async def run(self, url: str, headers: dict[str, str]) -> None:
        last_id = ""
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            async with httpx_sse.aconnect_sse(client, "GET", url, headers=headers) as source:
                async for event in source.aiter_sse():
                    # It takes the blank line behind a heartbeat's comment for an event of its own, with the last id.
                    if event.id != last_id or event.event.startswith("sys_"):
                        self.put(event.id, event.event, event.data)
                    last_id = event.id


class SseClient2(Queued):
    """aiohttp-sse-client2."""

    name = "aiohttp-sse-client2"
    limit = 60_000  # aiohttp reads lines of at most 64 KiB for it, and raises "Chunk too big"

    async def run(self, url: str, headers: dict[str, str]) -> None:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        async with session, sse_client2.EventSource(url, session=session, headers=headers) as source:
            async for event in source:
                self.put(event.last_event_id, event.type or "message", event.data)

    def understood(self, frame: Frame) -> Frame:
        # It takes away every space behind the colon, where the standard takes one, and every line end at the end of the
        # data, where the standard takes one.
        lines = [line.lstrip(" ") for line in as_read(frame.data).split("\n")]
        return Frame(frame.event.lstrip(" ") or "message", "\n".join(lines).rstrip("\n"))


class Chromium(Reader):
    """Chromium's EventSource, in a page of the broker itself."""

    name = "chromium"
    SCRIPT = """([url]) => new Promise((resolve, reject) => {
        window.seen = []; window.names = new Set(["message"]); window.wanted = null;
        window.take = event => {
            if (event instanceof MessageEvent) window.seen.push([event.lastEventId, event.type, event.data]);
            if (window.wanted) window.wanted();
        };
        window.source = new EventSource(url);
        window.source.onmessage = window.take;
        window.source.addEventListener("sys_connected", () => resolve());
        window.source.addEventListener("error", event => { if (!(event instanceof MessageEvent)) reject("no stream"); });
    })"""
    EXPECT = """names => { for (const name of names) if (!window.names.has(name)) {
        window.names.add(name); window.source.addEventListener(name, window.take); } }"""
    TAKE = """([count, patience]) => new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject("only " + JSON.stringify(window.seen).slice(0, 2000)), patience);
        window.wanted = () => { if (window.seen.length >= count) {
            clearTimeout(timer); window.wanted = null; resolve(window.seen.splice(0, count)); } };
        window.wanted();
    })"""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def open(self, broker: BrokerProcess, uid: str) -> None:
        await self.page.goto(broker.base_url + "/")
        query = urlencode({"token": broker.mint(uid, self.name), "device": self.name})
        await self.page.evaluate(self.SCRIPT, [f"/events?{query}"])

    async def expect(self, events: Sequence[str]) -> None:
        await self.page.evaluate(self.EXPECT, [event for event in events if event])

    async def take(self, count: int) -> list[tuple[str, Frame]]:
        seen = await self.page.evaluate(self.TAKE, [count, PATIENCE_SECONDS * 1000])
        return [(id_, Frame(event, data)) for id_, event, data in seen]

    async def close(self) -> None:
        await self.page.evaluate("() => window.source.close()")


@dataclass(slots=True)
class Wire:
    """A broker, its API, and readers who are all devices of one user."""

    broker: BrokerProcess
    api: Api
    readers: list[Reader]
    uid = "wire"

    async def carry(self, frames: Sequence[Frame]) -> None:
        """Send frames to the user, and check that each reader reads them, exactly and in order, with rising ids."""
        for reader in self.readers:
            await reader.expect([frame.event for frame in frames])
        for frame in frames:
            answer = await self.api.send(frame.data, uid=self.uid, event=frame.event or None)
            assert (answer.status, answer.result) == (200, len(self.readers)), answer
        ids = None
        for reader in self.readers:
            read = await reader.take(len(frames))
            for frame, (_, got) in zip(frames, read, strict=True):
                expected = reader.understood(frame)
                assert got == expected, f"{reader.name} read {got!r:.500}, not {expected!r:.500}"
            ids = ids or [id_ for id_, _ in read]
            assert [id_ for id_, _ in read] == ids, reader.name
            assert [int(id_) for id_ in ids] == sorted({int(id_) for id_ in ids})
            assert int(ids[-1]) < 2**53

    def without(self, frames: Sequence[Frame]) -> list[str]:
        """Return the names of readers that can't take these frames for the length of a line."""
        longest = max(len(line.encode()) for frame in frames for line in as_read(frame.data).split("\n"))
        return [reader.name for reader in self.readers if longest > reader.limit]
