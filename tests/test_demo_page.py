"""The demo page in a real browser, against a real broker: every button, reconnecting, text as text, keyboard, phone."""

from __future__ import annotations

import json
import re
from asyncio import gather
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.broker_process import BrokerProcess
from tests.browser import run_browser
from tests.demo import Demo
from tests.redis_servers import RedisServer
from tests.waiting import until

# One browser for all: its objects belong to the loop of the module, so everything here runs in that loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

expect.set_options(timeout=20_000)


Pair = tuple[BrokerProcess, BrokerProcess]
OpenDemo = Callable[..., Awaitable[Demo]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """The browser of this module."""
    async with run_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker() -> AsyncIterator[BrokerProcess]:
    """A broker on the embedded backend, shared: tests use users and devices of their own."""
    async with BrokerProcess() as broker:
        yield broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(module_redis_server: RedisServer) -> AsyncIterator[Pair]:
    """Two brokers on one Redis."""
    config = {"server": {"drain_seconds": 2}}
    brokers = [BrokerProcess(config, redis=module_redis_server) for _ in range(2)]
    try:
        await gather(*(broker.start() for broker in brokers))
        yield brokers[0], brokers[1]
        await gather(*(broker.stop() for broker in brokers))
    finally:
        await gather(*(broker.discard() for broker in brokers))


@pytest_asyncio.fixture(loop_scope="module")
async def open_demo(browser: Browser) -> AsyncIterator[OpenDemo]:
    """A function that opens a page without visiting anything; `beside` another page means a second tab of that browser.

    At the end, no page may have had an error on it or have asked another origin.
    """
    demos: list[Demo] = []
    async with AsyncExitStack() as stack:

        async def open_(*, beside: Demo | None = None, **options: Any) -> Demo:
            context = beside.context if beside else await browser.new_context(**options)
            if not beside:
                stack.push_async_callback(context.close)
            demo = Demo(await context.new_page())
            demo.context = context
            demos.append(demo)
            return demo

        yield open_
    for demo in demos:
        assert demo.troubles == []
        assert len({urlsplit(address).netloc for address in demo.requests}) <= 1


async def test_the_whole_path_can_be_clicked_through(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    """Token, connect, send to user, device and everyone, see who is online, disconnect."""
    demo = await open_demo()
    await demo.visit(broker, "click-user", "click-device")
    await expect(demo.part("state")).to_have_text("Not connected")

    await demo.part("get-token").click()
    await expect(demo.part("token-expiry")).to_have_text(re.compile(r"expires in (29|30) s"))
    token = await demo.part("token").input_value()
    await demo.connect()
    # The token that was asked for is the one that is used.
    assert demo.streams_asked_for() == [{"token": [token], "device": ["click-device"]}]
    await expect(demo.rows("[data-event=sys_connected]").locator(".row-data")).to_have_text(
        re.compile(r"127\.0\.0\.1:\d+")
    )

    await demo.send("to the user")
    await expect(demo.part("send-result")).to_have_text("Sent to 1 online device.")
    await demo.expect_data("to the user")
    await demo.send("to the device\nin two lines", to="Device", event="order")
    await demo.expect_data("to the user", "to the device\nin two lines")
    await demo.send("to everyone", to="Everyone", event="news")
    await demo.expect_data("to the user", "to the device\nin two lines", "to everyone")
    await expect(demo.rows().locator(".badge")).to_have_text(["news", "order", "message"])
    await expect(demo.part("event-names")).to_have_value("order, news")
    await expect(demo.part("count")).to_have_text("3 frames")
    ids = [int(await row.get_attribute("data-id") or 0) for row in await demo.rows().all()]
    assert ids == sorted(ids, reverse=True)
    await expect(demo.part("last-id")).to_have_value(str(ids[0]))

    await demo.send("nobody is there", names="nobody-of-that-name")
    await expect(demo.part("send-result")).to_contain_text("No device of that target is online")

    await demo.part("refresh").click()
    await expect(demo.part("device-count")).to_have_text("1")
    await expect(demo.part("user-count")).to_have_text("1")
    await expect(demo.part("instances")).to_contain_text(broker.address)
    await expect(demo.part("devices")).to_contain_text("click-device")

    await demo.part("clear").click()
    await expect(demo.page.locator("#frames > .row")).to_have_count(0)
    await demo.part("disconnect").click()
    await demo.expect_state("idle")
    await expect(demo.part("devices")).to_contain_text("click-user is not online")


async def test_a_kicked_page_says_so_and_returns_only_when_told(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    demo = await open_demo()
    await demo.visit(broker, "kick-user", "kick-device")
    await demo.connect()
    await expect(demo.part("kick-devices")).to_have_value("kick-device")
    await demo.part("kick-data").fill("<i>tea</i> time")
    await demo.part("kick").get_by_role("button", name="Kick").click()
    await expect(demo.part("kick-result")).to_have_text("Kicked 1 device.")
    await demo.expect_state("kicked")
    await expect(demo.part("notice-text")).to_have_text(
        "This device was kicked. It stays away until you connect again. The reason given: <i>tea</i> time"
    )
    async with broker.api() as api:
        assert (await api.info(device="kick-device")).result["online"] is False
    assert len(demo.streams_asked_for()) == 1

    await demo.part("again").click()
    await demo.expect_state("open")
    await expect(demo.part("notice")).to_be_hidden()
    await demo.send("welcome back")
    await demo.expect_data("welcome back")


async def test_text_with_markup_stays_text_everywhere(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    evil = '<img src="/x" onerror="document.title=1"><b>bold</b> &amp; <script>document.title=2</script>'
    demo = await open_demo()
    await demo.visit(broker, f"user {evil}", f"device {evil}")
    await demo.connect()
    await demo.send(evil, event=f"event {evil}")
    await demo.expect_data(evil)
    await expect(demo.rows().locator(".badge")).to_have_text(f"event {evil}")
    await expect(demo.part("devices")).to_contain_text(f"device {evil}")
    await expect(demo.page.locator("main :is(img, b, script)")).to_have_count(0)
    assert await demo.page.title() == "Demo · sse-broker"
    assert demo.asked_for("/x") == []


async def test_events_with_the_names_of_the_browsers_own_events_are_frames(
    broker: BrokerProcess, open_demo: OpenDemo
) -> None:
    """EventSource itself fires `open` and `error`; frames may bear these names, and are no trouble of the connection."""
    demo = await open_demo()
    await demo.visit(broker, "names-user")
    await demo.connect()
    for event in ("error", "open", "message"):
        await demo.send(f"named {event}", event=event)
        await expect(demo.rows().locator(".row-data").first).to_have_text(f"named {event}")
    await demo.expect_data("named error", "named open", "named message")
    await demo.expect_state("open")
    await expect(demo.rows("[data-kind=note]")).to_have_count(0)


async def test_the_list_keeps_the_newest_500_rows_and_shortens_long_text(
    broker: BrokerProcess, open_demo: OpenDemo
) -> None:
    demo = await open_demo()
    await demo.visit(broker, "many-user", "many-device")
    await demo.connect()
    async with broker.api() as api:
        await gather(*(api.send(number, uid="many-user") for number in range(519)))
        await api.send("x" * 5000, uid="many-user")
    await expect(demo.part("count")).to_have_text("520 frames")
    await expect(demo.page.locator("#frames > .row")).to_have_count(500)
    newest = demo.rows().first
    await expect(newest.locator(".row-data")).to_have_text("x" * 2000 + "…")
    await newest.get_by_role("button", name="Show all 5,000 characters").click()
    await expect(newest.locator(".row-data")).to_have_text("x" * 5000)


async def test_two_tabs_are_two_devices_of_one_user(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    one = await open_demo()
    await one.visit(broker)
    two = await open_demo(beside=one)
    await two.visit(broker)
    assert await one.part("user").input_value() == await two.part("user").input_value()
    assert await one.part("device").input_value() != await two.part("device").input_value()
    await one.connect()
    await two.connect()
    await one.send("for both")
    await expect(one.part("send-result")).to_have_text("Sent to 2 online devices.")
    await one.expect_data("for both")
    await two.expect_data("for both")


async def test_two_tabs_with_one_device_do_not_fight(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    """The older one stays away and says why, also while frames come and after the newer one has gone."""
    old = await open_demo()
    await old.visit(broker, "same-user", "same-device")
    await old.connect()
    new = await open_demo(beside=old)
    await new.visit(broker, "same-user", "same-device")
    await new.connect()
    await old.expect_state("extruded")
    await expect(old.part("notice-text")).to_contain_text("took over")
    await new.send("only the newer one hears this")
    await new.expect_data("only the newer one hears this")
    await new.part("disconnect").click()
    await new.expect_state("idle")
    await expect(new.part("devices")).to_contain_text("same-user is not online")
    assert len(old.streams_asked_for()) == 1
    await expect(old.rows()).to_have_count(0)

    await old.part("again").click()
    await old.expect_state("open")
    await new.expect_state("idle")


async def test_ids_belong_to_one_device_of_one_user(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    """Another user does not go on from the former one's last id; the former one, back again, does."""
    demo = await open_demo()
    await demo.visit(broker, "first-user", "ids-device")
    await demo.connect()
    await demo.send("before")
    await demo.expect_data("before")
    last_id = await demo.part("last-id").input_value()
    await demo.part("disconnect").click()
    await demo.part("user").fill("second-user")
    await expect(demo.part("last-id")).to_have_value("")
    await demo.connect()
    await demo.part("disconnect").click()

    async with broker.api() as api:
        await api.send("meanwhile", uid="first-user")
    await demo.part("user").fill("first-user")
    await demo.connect()
    await demo.expect_data("before", "meanwhile")
    assert [query.get("id") for query in demo.streams_asked_for()] == [None, None, [last_id]]


async def test_a_replay_gap_is_shown_as_a_warning(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    demo = await open_demo()
    await demo.visit(broker, "gap-user", "gap-device")
    async with broker.api() as api:
        await api.send("kept", uid="gap-user")
    await demo.page.get_by_text("Replay and token settings").click()
    await demo.part("last-id").fill("17")
    await demo.connect()
    notice = demo.part("notice")
    await expect(notice).to_have_attribute("data-kind", "warning")
    await expect(notice).to_contain_text("Some frames are lost")
    gap = demo.rows("[data-kind=warning]").locator(".row-data")
    assert json.loads(await gap.inner_text())["requested"] == 17
    await expect(demo.rows().locator(".row-data").first).to_have_text("kept")
    await demo.part("dismiss").click()
    await expect(notice).to_be_hidden()


async def test_a_broker_with_api_keys_asks_for_one_and_goes_on(open_demo: OpenDemo) -> None:
    async with BrokerProcess({"api": {"keys": ["open-sesame"]}}) as broker:
        demo = await open_demo()
        await demo.visit(broker, "key-user", "key-device")
        await expect(demo.part("key-panel")).to_be_visible()
        await demo.part("connect").click()
        await expect(demo.part("you-result")).to_contain_text("API key")
        await demo.part("key").fill("open-barley")
        await demo.part("key").press("Enter")
        await expect(demo.part("key-result")).to_have_text("The broker does not know this key.")
        await demo.part("key").fill("open-sesame")
        await demo.part("key").press("Enter")
        # What was tried before the key was there is done now.
        await demo.expect_state("open")
        await expect(demo.part("key-panel")).to_be_hidden()
        await demo.send("with the key")
        await demo.expect_data("with the key")
        await demo.page.reload()
        await expect(demo.part("instance-count")).to_have_text("1")
        await expect(demo.part("key-panel")).to_be_hidden()


async def test_a_key_that_opens_too_little_can_be_changed(open_demo: OpenDemo) -> None:
    """The page leads to the field for the key from wherever something was tried."""
    config = {"api": {"named_keys": ["watcher:info:see-sesame"], "keys": ["open-sesame"]}}
    async with BrokerProcess(config) as broker:
        demo = await open_demo(viewport={"width": 375, "height": 600})
        await demo.visit(broker, "scope-user", "scope-device")
        await demo.send("first")
        await expect(demo.part("key")).to_be_focused()
        await expect(demo.part("key")).to_be_in_viewport()
        await demo.part("key").fill("see-sesame")
        await demo.part("key").press("Enter")
        await expect(demo.part("send-result")).to_have_text("'watcher' may not call /send")
        await expect(demo.part("key-result")).to_have_text("This key is not good for that. Give another one.")
        await demo.part("refresh").click()
        await expect(demo.part("key-panel")).to_be_hidden()
        await demo.part("get-token").click()
        await expect(demo.part("key")).to_be_focused()
        await demo.part("key").fill("open-sesame")
        await demo.part("key").press("Enter")
        await expect(demo.part("token-box")).to_be_visible()
        await expect(demo.part("key-panel")).to_be_hidden()


async def test_a_broker_that_restarts_or_dies_gets_its_pages_back_and_nothing_is_missed(
    pair: Pair, open_demo: OpenDemo
) -> None:
    """With a token still valid the browser returns by itself; after an expired one the page does, with a fresh one."""
    broker, other = pair
    lasting, brief = await open_demo(), await open_demo()
    for demo, name, ttl in ((lasting, "lasting", "300"), (brief, "brief", "1")):
        await demo.visit(broker, "back-user", name)
        await demo.page.get_by_text("Replay and token settings").click()
        await demo.part("ttl").fill(ttl)
        await demo.connect()
    await brief.send("one")
    seen = ["one"]

    async with other.api() as api:
        for end in (broker.terminate, broker.kill):
            # An EventSource knows no last id before its first frame.
            await gather(lasting.expect_data(*seen), brief.expect_data(*seen))
            await end()
            await gather(lasting.expect_state("reconnecting"), brief.expect_state("reconnecting"))
            for number in range(3):
                await api.send(f"{end.__name__} {number}", uid="back-user")
                seen.append(f"{end.__name__} {number}")
            await broker.start()
            await gather(lasting.expect_state("open"), brief.expect_state("open"))
            await api.send("after", uid="back-user")
            seen.append("after")
    await gather(lasting.expect_data(*seen), brief.expect_data(*seen))

    await expect(lasting.rows("[data-event=sys_instance_close]")).to_have_count(1)
    tokens = [{query["token"][0] for query in demo.streams_asked_for()} for demo in (lasting, brief)]
    assert [len(used) for used in tokens] == [1, 3]


async def test_a_refused_stream_is_tried_again_with_growing_delays(
    pair: Pair, open_demo: OpenDemo, module_redis_server: RedisServer
) -> None:
    """A broker whose Redis is away answers 503, after which an EventSource never tries again by itself."""
    demo = await open_demo()
    await demo.visit(pair[0], "later-user")
    await module_redis_server.kill()
    await demo.part("connect").click()
    await demo.expect_state("waiting")
    await until(lambda: len(demo.streams_asked_for()) >= 2, what="a second try")
    await module_redis_server.start()
    await demo.expect_state("open")
    notes = await demo.rows("[data-kind=note]").filter(has_text="Trying again").all_inner_texts()
    assert len(notes) >= 2
    for attempt, note in enumerate(reversed(notes)):
        seconds = float(note.split(" in ")[1].split(" s,")[0])
        assert 0.2 * 2**attempt <= seconds <= 0.55 * 2**attempt, notes


async def test_the_page_can_be_used_by_keyboard_alone(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    """From the top with Tab alone: connect, send, disconnect; every stop on the way shows where it is."""
    demo = await open_demo()
    await demo.visit(broker, "", "")
    keyboard = demo.page.keyboard

    async def focused() -> str:
        return str(
            await demo.page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const shown = at.matches("[type=radio]") ? at.nextElementSibling : at;
                  const style = getComputedStyle(shown);
                  const visible = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                  return (visible ? "" : "INVISIBLE ") + (at.id || at.value || at.textContent.trim());
                }"""
            )
        )

    async def tab_to(name: str) -> list[str]:
        passed = []
        for _ in range(40):
            await keyboard.press("Tab")
            passed.append(await focused())
            if passed[-1] == name:
                return passed
        raise AssertionError(f"{name} is not reached: {passed}")

    stops = await tab_to("connect")
    assert "Skip to the content" in stops
    await keyboard.press("Enter")
    await demo.expect_state("open")
    assert await focused() == "disconnect"  # the place is kept when the buttons change

    stops += await tab_to("uid")
    await keyboard.press("ArrowRight")
    await expect(demo.part("to")).to_have_value(await demo.part("device").input_value())
    stops += await tab_to("event")
    await keyboard.type("note")
    stops += await tab_to("data")
    await keyboard.press("ControlOrMeta+A")
    await keyboard.type("typed")
    await keyboard.press("Control+Enter")
    await demo.expect_data("typed")
    await expect(demo.rows().locator(".badge")).to_have_text("note")
    stops += await tab_to("lookup-user")
    assert [stop for stop in stops if stop.startswith("INVISIBLE")] == []
    assert {"user", "device", "get-token", "event-names", "clear", "frames", "kick-users", "refresh"} <= set(stops)


async def test_nothing_is_wider_than_a_phone(broker: BrokerProcess, open_demo: OpenDemo) -> None:
    long = "long" * 60
    demo = await open_demo(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    width = "() => document.documentElement.scrollWidth"
    await demo.page.goto(f"{broker.base_url}/")
    assert await demo.page.evaluate(width) == 360
    await demo.visit(broker, f"user-{long}", f"device-{long}")
    await demo.connect()
    await demo.send(long, event=long)
    await expect(demo.rows().locator(".row-data")).to_have_text(long)
    await demo.part("kick-data").fill(long)
    await demo.part("kick").get_by_role("button", name="Kick").click()
    await demo.expect_state("kicked")
    await demo.page.get_by_text("Replay and token settings").click()
    await demo.page.get_by_role("button", name="Look up").click()
    await expect(demo.page.locator(".card.none")).to_contain_text(long)
    assert await demo.page.evaluate(width) == 360


async def test_the_examples_of_the_api_page_carry_its_address_and_can_be_copied(
    broker: BrokerProcess, open_demo: OpenDemo
) -> None:
    tab = await open_demo(permissions=["clipboard-read", "clipboard-write"])
    await tab.page.goto(f"{broker.base_url}/")
    figures = tab.page.locator("figure.example")
    assert await figures.count() >= 8
    first_send = figures.filter(has=tab.page.locator("#example-first-send"))
    await first_send.get_by_role("button", name="Copy").click()
    await expect(first_send.get_by_role("button")).to_have_text("Copied")
    copied = await tab.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == f"curl {broker.base_url}/send -d uid=alice --data-urlencode 'data=Hello, Alice'"
