"""Who may ask, from where, and as whom (docs/contract.md, section 5): API keys, origins, trusted proxies, through HTTP."""

from __future__ import annotations

import pytest

from tests.event_client import Answer, Api, EventClient
from tests.served import Serve, ServedBroker

KEYS = ("k" * 32, "l" * 32)
ENDPOINTS = ["/token", "/send", "/info", "/kick"]
HERE, ELSEWHERE = "https://app.example", "https://evil.example"


async def ask(broker: ServedBroker, method: str, path: str, **headers: str) -> Answer:
    """Make a request without the key that the tests' client would add."""
    async with Api(broker.base_url) as api:
        return await api.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})


# --- API keys ---


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_with_keys_each_endpoint_needs_one(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded({"api": {"keys": KEYS}})
    path += "?uid=u&data=x"
    for headers in ({}, {"X_SSE_API_Key": ""}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEYS[0]}"}):
        answer = await ask(broker, "GET", path, **headers)
        assert (answer.status, answer.body["code"], answer.result) == (401, 401, "")
        assert answer.msg == "an API key is needed, as X-SSE-API-Key or Bearer"
        assert answer.headers["www-authenticate"] == "Bearer"
    wrong = [{"X_SSE_API_Key": KEYS[0][:-1]}, {"Authorization": f"Bearer {KEYS[0]}x"}, {"X_SSE_API_Key": "é\udcff"}]
    for headers in wrong:
        answer = await ask(broker, "GET", path, **headers)
        assert (answer.status, answer.msg) == (401, "the API key is wrong")
    for key in KEYS:
        assert (await ask(broker, "GET", path, X_SSE_API_Key=key)).status == 200
        assert (await ask(broker, "GET", path, Authorization=f"Bearer {key}")).status == 200
        assert (await ask(broker, "GET", path, Authorization=f"bearer {key}")).status == 200
        assert (await ask(broker, "POST", path, Authorization=f"Bearer {key}")).status == 200
        assert (await ask(broker, "GET", f"{path}&key={key}")).status == 401


async def test_streams_and_pages_need_no_key(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"api": {"keys": KEYS}})
    async with broker.client("u", "d"):
        assert (await ask(broker, "GET", "/")).status == 200
        assert (await ask(broker, "GET", "/demo")).status == 200


async def test_a_key_opens_no_stream(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"api": {"keys": KEYS}})
    headers = {"X-SSE-API-Key": KEYS[0]}
    assert (await EventClient(broker.base_url, token=KEYS[0], device="d", headers=headers).connect()).status == 401


async def test_without_keys_anybody_may_ask(serve: Serve) -> None:
    broker = await serve()
    for path in ENDPOINTS:
        assert (await ask(broker, "GET", path + "?uid=u&data=x")).status == 200


# --- origins ---


async def test_without_origins_no_page_elsewhere_may_read(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    for method in ("GET", "OPTIONS"):
        for path in (*ENDPOINTS, "/events"):
            answer = await ask(broker, method, path, Origin=HERE, Access_Control_Request_Method="POST")
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", [*ENDPOINTS, "/events"])
async def test_a_listed_origin_may_ask_and_read(serve_embedded: Serve, path: str) -> None:
    """The preflight needs no API key: a browser sends none."""
    broker = await serve_embedded({"server": {"cors_origins": (HERE,)}, "api": {"keys": KEYS}})
    wanted = "authorization,content-type,last-event-id,x-sse-api-key,x-sse-device,x-sse-id,x-sse-token"
    asks = {"Origin": HERE, "Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": wanted}
    answer = await ask(broker, "OPTIONS", path, **asks)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == HERE
    assert answer.headers["access-control-allow-methods"] == ("GET" if path == "/events" else "GET, POST")
    allowed = answer.headers["access-control-allow-headers"].lower().replace(" ", "").split(",")
    assert set(wanted.split(",")) <= set(allowed)
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    answer = await ask(broker, "GET", path, Origin=HERE)
    assert answer.headers["access-control-allow-origin"] == HERE
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", [*ENDPOINTS, "/events"])
async def test_another_origin_is_told_nothing(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded({"server": {"cors_origins": (HERE,)}})
    for origin in (ELSEWHERE, HERE + ".evil.example", HERE.replace("https", "http"), HERE + ":8443", "null"):
        for method in ("OPTIONS", "GET"):
            answer = await ask(broker, method, path, Origin=origin)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


async def test_a_listed_origin_may_read_a_stream(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"server": {"cors_origins": (HERE, "https://two.example")}})
    for origin in (HERE, "https://two.example"):
        async with broker.client("u", "d", headers={"Origin": origin}) as client:
            assert client.answer is not None
            assert client.answer.headers["access-control-allow-origin"] == origin
            assert client.answer.headers["vary"] == "Origin"
    async with broker.client("u", "d", headers={"Origin": ELSEWHERE}) as client:
        assert client.answer is not None
        assert "access-control-allow-origin" not in client.answer.headers


async def test_a_star_allows_every_origin(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"server": {"cors_origins": ("*",)}})
    for path in (*ENDPOINTS, "/events"):
        answer = await ask(broker, "GET", path, Origin=ELSEWHERE)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


# --- trusted proxies ---


async def address_seen(broker: ServedBroker, headers: dict[str, str]) -> str:
    """Open a stream with these headers and return the address that the broker tells the client, and tells of it."""
    async with broker.client("u", "d", headers=headers) as client:
        said = client.events[0].data
        assert said is not None
        assert said == (await broker.api.info(device="d")).result["device_address"]
        return said.replace(client.address, "peer")


FORWARDED = {"X-Forwarded-For": "203.0.113.9"}


async def test_a_forwarded_address_is_not_believed_by_itself(serve: Serve) -> None:
    broker = await serve()
    for headers in (FORWARDED, {"X-Real-IP": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}):
        assert await address_seen(broker, headers) == "peer"


async def test_a_forwarded_address_of_a_trusted_proxy_is_believed(serve: Serve) -> None:
    """From the end of the list, which is what the trusted ones wrote."""
    broker = await serve({"server": {"trusted_proxies": ("127.0.0.0/8", "10.0.0.0/8")}})
    for headers, address in (
        ({}, "peer"),
        (FORWARDED, "203.0.113.9"),
        ({"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 10.1.2.3"}, "203.0.113.9"),
        ({"X-Forwarded-For": "forged, 203.0.113.9"}, "203.0.113.9"),
        ({"X-Forwarded-For": "forged"}, "peer"),
        ({"X-Real-IP": "203.0.113.9"}, "203.0.113.9"),
        ({"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "198.51.100.1"}, "203.0.113.9"),
        ({"X-Forwarded-For": "2001:db8::1"}, "2001:db8::1"),
    ):
        assert await address_seen(broker, headers) == address, headers


async def test_a_forwarded_address_is_not_believed_from_anybody_else(serve: Serve) -> None:
    broker = await serve({"server": {"trusted_proxies": ("10.0.0.0/8",)}})
    assert await address_seen(broker, FORWARDED) == "peer"
