"""What an operator's tools ask: `/healthz` (the process runs), `/readyz` (it can serve) and `/metrics`. The first two say
nothing that is not seen by connecting; the metrics are for who has an API key, or on `server.admin_port` for who reaches it.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from sse_broker.broker import Broker
from sse_broker.errors import BrokerError, Unavailable
from sse_broker.metrics import CONTENT_TYPE, Metrics

READY_SECONDS = 2.0


def setup(app: web.Application, broker: Broker, metrics: Metrics, admit: Callable[[web.Request], None]) -> None:
    """Add the three routes to `app`; `admit` raises a BrokerError for who may not see the metrics."""

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        reason = await _why_not(broker)
        return web.json_response({"status": reason or "ok"}, status=503 if reason else 200)

    async def scrape(request: web.Request) -> web.Response:
        try:
            admit(request)
        except BrokerError as error:
            return web.Response(status=error.status, text=f"{error.message}\n")
        return web.Response(body=await metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)


def admin_application(broker: Broker, metrics: Metrics) -> web.Application:
    """Return the application of `server.admin_port`: the same three routes, and no key asked."""
    app = web.Application()
    setup(app, broker, metrics, lambda request: None)
    return app


async def _why_not(broker: Broker) -> str:
    """Return why the instance should get no clients now, or empty text."""
    if broker.draining:
        return "draining"
    try:
        await asyncio.wait_for(broker.backend.counts(), READY_SECONDS)
    except (Unavailable, TimeoutError):
        return "the backend does not answer"
    return ""
