"""The client of the commands against servers that answer as a script says: what is no broker, and a broker that is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from sse_broker.api_client import ApiClient, Event
from sse_broker.errors import StartError
from tests.broker_process import BrokerProcess

KEY, OTHER_KEY = "k7Rw2pXn9vBq4TzL", "z9Rw2pXn9vBq4TzL"
STREAM = b"id: %d\ndata: x\n\n"
TOKEN = {"code": 1, "msg": "success", "micro": 1, "result": "a-token"}


class Script:
    """A server that answers each path with what stands in `answers` for it, in order, the last again and again.

    `asked` are the paths and the times at which they were asked for.
    """

    def __init__(self, answers: dict[str, list[web.Response]]) -> None:
        self.url = ""
        self.asked: list[tuple[str, float]] = []
        self._answers = answers

    def times(self, path: str) -> list[float]:
        """Return when a path was asked for."""
        return [when for asked, when in self.asked if asked == path]

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer with what comes next."""
        self.asked.append((request.path, time.monotonic()))
        left = self._answers.get(request.path, [web.Response()])
        made = left.pop(0) if len(left) > 1 else left[0]
        # A response can be sent once.
        return web.Response(status=made.status, body=made.body, headers=made.headers)


@asynccontextmanager
async def served(answers: dict[str, list[web.Response]]) -> AsyncIterator[Script]:
    """Serve a script on a free port."""
    script = Script(answers)
    runner = web.ServerRunner(web.Server(script.answer))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield script
    finally:
        await runner.cleanup()


def stream(number: int, *, final: bool = False) -> web.Response:
    """Return an event stream with one frame, which ends for good or not."""
    end = b"event: sys_kick_offline\ndata: bye\n\n" if final else b""
    return web.Response(body=STREAM % number + end, content_type="text/event-stream")


def refused(status: int, **headers: str) -> web.Response:
    """Return a broker's refusal."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response({"code": status, "msg": "not now", "micro": 1, "result": ""}, status=status, headers=named)


async def heard(client: ApiClient) -> list[Event]:
    """Return all events until the end."""
    return [event async for event in client.events("u", "d", None)]


@pytest.mark.parametrize(
    "response",
    [
        web.json_response([]),
        web.json_response("success"),
        web.json_response(None),
        web.json_response({}),
        web.json_response({"code": 1}),
        web.json_response({"status": "up"}, status=500),
        web.Response(text="{", content_type="application/json"),
        web.Response(body=b"\xff", content_type="application/json"),
        web.Response(text="<h1>It works!</h1>", content_type="text/html"),
        web.Response(text="not found", status=404),
    ],
)
async def test_what_does_not_answer_as_a_broker_is_named_in_one_line(response: web.Response) -> None:
    async with served({"/info": [response]}) as script, ApiClient(script.url) as client:
        with pytest.raises(StartError) as caught:
            await client.call("/info", {})
    assert caught.value.message.startswith(f"{script.url} does not answer as a broker: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("status", [400, 401, 403, 429, 503])
async def test_a_first_token_that_is_refused_ends_the_command_with_the_brokers_words(status: int) -> None:
    async with served({"/token": [refused(status)]}) as script, ApiClient(script.url) as client:
        with pytest.raises(StartError, match=r"^the broker refuses: not now$"):
            await heard(client)


async def test_listening_survives_a_broker_that_gives_no_token_for_a_while() -> None:
    """Refusals that pass, a proxy's own words, and an answer that never comes: each is waited for and tried again."""
    answers = {
        "/token": [
            web.json_response(TOKEN),
            refused(429),
            refused(503),
            web.Response(text="<h1>502 Bad Gateway</h1>", content_type="text/html", status=502),
            web.json_response(TOKEN),
        ],
        "/events": [stream(1), stream(2, final=True)],
    }
    async with served(answers) as script, ApiClient(script.url, pauses=(0.01, 0.05)) as client:
        events = await heard(client)
    assert [event.id for event in events] == [1, 2, None]
    assert len(script.times("/token")) == 5


@pytest.mark.parametrize("path", ["/token", "/events"])
async def test_listening_comes_back_no_sooner_than_the_broker_asks(path: str) -> None:
    answers = {
        "/token": [web.json_response(TOKEN), web.json_response(TOKEN)],
        "/events": [stream(1), stream(2, final=True)],
    }
    answers[path].insert(1, refused(429, Retry_After="1"))
    async with served(answers) as script, ApiClient(script.url, pauses=(0.01, 0.05)) as client:
        assert len(await heard(client)) == 3
    before, after = script.times(path)[-2:]
    assert after - before >= 1


@pytest.mark.parametrize("path", ["/token", "/events"])
@pytest.mark.parametrize("status", [401, 403])
async def test_listening_ends_when_who_listens_is_refused(path: str, status: int) -> None:
    answers = {"/token": [web.json_response(TOKEN)], "/events": [stream(1)]}
    answers[path].append(refused(status))
    async with served(answers) as script, ApiClient(script.url, pauses=(0.01, 0.05)) as client:
        with pytest.raises(StartError, match="the broker refuses"):
            await heard(client)
    assert len(script.times(path)) == 2


async def test_a_stream_that_is_none_of_a_broker_ends_the_command() -> None:
    """A first answer tells that the address is wrong; trying again would only look like listening."""
    answers = {"/token": [web.json_response(TOKEN)], "/events": [web.Response(text="not found", status=404)]}
    async with served(answers) as script, ApiClient(script.url, pauses=(0.01, 0.05)) as client:
        with pytest.raises(StartError, match="does not answer as a broker"):
            await heard(client)


async def test_listening_goes_on_when_a_broker_was_gone_and_ends_when_its_keys_have_changed(
    run_broker: Callable[..., Awaitable[BrokerProcess]],
) -> None:
    """A real broker: killed and started again, then with another key."""
    broker = await run_broker({"api": {"keys": [KEY]}})
    async with ApiClient(broker.base_url, KEY, pauses=(0.01, 0.05)) as client:
        events = aiter(client.events("u", "d", None))
        assert (await anext(events)).name == "sys_connected"
        await broker.kill()
        await broker.start()
        assert (await anext(events)).name == "sys_connected"
        await broker.kill()
        broker.config["api"]["keys"] = [OTHER_KEY]
        await broker.start()
        with pytest.raises(StartError, match="the broker refuses: the API key is wrong"):
            await anext(events)


async def test_an_address_that_nobody_answers_at_is_named() -> None:
    async with served({}) as script:
        url = script.url
    async with ApiClient(url) as client:
        with pytest.raises(StartError, match=f"{url} does not answer as a broker: "):
            await client.call("/info", {})
