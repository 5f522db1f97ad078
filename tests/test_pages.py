"""The pages as bytes: routes, headers, what they may load, escaping, contrast. A browser tries them in test_demo_page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from sse_broker import pages
from sse_broker.version import VERSION

PAGES = ["/", "/demo", "/static/demo.html"]
STATIC = pages.templates_path() / "static"
ASSETS = sorted(path.name for path in STATIC.iterdir())
CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

WORDS_OF_THE_API = """
/token /events /send /kick /info uid device ttl data event ip address
X-SSE-TOKEN X-SSE-DEVICE X-SSE-ID Last-Event-ID X-SSE-API-Key Authorization
sys_connected sys_replay_gap sys_kick_offline sys_extrude_offline sys_instance_close
sse_topic_device_online sse_topic_device_offline sse_topic_user_online sse_topic_user_offline
disconnect extrude_offline kick_offline instance_close instance_clear heartbeat_fail device_online connected
retry: :heartbeat 200 400 401 403 405 413 415 429 503 curl EventSource
"""

Client = TestClient[web.Request, web.Application]


@dataclass
class Markup(HTMLParser):
    """The tags of a page, each with its attributes, and its text."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, with runs of white space as one space."""
        return " ".join("".join(self.words).split())


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client of an application that has the pages and nothing else."""
    app = web.Application()
    pages.setup(app)
    async with TestClient(TestServer(app)) as client:
        yield client


async def markup_of(client: Client, path: str) -> Markup:
    """Return a page, parsed."""
    markup = Markup()
    markup.feed(await (await client.get(path)).text())
    return markup


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_html_for_get_and_head(client: Client, path: str) -> None:
    got = await client.get(path)
    assert got.status == 200
    assert got.headers["Content-Type"] == "text/html; charset=utf-8"
    assert (await got.text()).startswith("<!doctype html>")
    head = await client.head(path)
    assert head.status == 200
    assert head.headers["Content-Length"] == got.headers["Content-Length"]
    assert await head.read() == b""


@pytest.mark.parametrize("path", [*PAGES, "/static/demo.js"])
async def test_everything_is_sent_with_strict_security_headers(client: Client, path: str) -> None:
    headers = (await client.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_this_broker_serves(client: Client, path: str) -> None:
    markup = await markup_of(client, path)
    loaded = [attributes["src"] for _, attributes in markup.tags if "src" in attributes]
    loaded += [attributes["href"] for tag, attributes in markup.tags if tag == "link"]
    assert len(loaded) >= 4
    for address in loaded:
        assert not urlsplit(address).netloc
        # Relative, so that the pages also work where a proxy serves the broker below a path.
        assert address.startswith(("./", "../"))
        answer = await client.get(urljoin(path, address))
        assert answer.status == 200, address
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"


async def test_the_api_page_does_not_promise_that_a_503_sent_nothing(client: Client) -> None:
    """Redis may have taken what it did not answer for."""
    text = (await markup_of(client, "/")).text
    assert "A send or a kick that is told so may have been carried out or not." in text.partition("503Redis is away")[2]
    assert "Nothing was sent" not in text


@pytest.mark.parametrize("path", PAGES)
async def test_the_links_of_a_page_lead_to_pages_and_parts_that_exist(client: Client, path: str) -> None:
    markup = await markup_of(client, path)
    ids = [attributes["id"] for _, attributes in markup.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in markup.tags:
        address = attributes.get("href", "")
        if tag != "a" or urlsplit(address).netloc:
            continue
        if address.startswith("#"):
            assert address[1:] in ids
        else:
            assert (await client.get(urljoin(path, address))).status == 200, address


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_no_script_or_style_in_its_markup(client: Client, path: str) -> None:
    """The policy would refuse them; a page that needs them would be broken."""
    markup = await markup_of(client, path)
    for tag, attributes in markup.tags:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


async def test_every_field_of_the_demo_has_a_label(client: Client) -> None:
    markup = await markup_of(client, "/demo")
    labels = {attributes.get("for") for tag, attributes in markup.tags if tag == "label"}
    fields = [attributes for tag, attributes in markup.tags if tag in ("input", "textarea", "select")]
    assert len(fields) > 10
    # Radio buttons and the check box stand inside their labels.
    inside = {"radio", "checkbox"}
    assert [entry for entry in fields if entry.get("type") not in inside and entry["id"] not in labels] == []


@pytest.mark.parametrize("name", ASSETS)
async def test_scripts_and_styles_load_nothing_from_elsewhere(client: Client, name: str) -> None:
    text = await (await client.get(f"/static/{name}")).text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
    assert addresses <= {"http://www.w3.org"}  # the name space of SVG, which nobody loads
    assert "url(" not in text
    assert "@import" not in text
    for module in re.findall(r'from "(.*?)"', text):
        assert module.startswith("./")
        assert (await client.get(urljoin("/static/", module))).status == 200


@pytest.mark.parametrize("name", ASSETS)
async def test_an_asset_has_its_type_and_is_asked_for_again_without_its_digest(client: Client, name: str) -> None:
    plain = await client.get(f"/static/{name}")
    assert plain.headers["Content-Type"] == f"{CONTENT_TYPES[Path(name).suffix]}; charset=utf-8"
    assert plain.headers["Cache-Control"] == "no-cache"
    assert await plain.read() == (STATIC / name).read_bytes()
    stale = await client.get(f"/static/{name}", params={"v": "0123456789abcdef"})
    assert stale.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", [*PAGES, "/static/demo.js"])
async def test_what_a_browser_has_already_is_answered_with_304(client: Client, path: str) -> None:
    etag = (await client.get(path)).headers["ETag"]
    again = await client.get(path, headers={"If-None-Match": etag})
    assert again.status == 304
    assert again.headers["ETag"] == etag
    assert await again.read() == b""
    other = await client.get(path, headers={"If-None-Match": '"another"'})
    assert other.status == 200


@pytest.mark.parametrize("path", ["/static/base.html", "/static/../base.html", "/static/%2e%2e/base.html", "/static/"])
async def test_nothing_but_the_assets_is_served(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 404


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_says_the_version(client: Client, path: str) -> None:
    assert VERSION in (await markup_of(client, path)).text


async def test_the_api_page_names_every_endpoint_parameter_event_and_channel(client: Client) -> None:
    text = (await markup_of(client, "/")).text
    assert [word for word in WORDS_OF_THE_API.split() if word not in text] == []


def test_values_in_templates_are_escaped() -> None:
    template = pages.environment(pages.templates_path()).from_string("<p>{{ name }}</p>")
    assert template.render(name='<b>"x"</b>') == "<p>&lt;b&gt;&#34;x&#34;&lt;/b&gt;</p>"


def test_templates_are_found_in_the_package_first_and_beside_it_in_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "sse_broker"
    package.mkdir()
    with pytest.raises(FileNotFoundError):
        pages.templates_path(package)
    for folder in (tmp_path / "templates", package / "templates"):
        folder.mkdir()
        (folder / "base.html").touch()
        assert pages.templates_path(package) == folder


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(scheme: str) -> None:
    style = (STATIC / "base.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in style.split("@media", 2)[:2])
    colours = light | (dark if scheme == "dark" else {})
    assert len(light) > 15
    assert len(dark) > 15
    pairs = [("text", ground) for ground in ("ground", "panel", "sunken", "warn-soft", "bad-soft")]
    pairs += [("muted", ground) for ground in ("ground", "panel", "sunken")]
    pairs += [("accent", ground) for ground in ("ground", "panel", "accent-soft")]
    pairs += [(name, f"{name}-soft") for name in ("good", "warn", "bad")]
    pairs += [(name, "panel") for name in ("good", "warn", "bad")]
    pairs += [("on-accent", "accent"), ("on-accent", "accent-press"), ("warn", "ground")]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}
    assert contrast(colours["edge"], colours["panel"]) >= 3  # the border of a field
