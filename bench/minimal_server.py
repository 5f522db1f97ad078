"""Second reference: the least that aiohttp with uvloop can do. It writes one prebuilt chunk to each stream's transport, by device or to
all, and keeps no log, checks no token and bounds nothing. It must not import the broker, nor grow features: it shows what aiohttp costs.

Usage: python bench/minimal_server.py PORT
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop
from aiohttp import web

BACKLOG = 4096


class Streams:
    """Hold the transport of each open stream by device."""

    def __init__(self) -> None:
        self.transports: dict[str, asyncio.Transport] = {}
        self.last_id = 0

    def send(self, data: str, devices: list[str] | None) -> int:
        """Write one frame to the named devices, or to all; return how many it was written to."""
        self.last_id = max(self.last_id + 1, time.time_ns() // 1000)
        frame = f"id: {self.last_id}\ndata: {data}\n\n".encode()
        chunk = b"%x\r\n%s\r\n" % (len(frame), frame)
        if devices is None:
            chosen = list(self.transports.values())
        else:
            chosen = [self.transports[device] for device in devices if device in self.transports]
        for transport in chosen:
            transport.write(chunk)
        return len(chosen)


STREAMS = web.AppKey("streams", Streams)


async def events(request: web.Request) -> web.StreamResponse:
    """Open a stream and wait until its client leaves."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache, no-transform"}
    )
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"event: sys_connected\nretry: 3000\ndata: 127.0.0.1\n\n")
    transport = request.transport
    if transport is None:
        return response
    device = request.query["device"]
    transports = request.app[STREAMS].transports
    transports[device] = transport
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if transports.get(device) is transport:
            del transports[device]
    return response


async def send(request: web.Request) -> web.Response:
    """Write a frame to the chosen streams and answer with their count."""
    body = await request.json()
    result = request.app[STREAMS].send(body["data"], body.get("device"))
    return web.json_response({"code": 1, "msg": "success", "micro": 0, "result": result})


def main() -> None:
    """Serve on loopback until the process is ended."""
    app = web.Application()
    app[STREAMS] = Streams()
    app.router.add_get("/events", events)
    app.router.add_post("/send", send)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        backlog=BACKLOG,
        handler_cancellation=True,
        loop=uvloop.new_event_loop(),
        print=None,
    )


if __name__ == "__main__":
    main()
