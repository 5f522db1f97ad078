"""The demo page in a tab of a browser, in its own words."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.async_api import BrowserContext, Locator, expect

from tests.broker_process import BrokerProcess
from tests.browser import Tab


class Demo(Tab):
    """The demo page in one tab, in its own words."""

    context: BrowserContext

    async def visit(self, broker: BrokerProcess, user: str = "", device: str = "") -> None:
        """Load the page, and name user and device unless the page shall choose."""
        await self.page.goto(f"{broker.base_url}/demo")
        await expect(self.part("instance-count")).to_have_text(re.compile(r"\d|–"))
        for name, value in (("user", user), ("device", device)):
            if value:
                await self.part(name).fill(value)

    def part(self, id_: str) -> Locator:
        """Return the element with this id."""
        return self.page.locator(f"#{id_}")

    def rows(self, which: str = "[data-id]") -> Locator:
        """Return rows of the stream, newest first; by default frames only."""
        return self.page.locator(f"#frames > .row{which}")

    async def expect_state(self, state: str) -> None:
        """Wait until the connection is in this state."""
        await expect(self.part("state")).to_have_attribute("data-state", state)

    async def connect(self) -> None:
        """Press Connect and wait for the stream."""
        await self.part("connect").click()
        await self.expect_state("open")

    async def send(self, data: str, *, to: str = "User", names: str | None = None, event: str = "") -> None:
        """Fill and submit the send form."""
        form = self.part("send")
        await form.get_by_role("radio", name=to).check()
        if names is not None:
            await self.part("to").fill(names)
        await self.part("event").fill(event)
        await self.part("data").fill(data)
        await form.get_by_role("button", name="Send").click()

    async def expect_data(self, *texts: str) -> None:
        """Wait until exactly these frames are shown, oldest first."""
        await expect(self.rows().locator(".row-data")).to_have_text(list(reversed(texts)), use_inner_text=True)

    def streams_asked_for(self) -> list[dict[str, list[str]]]:
        """Return the queries of all requests for a stream, oldest first."""
        return [parse_qs(urlsplit(address).query) for address in self.asked_for("/events?")]
