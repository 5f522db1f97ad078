"""The access log: one line per request, with neither tokens nor data in it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from sse_broker.access_log import AccessLogger, masked
from sse_broker.config import ServerConfig
from sse_broker.logs import setup
from tests.waiting import until

LOGGER = logging.getLogger("aiohttp.access")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/", "/"),
        ("/info", "/info"),
        ("/events?device=d&token=abc.def.ghi", "/events?device=d&token=***"),
        ("/events?token=a&token=b&id=5", "/events?token=***&token=***&id=5"),
        ("/events?%74oken=abc", "/events?%74oken=***"),
        ("/events?t%6fk%65n=abc", "/events?t%6fk%65n=***"),
        ("/events?token", "/events?token"),
        ("/events?token=", "/events?token=***"),
        ("/events?token=a=b?c", "/events?token=***"),
        ("/events?x=1?token=a", "/events?x=1?token=a"),
        ("/send?uid=1&data=private%26text", "/send?uid=1&data=***"),
        ("/token?uid=u&tokens=1&mydata=2", "/token?uid=u&tokens=1&mydata=2"),
        ("http://host/events?token=abc", "http://host/events?token=***"),
        ("/a\nb?token=x", "/a\\nb?token=***"),
        ("/\udcff", "/\\udcff"),
    ],
)
def test_tokens_and_data_are_masked(path: str, line: str) -> None:
    assert masked(path) == line


async def answer(request: web.Request) -> web.Response:
    return web.Response(text="hello", status=int(request.query.get("status", "200")))


@pytest.fixture(params=[()])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a real aiohttp server that logs through the class under test; `param` holds the trusted networks."""
    networks = ServerConfig(trusted_proxies=request.param).trusted_networks
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log_class=AccessLogger.trusting(networks), access_log=LOGGER)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def lines_of(path: Path, count: int) -> list[str]:
    """Wait for so many lines of a log and return them without their time."""
    lines = await until(lambda: len(found := path.read_text().splitlines()) >= count and found, what=f"{count} lines")
    return [line.split(" ", 2)[2] for line in lines]


async def test_a_request_is_one_line(server: str, tmp_path: Path) -> None:
    files = setup(ServerConfig(access_log_path=str(tmp_path / "access")))
    try:
        async with httpx.AsyncClient(base_url=server) as client:
            await client.get("/info?uid=1")
            await client.post("/send?token=sesame&data=sesame&status=503", content=b"sesame")
        lines = await lines_of(tmp_path / "access", 2)
    finally:
        files.close()
    patterns = [
        r'127\.0\.0\.1 "GET /info\?uid=1 HTTP/1\.1" 200 1\d\d 0\.\d{6}',
        r'127\.0\.0\.1 "POST /send\?token=\*\*\*&data=\*\*\*&status=503 HTTP/1\.1" 503 1\d\d 0\.\d{6}',
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line)


@pytest.mark.parametrize(
    ("server", "address"),
    [((), "127.0.0.1"), (("127.0.0.0/8",), "192.0.2.7"), (("10.0.0.0/8",), "127.0.0.1")],
    indirect=["server"],
)
async def test_only_a_trusted_proxy_names_the_client(server: str, address: str, tmp_path: Path) -> None:
    files = setup(ServerConfig(access_log_path=str(tmp_path / "access")))
    try:
        async with httpx.AsyncClient(base_url=server) as client:
            await client.get("/", headers={"X-Forwarded-For": "198.51.100.1, 192.0.2.7"})
        (line,) = await lines_of(tmp_path / "access", 1)
    finally:
        files.close()
    assert line.split(" ")[0] == address


async def test_requests_that_are_not_http_are_one_line_too(server: str, tmp_path: Path) -> None:
    """aiohttp answers them itself, with a request object that has no path worth showing."""
    files = setup(ServerConfig(access_log_path=str(tmp_path / "access"), error_log_path=str(tmp_path / "error")))
    host, port = server.removeprefix("http://").split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /\x01\x02 HTTP/9.9\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        (line,) = await lines_of(tmp_path / "access", 1)
    finally:
        files.close()
    assert " 400 " in line


@pytest.mark.parametrize(("path", "enabled"), [("access", True), ("/dev/null", False)])
def test_nobody_listening_costs_nothing(tmp_path: Path, path: str, enabled: bool) -> None:
    files = setup(ServerConfig(access_log_path=str(tmp_path / path)))
    try:
        assert AccessLogger(LOGGER, "").enabled is enabled
    finally:
        files.close()
