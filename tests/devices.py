"""A device that behaves like a real one: it keeps a stream open, comes back with its last id, and records what it saw."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from tests.event_client import EventClient
from tests.history import Attempt, End, Gap, Seen, Session

ENDS = {"sys_kick_offline": End.KICK, "sys_extrude_offline": End.EXTRUDE, "sys_instance_close": End.INSTANCE_CLOSE}


@dataclass(slots=True)
class Visit:
    """One request for a stream, and what came of it."""

    client: EventClient
    url: str
    uid: str
    asked_id: int | None
    at: float = field(default_factory=time.monotonic)
    status: int = 0
    vanished_at: float = inf

    @property
    def opened_at(self) -> float:
        """When `sys_connected` was read; inf if it was not."""
        system = self.client.system
        return system[0].seen_at if system and system[0].event == "sys_connected" else inf

    @property
    def heard_at(self) -> float:
        """When anything was read last; when it was asked for, if nothing was."""
        events, heartbeats = self.client.events[-1:], self.client.heartbeat_times[-1:]
        return max([self.at, *heartbeats, *(event.seen_at for event in events)])

    @property
    def cursor(self) -> int | None:
        """The last id that a client of this stream would come back with."""
        return self.client.last_id if self.client.frames else self.asked_id

    def record(self, device: str) -> Session | Attempt | None:
        """Return what the judge needs of it; None if the broker refused it for good."""
        client = self.client
        if self.opened_at == inf:
            return None if 400 <= self.status < 500 else Attempt(device, self.uid, self.at)
        gaps = [event for event in client.system if event.event == "sys_replay_gap"]
        end = End.OPEN
        if self.vanished_at < inf:
            end = End.VANISHED
        elif client.closed:
            end = ENDS.get(client.system[-1].event, End.DROPPED if client.closed == "local" else End.LOST)
        return Session(
            device,
            self.uid,
            self.at,
            self.opened_at,
            self.url.partition("://")[2],
            self.asked_id,
            [Seen(event.id or 0, event.data or "", event.event, event.seen_at) for event in client.frames],
            [Gap(**json.loads(event.data or ""), at=event.seen_at) for event in gaps],
            min(client.closed_at if client.closed else inf, self.vanished_at),
            end,
        )


class Device:
    """An agent that keeps a stream open at one of `urls` from `start` to `stop`, whatever happens to it.

    `token(uid, name)`, plain or async, gives a fresh token for each request. When a stream ends, it waits a random time
    within `pause_seconds` and comes back with its last id, somewhere. `visits` hold everything it saw, `statuses` the
    answers that opened no stream (0: no connection).

    May be set at any time: `silence_seconds`, after which a stream that shows not even a heartbeat is given up, as one
    whose network broke; `longest_retry_seconds`, up to which it waits as the broker's last `retry:` says.
    """

    def __init__(
        self,
        name: str,
        uid: str,
        urls: Sequence[str],
        token: Callable[[str, str], str | Awaitable[str]],
        *,
        draw: random.Random | None = None,
        pause_seconds: tuple[float, float] = (0.02, 0.2),
        http: str = "1.1",
    ) -> None:
        self.name, self.uid, self.urls = name, uid, urls
        self.silence_seconds, self.longest_retry_seconds = inf, 0.0
        self.visits: list[Visit] = []
        self.statuses: Counter[int] = Counter()
        self._token, self._pause_seconds, self._http = token, pause_seconds, http
        self._draw = draw or random.Random()
        self._current: Visit | None = None
        self._next_url = ""
        self._forgets = False
        self._cursor: int | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    # What it is told

    def start(self) -> None:
        """Begin to connect."""
        self._wanted.set()
        self._task = asyncio.create_task(self._live(), name=f"device {self.name}")
        self._watch = asyncio.create_task(self._give_up_silent(), name=f"silence of device {self.name}")

    async def stop(self) -> None:
        """Close everything for good."""
        tasks = [task for task in (self._task, self._watch) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(visit.client.close() for visit in self.visits))
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def drop(self, *, abrupt: bool = False, stay_away: bool = False) -> None:
        """Close the stream from this end; come back by itself unless it is to stay away until `come_back`."""
        if stay_away:
            self._wanted.clear()
        if self._current:
            await self._current.client.close(abrupt=abrupt)

    def retire(self) -> None:
        """Stay, but do not come back once the present stream is over, until `come_back`."""
        self._wanted.clear()

    def come_back(self) -> None:
        """Connect again after staying away."""
        self._wanted.set()

    async def vanish(self) -> None:
        """Lose the network without a FIN, and come back from elsewhere."""
        visit = self._current
        if visit and visit.opened_at < inf and not visit.client.closed:
            visit.client.vanish()
            visit.vanished_at = time.monotonic()

    async def move(self, url: str = "") -> None:
        """Open a stream, at `url` or anywhere, while the old one is still open, which is then extruded."""
        if self.connected:
            await self._visit(url or self._draw.choice(self.urls))

    def prefer(self, url: str) -> None:
        """Go to this URL the next time."""
        self._next_url = url

    def become(self, uid: str) -> None:
        """Come as another user the next time, with the same last id."""
        self.uid = uid

    def forget(self) -> None:
        """Come without a last id the next time."""
        self._forgets = True

    # What it knows

    @property
    def connected(self) -> bool:
        """Whether its present stream is open and was heard."""
        visit = self._current
        return bool(visit and visit.opened_at < inf and not visit.client.closed and visit.vanished_at == inf)

    @property
    def client(self) -> EventClient:
        """The client of its present stream."""
        assert self._current
        return self._current.client

    @property
    def last_id(self) -> int | None:
        """The id that it would come back with."""
        if self._current and self._current.opened_at < inf:
            self._cursor = self._current.cursor
        return None if self._forgets else self._cursor

    def has_seen(self, data: str) -> bool:
        """Whether any of its streams showed a frame with this data."""
        return any(event.data == data for visit in reversed(self.visits) for event in reversed(visit.client.frames))

    def state(self) -> str:
        """Return in words how it stands, for a message."""
        visit = self._current
        if visit is None:
            return f"never connected, answers {dict(self.statuses)}"
        stands = "connected" if self.connected else f"closed ({visit.client.closed or 'vanished'})"
        task = "" if self._task and not self._task.done() else f", its task is over: {self._task}"
        return (
            f"{stands} as {visit.uid} at {visit.url}, visit {len(self.visits)}, last id {self.last_id}, "
            f"{len(visit.client.frames)} frames, last events {visit.client.events[-2:]!r:.300}, "
            f"wanted {self._wanted.is_set()}, answers {dict(self.statuses)}{task}"
        )

    def records(self) -> tuple[list[Session], list[Attempt]]:
        """Return its sessions and attempts so far."""
        records = [visit.record(self.name) for visit in self.visits]
        sessions = [record for record in records if isinstance(record, Session)]
        return sessions, [record for record in records if isinstance(record, Attempt)]

    # Its life

    async def _live(self) -> None:
        while True:
            await self._wanted.wait()
            url, self._next_url = self._next_url or self._draw.choice(self.urls), ""
            await self._visit(url)
            while self.connected:
                await self._stay()
            await asyncio.sleep(max(self._draw.uniform(*self._pause_seconds), self._retry_seconds()))

    def _retry_seconds(self) -> float:
        """How long the present or last stream asks to wait, as far as this device cares."""
        events = self._current.client.events if self._current else []
        retry_ms = next((event.retry for event in reversed(events) if event.retry is not None), 0)
        return min(retry_ms / 1000, self.longest_retry_seconds)

    async def _stay(self) -> None:
        """Return at the latest when the present stream is over; it may be replaced meanwhile."""
        visit = self._current
        assert visit
        try:
            await visit.client.wait_closed(seconds=0.25)
        except AssertionError:
            if visit.client.closed == "violation":
                raise

    async def _give_up_silent(self) -> None:
        """Close streams that show nothing; also one that was moved away from, and does not hear that it is over."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            for visit in self.visits:
                open_ = visit.opened_at < inf and not visit.client.closed and visit.vanished_at == inf
                if open_ and now - visit.heard_at > self.silence_seconds:
                    visit.vanished_at = now
                    await visit.client.close()

    async def _visit(self, url: str) -> None:
        asked_id, uid = self.last_id, self.uid
        token = self._token(uid, self.name)
        try:
            if inspect.isawaitable(token):
                token = await token
        except Exception:
            self.statuses[0] += 1
            return
        client = EventClient(url, token=token, device=self.name, last_id=asked_id, http=self._http)
        visit = Visit(client, url, uid, asked_id)
        self.visits.append(visit)
        try:
            visit.status = (await client.connect()).status
            if visit.status == 200:
                await client.wait_for(lambda event: event.event == "sys_connected")
                self._current, self._forgets = visit, False
                return
        except (OSError, AssertionError):
            if client.closed == "violation":
                raise
        self.statuses[visit.status] += 1
        await client.close()
