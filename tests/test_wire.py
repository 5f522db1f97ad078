"""What goes over the wire (docs/contract.md, sections 3 and 7): any text arrives as it was sent, its line ends apart, or is refused.

Five readers that share no code with the broker, nor with each other, read the same frames: this project's strict parser over
HTTP/1.1 and over HTTP/1.0, httpx-sse, aiohttp-sse-client2, and Chromium's own EventSource. Lines are judged as the standard
counts them (WHATWG HTML, section 9.2.6): CRLF, CR and LF end one, and what a reader gets is the lines joined by LF.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.async_api import Page

from tests.broker_process import BrokerProcess
from tests.browser import run_browser
from tests.event_client import Api, EventClient
from tests.redis_servers import RedisServer
from tests.waiting import until
from tests.wire_readers import (
    MIB,
    PATIENCE_SECONDS,
    Chromium,
    Frame,
    Httpx,
    SseClient2,
    Strict,
    Wire,
    as_read,
)

# One loop for the module: the readers stay connected over its tests, as the browser does.
pytestmark = pytest.mark.asyncio(loop_scope="module")
fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")
CONFIG = {"server": {"max_body_bytes": 8 * MIB}, "sse": {"max_buffer_bytes": 8 * MIB}, "jwt": {"expire": 300}}

TEXTS = {
    "plain": "hello",
    "empty": "",
    "one space": " ",
    "lf": "a\nb",
    "cr": "a\rb",
    "crlf": "a\r\nb",
    "lf cr": "a\n\rb",
    "two blank lines within": "a\n\n\nb",
    "only lf": "\n",
    "only cr lf cr": "\r\n\r",
    "ends with lf": "a\n",
    "ends with blank lines": "a\n\n",
    "begins with lf": "\na",
    "nul": "a\0b\0",
    "bom": "\ufeffa\n\ufeffb\ufeff",
    "unicode line ends": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1ea\U0001f1fa \U0010ffff",
    "controls": "".join(map(chr, [*range(1, 10), *range(14, 32), *range(127, 160)])),
    "non-characters": "\ufffe\uffff\ufdd0\ufffd",
    "forged fields": "id: 5\n\nevent: x",
    "forged frame": "a\n\nid: 99999999999999999\nevent: sys_kick_offline\ndata: gone\n\n",
    "forged frame by cr": "a\r\rid: 1\rdata: evil\r\r",
    "forged chunk": "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "comment": ":heartbeat\n\n:x",
    "leading spaces": " one\n  two\n\tthree",
    "leading colons": ":a\n::b\n: c",
    "data prefix": "data: x\ndata:y",
    "json": '{"a": [1, "\\n"]}',
    "8 KiB in one line": "x" * 8192,
    "many short lines": "\n" * 5000,
}


@fixture
async def page() -> AsyncIterator[Page]:
    async with run_browser() as browser:
        yield await browser.new_page()


@fixture
async def wire(page: Page) -> AsyncIterator[Wire]:
    """The embedded broker and all five readers."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(BrokerProcess(CONFIG))
        wire = Wire(broker, await stack.enter_async_context(broker.api()), [])
        for reader in (Strict("1.1"), Strict("1.0"), Httpx(), SseClient2(), Chromium(page)):
            await reader.open(broker, wire.uid)
            stack.push_async_callback(reader.close)
            wire.readers.append(reader)
        yield wire


@fixture
async def redis_wire() -> AsyncIterator[Wire]:
    """A broker on Redis and the strict readers: what Redis and the bus make of a text."""
    async with RedisServer() as redis, AsyncExitStack() as stack:
        broker = await stack.enter_async_context(BrokerProcess(CONFIG, redis=redis))
        wire = Wire(broker, await stack.enter_async_context(broker.api()), [])
        for reader in (Strict("1.1"), Strict("1.0")):
            await reader.open(broker, wire.uid)
            stack.push_async_callback(reader.close)
            wire.readers.append(reader)
        yield wire


# Any text


async def test_every_reader_reads_what_was_sent(wire: Wire) -> None:
    await wire.carry([Frame("", text) for text in TEXTS.values()])


async def test_redis_changes_nothing(redis_wire: Wire) -> None:
    await redis_wire.carry([Frame("", text) for text in TEXTS.values()])


@pytest.mark.parametrize("line", [100, 1000, MIB], ids="lines of {}".format)
async def test_a_mebibyte_arrives_whole(wire: Wire, redis_wire: Wire, line: int) -> None:
    text = "\n".join(["\u00e9x" * (line // 3)] * (MIB // line))
    frames = [Frame("big", text), Frame("", "after it")]
    await redis_wire.carry(frames)
    slim = Wire(wire.broker, wire.api, wire.readers)
    left_out = slim.without(frames)
    for reader in wire.readers:
        if reader.name in left_out:
            await reader.close()
    slim.readers = [reader for reader in wire.readers if reader.name not in left_out]
    if left_out:
        await until(lambda: _devices(wire, len(slim.readers)), what="leaving")
    await slim.carry(frames)
    for reader in wire.readers:
        if reader.name in left_out:
            await reader.open(wire.broker, wire.uid)


async def _devices(wire: Wire, count: int) -> bool:
    return len((await wire.api.info(uid=wire.uid)).result["devices"]) == count


SPECIAL = [
    "\r",
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1e",
    "\U0001f600",
    "\u0301",
]
LOOKALIKES = [
    "id: 5",
    "event: x",
    "data:",
    "data: ",
    "retry: 1",
    ":",
    ":heartbeat",
    "0\r\n\r\n",
    " ",
    "  ",
    "\t",
    "x",
    "é",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DATA = st.one_of(ANY_TEXT, st.lists(st.sampled_from(SPECIAL + LOOKALIKES), max_size=20).map("".join))
# A name that is empty means none; `sys_` is the broker's own; `error` and `open` are fine: they are events like any other.
EVENT = st.one_of(
    st.sampled_from(
        ["", "message", "error", "open", "a b", " x", "x ", ":", "data: x", "\u2028", "\ufeff", "\U0001f600"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20),
).filter(lambda name: not name.startswith("sys_"))
FRAMES = st.lists(st.builds(Frame, EVENT, DATA), min_size=1, max_size=8)
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(FRAMES)
@settings(SLOW, max_examples=80)
async def test_any_text_reaches_every_reader(wire: Wire, frames: list[Frame]) -> None:
    await wire.carry(frames)


@given(FRAMES)
@settings(SLOW, max_examples=40)
async def test_any_text_passes_redis(redis_wire: Wire, frames: list[Frame]) -> None:
    await redis_wire.carry(frames)


# Every way in


Way = Callable[[Api, str, str], Awaitable[Any]]


async def by_query(api: Api, uid: str, data: str) -> Any:
    return await api.request("GET", "/send?" + urlencode({"uid": uid, "data": data}))


async def by_json(api: Api, uid: str, data: str) -> Any:
    return await api.request("POST", "/send", json={"uid": [uid], "data": data})


async def by_escaped_json(api: Api, uid: str, data: str) -> Any:
    body = json.dumps({"uid": uid, "data": data}, ensure_ascii=False).encode()
    return await api.request("POST", "/send", data=body, headers={"Content-Type": "application/json"})


async def by_form(api: Api, uid: str, data: str) -> Any:
    return await api.request("POST", "/send", data={"uid": uid, "data": data})


async def by_multipart(api: Api, uid: str, data: str) -> Any:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("uid", uid)
    form.add_field("data", data)
    return await api.request("POST", "/send", data=form)


@pytest.mark.parametrize("way", [by_query, by_json, by_escaped_json, by_form, by_multipart])
async def test_text_is_the_same_by_every_way_in(wire: Wire, way: Way) -> None:
    strict = wire.broker.client("ways", way.__name__)
    texts = [text for name, text in TEXTS.items() if name != "8 KiB in one line"]
    texts = [text[:500] for text in texts if text]  # a query has less room, and an empty value in it is no value
    async with strict:
        for text in texts:
            answer = await way(wire.api, "ways", text)
            assert (answer.status, answer.result) == (200, 1), (text, answer)
        for text in texts:
            assert (await strict.next_frame()).data == as_read(text)


@pytest.mark.parametrize("value", [0, -1.5, True, None, [1, "a\nb"], {"a": {"é": "\u2028"}}, []], ids=repr)
async def test_json_that_is_no_text_arrives_as_compact_json(wire: Wire, value: Any) -> None:
    async with wire.broker.client("json", "json") as client:
        answer = await wire.api.request("POST", "/send", json={"uid": "json", "data": value})
        assert answer.status == 200, answer
        data = (await client.next_frame()).data
        assert data is not None
        assert json.loads(data) == value
        assert re.sub(r'"[^"]*"', "", data).find(" ") == -1


# What is refused


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"], ids=ascii)
async def test_a_lone_surrogate_is_refused_and_the_stream_lives_on(wire: Wire, text: str) -> None:
    for fields in ({"data": text}, {"data": "x", "event": text}, {"data": {"a": [text]}}, {"data": {text: 1}}):
        body = json.dumps({"uid": wire.uid, **fields})  # as \ud800, which JSON can say and UTF-8 can not
        answer = await wire.api.request("POST", "/send", data=body, headers={"Content-Type": "application/json"})
        assert answer.status == 400, fields
        assert ("event" if "event" in fields else "data") in answer.msg
    raw = urlencode({"uid": wire.uid}) + "&data=%ED%A0%80"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await wire.api.request("POST", "/send", data=raw, headers=form)).status == 400
    pair = json.dumps({"uid": wire.uid, "data": "\U0001f600"})
    assert "\\ud83d\\ude00" in pair  # two surrogates that belong together are one character
    await wire.carry([Frame("", "\U0001f600")])


@pytest.mark.parametrize(
    "event", ["a\nb", "a\rb", "a\0b", "\n", "x\n\ndata: evil", "sys_", "sys_kick_offline"], ids=ascii
)
async def test_an_event_name_that_would_forge_is_refused(wire: Wire, event: str) -> None:
    answer = await wire.api.send("x", uid=wire.uid, event=event)
    assert answer.status == 400
    assert "event" in answer.msg
    await wire.carry([Frame("", "still here")])


async def test_the_data_of_a_kick_forges_nothing(wire: Wire) -> None:
    for number, text in enumerate(text for text in TEXTS.values() if text):
        async with wire.broker.client("kicked", f"kicked {number}") as client:
            answer = await wire.api.kick(device=f"kicked {number}", data=text)
            assert (answer.status, answer.result) == (200, 1)
            assert await client.wait_closed() == "clean"
            assert [event.event for event in client.events] == ["sys_connected", "sys_kick_offline"]
            assert client.events[-1].data == as_read(text)
            assert client.events[-1].id is None


# The bytes themselves


async def raw_stream(
    broker: BrokerProcess, http: str, device: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream on a bare connection."""
    reader, writer = await asyncio.open_connection(broker.host, broker.port, limit=4 * MIB)
    token = broker.mint("raw", device)
    request = f"GET /events?token={token}&device={device} HTTP/{http}\r\nHost: {broker.address}\r\n\r\n"
    writer.write(request.encode())
    return reader, writer


@pytest.mark.parametrize("http", ["1.1", "1.0"])
async def test_the_head_and_the_first_bytes_of_a_stream(wire: Wire, http: str) -> None:
    reader, writer = await raw_stream(wire.broker, http, f"raw{http}")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            assert status == f"HTTP/{http} 200 OK"
            assert headers["content-type"].startswith("text/event-stream")
            assert headers["cache-control"] == "no-cache, no-transform"
            assert headers["x-accel-buffering"] == "no"
            assert "content-length" not in headers
            assert headers.get("transfer-encoding") == ("chunked" if http == "1.1" else None)
            answer = await wire.api.send("one\r\n two\r:three\n", uid="raw", event="news")
            assert answer.result == 1
            got = await reader.readuntil(b"data: \n\n")
    finally:
        writer.close()
        await writer.wait_closed()
    if http == "1.1":
        assert re.match(rb"[0-9a-f]+\r\n", got)
        got = re.sub(rb"(?:^|\r\n)[0-9a-f]+\r\n", b"", got)
    address = re.escape(":".join(map(str, writer.get_extra_info("sockname") or ())).encode()) or rb"127\.0\.0\.1:\d+"
    opening = rb"(?:retry: \d+\nevent: sys_connected\ndata: %b\n\n)" % address
    frame = rb"id: [1-9]\d{15}\nevent: news\ndata: one\ndata:  two\ndata: :three\ndata: \n\n"
    assert re.fullmatch(opening + frame, got), got


async def test_a_replayed_frame_is_the_live_one_byte_for_byte(wire: Wire, redis_wire: Wire) -> None:
    for at in (wire, redis_wire):
        async with at.broker.client("again", "live") as live:
            for number, text in enumerate(TEXTS.values()):
                assert (await at.api.send(text, uid="again", event=f"e{number}")).result == 1
            before = [await live.next_frame() for _ in TEXTS]
        first = before[0].id
        assert first is not None
        for http in ("1.1", "1.0"):
            async with at.broker.client("again", "live", last_id=first - 1, http=http) as again:
                assert [await again.next_frame() for _ in TEXTS] == before
                assert not [event for event in again.system if event.event == "sys_replay_gap"]


async def test_a_device_is_named_by_any_text(wire: Wire) -> None:
    for name in ("xuyd", "Gerät 7 \U0001f600", "a,b", "<script>", "%41", "\u2028", "x" * 256):
        for via in ("query", "headers"):
            client = EventClient(wire.broker.base_url, token=wire.broker.mint("named", name), device=name, via=via)
            async with client:
                assert (await wire.api.send(name, device=[name])).result == 1
                assert (await client.next_frame()).data == name
                (device,) = (await wire.api.info(uid="named")).result["devices"]
                assert device["device_name"] == name
            await until(lambda: _gone(wire), what="leaving")


async def _gone(wire: Wire) -> bool:
    return not (await wire.api.info(uid="named")).result["online"]
