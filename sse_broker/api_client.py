"""A small client of the broker's own HTTP API, for the command line. It knows the contract, not the broker."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from sse_broker.errors import StartError

# Between two tries: at first, and at most.
RETRY_SECONDS = (1.0, 30.0)
# A frame of a megabyte with a prefix for each of its lines.
MAX_LINE_BYTES = 16 * 1024 * 1024
FINAL = ("sys_kick_offline", "sys_extrude_offline")

# Nobody answers, or the connection broke.
_AWAY = (aiohttp.ClientError, OSError, TimeoutError)


class TryAgain(StartError):
    """What failed may go well later, in `after_seconds` at the earliest where the broker said so."""

    def __init__(self, message: str, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; `id` is None for the broker's own."""

    id: int | None
    name: str
    data: str


class ApiClient:
    """Calls one broker; errors are `StartError` with the broker's own words. `pauses`: seconds between tries, as above."""

    def __init__(self, url: str, key: str = "", *, pauses: tuple[float, float] = RETRY_SECONDS) -> None:
        self._pauses = pauses
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
        """Return the result of an endpoint. Raises: StartError when it is refused, TryAgain when that may pass."""
        assert self._session is not None
        try:
            async with self._session.post(self._url + path, json=dict(fields), headers=self._headers) as response:
                answer = await self._answer(response)
        except (*_AWAY, ValueError) as error:  # ValueError: what can be no address or no header
            raise TryAgain(f"{self._url} does not answer as a broker: {error or type(error).__name__}") from None
        if answer["code"] != 1:
            raise _refusal(response, f"the broker refuses: {answer.get('msg')}")
        if "result" not in answer:
            raise self._no_broker(response)
        return answer["result"]

    async def events(self, uid: str, device: str, last_id: int | None) -> AsyncIterator[Event]:
        """Yield what comes on a stream, over reconnects, until it is ended for good. Raises: StartError."""
        pause, first = self._pauses[0], True
        while True:
            asked_seconds = 0.0
            try:
                # A fresh token each time: the last one may have run out.
                headers = {"X-SSE-TOKEN": await self._token(uid, device), "X-SSE-DEVICE": device}
                first = False
                if last_id is not None:
                    headers["Last-Event-ID"] = str(last_id)
                async for event in self._stream(headers):
                    pause = self._pauses[0]
                    yield event
                    last_id = last_id if event.id is None else event.id
                    if event.name in FINAL:
                        return
            except TryAgain as error:
                if first:  # the first failure is told, later ones are waited for
                    raise
                asked_seconds = error.after_seconds
            except _AWAY:
                pass
            pause = await self._wait_for_broker(pause, asked_seconds)

    async def _token(self, uid: str, device: str) -> str:
        return str(await self.call("/token", {"uid": uid, "device": device}))

    async def _wait_for_broker(self, pause: float, asked_seconds: float) -> float:
        """Wait for `asked_seconds` at least and then until somebody answers; return how long to pause the next time."""
        assert self._session is not None
        while True:
            await asyncio.sleep(max(pause * random.uniform(0.5, 1), asked_seconds))
            pause = min(2 * pause, self._pauses[1])
            try:
                async with self._session.get(f"{self._url}/healthz"):
                    return pause
            except _AWAY:
                continue

    async def _answer(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """Return an answer of the API. Raises: StartError for what is none."""
        try:
            answer = await response.json()
        except (aiohttp.ContentTypeError, ValueError):
            answer = None
        if not isinstance(answer, dict) or "code" not in answer:
            raise self._no_broker(response)
        return answer

    def _no_broker(self, response: aiohttp.ClientResponse) -> StartError:
        what = f"status {response.status}, {response.content_type}"
        return _refusal(response, f"{self._url} does not answer as a broker: {what}")

    async def _stream(self, headers: Mapping[str, str]) -> AsyncIterator[Event]:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(f"{self._url}/events", headers=headers, timeout=timeout) as response:
            if response.status != 200:
                answer = await self._answer(response)
                raise _refusal(response, f"the broker refuses the stream: {answer.get('msg')}")
            if response.content_type != "text/event-stream":
                raise self._no_broker(response)
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


def _refusal(response: aiohttp.ClientResponse, message: str) -> StartError:
    if response.status != 429 and response.status < 500:
        return StartError(message)
    text = response.headers.get("Retry-After", "")
    return TryAgain(message, float(text) if text.isdecimal() else 0.0)
