"""Real headless Chromium for tests, driven by Playwright. It knows no page and no broker.

Playwright's objects belong to the event loop in which they were made. A browser that serves several tests is made by a
fixture of wide scope, in the loop of that scope; the tests then run there too
(`pytestmark = pytest.mark.asyncio(loop_scope="module")`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PROGRAMS = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"]


def executable() -> str:
    """Return the path of the browser: `CHROMIUM` of the environment, else the one that is installed.

    Raises: AssertionError when there is none; a test of the pages without a browser would test nothing.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert found, "no Chromium is installed; see tests/install_tools.sh"
    return found


@asynccontextmanager
async def run_browser() -> AsyncIterator[Browser]:
    """Start Chromium, and end it with everything that it opened."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


class Tab:
    """One page of a browser, with what went wrong on it and what it asked for.

    `requests` are the addresses in order; `troubles` the uncaught errors, the refusals by the content policy and other
    errors on the console. A failing HTTP answer is no trouble: the broker may refuse.
    """

    def __init__(self, page: Page, *, seconds: float = 20) -> None:
        self.page = page
        self.requests: list[str] = []
        self.troubles: list[str] = []
        page.set_default_timeout(seconds * 1000)
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def _asked(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.troubles.append(message.text)

    def asked_for(self, part: str) -> list[str]:
        """Return the addresses requested so far that contain `part`."""
        return [address for address in self.requests if part in address]
