"""A small client of the broker's own HTTP API, for the command line. It knows the contract, not the broker."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from sse_broker.errors import StartError

RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
# A frame of a megabyte with a prefix for each of its lines.
MAX_LINE_BYTES = 16 * 1024 * 1024
FINAL = ("sys_kick_offline", "sys_extrude_offline")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; `id` is None for the broker's own."""

    id: int | None
    name: str
    data: str


class ApiClient:
    """Calls one broker; errors are `StartError` with the broker's own words."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(read_bufsize=MAX_LINE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, path: str, fields: Mapping[str, Any]) -> Any:
        """Return the result of an endpoint. Raises: StartError when it is refused or nobody answers."""
        assert self._session is not None
        try:
            async with self._session.post(self._url + path, json=dict(fields), headers=self._headers) as response:
                answer = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise StartError(f"{self._url} does not answer as a broker: {error or type(error).__name__}") from None
        if answer.get("code") != 1:
            raise StartError(f"the broker refuses: {answer.get('msg')}")
        return answer["result"]

    async def events(self, uid: str, device: str, last_id: int | None) -> AsyncIterator[Event]:
        """Yield what comes on a stream, over reconnects, until it is ended for good. Raises: StartError."""
        pause = RETRY_SECONDS
        while True:
            # A fresh token each time: the last one may have run out. The first failure is told, later ones waited for.
            headers = {"X-SSE-TOKEN": await self.call("/token", {"uid": uid, "device": device}), "X-SSE-DEVICE": device}
            if last_id is not None:
                headers["Last-Event-ID"] = str(last_id)
            try:
                async for event in self._stream(headers):
                    pause = RETRY_SECONDS
                    yield event
                    last_id = last_id if event.id is None else event.id
                    if event.name in FINAL:
                        return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            pause = await self._wait_for_broker(pause)

    async def _wait_for_broker(self, pause: float) -> float:
        assert self._session is not None
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, MAX_RETRY_SECONDS)
            try:
                async with self._session.get(f"{self._url}/healthz"):
                    return pause
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue

    async def _stream(self, headers: Mapping[str, str]) -> AsyncIterator[Event]:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(f"{self._url}/events", headers=headers, timeout=timeout) as response:
            if response.status == 503:
                return
            if response.status != 200:
                raise StartError(f"the broker refuses the stream: {(await response.json()).get('msg')}")
            fields: dict[str, list[str]] = {}
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if line:
                    name, _, value = line.partition(":")
                    fields.setdefault(name, []).append(value.removeprefix(" "))
                    continue
                if "data" in fields:
                    number = fields.get("id")
                    name = fields.get("event", ["message"])[-1]
                    yield Event(int(number[-1]) if number else None, name, "\n".join(fields["data"]))
                fields = {}
