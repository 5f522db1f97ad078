"""The gate through HTTP: keys with scopes, publishers, limits, cookies, origins; on the short way and through aiohttp."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import jwt
import pytest

from tests.broker_process import SECRET
from tests.event_client import Answer
from tests.served import ServedBroker
from tests.test_token_keys import jwk, jwk_set, signed
from tests.waiting import until

KEY, SHOP = "k7Rw2pXn9vBq4TzL", "shop-7Rw2pXn9vBq4"
API = {"keys": (KEY,), "named_keys": (f"shop:send+info:{SHOP}",)}
ENDPOINTS = ("/token", "/send", "/info", "/kick")
HERE = "https://app.example"


@pytest.fixture(params=[True, False], ids=["short way", "aiohttp"])
async def serve_here(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A function that serves a broker with these tables; limits by address apply to this machine."""
    brokers: list[ServedBroker] = []

    async def start(limits: Mapping[str, Any] | None = None, **tables: Any) -> ServedBroker:
        given = {"limits": {"exempt": ()} | dict(limits or {})} | tables
        broker = ServedBroker(given)
        broker.short_way = request.param
        brokers.append(broker)
        return await broker.__aenter__()

    yield start
    for broker in brokers:
        await broker.__aexit__(None, None, None)


async def ask(broker: ServedBroker, path: str, key: str = "", method: str = "POST", **fields: Any) -> Answer:
    """Call an endpoint with a key of one's own."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as session:
        async with session.request(method, broker.base_url + path, json=fields, headers=headers) as response:
            body = await response.read()
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, json.loads(body))


async def send_lines(broker: ServedBroker, body: bytes) -> Any:
    """Send newline-delimited JSON."""
    return await broker.api.request("POST", "/send", data=body, headers={"Content-Type": "application/x-ndjson"})


async def opened(broker: ServedBroker, headers: Mapping[str, str] | None = None, **query: str) -> Answer:
    """Ask for a stream and return the head of the answer; the stream is left at once."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{broker.base_url}/events", params=query, headers=headers) as response:
            fields = {k.lower(): v for k, v in response.headers.items()}
            return Answer(response.status, fields, await response.json() if response.status != 200 else None)


def publisher(publish: object, **claims: Any) -> str:
    return jwt.encode({"exp": time.time() + 60, "publish": publish} | claims, SECRET, algorithm="HS256")


# --- keys ---


async def test_a_named_key_opens_its_endpoints_and_gets_403_at_others(serve_here: Any) -> None:
    broker = await serve_here(api=API)
    fields = {"uid": "u", "data": "d"}
    statuses = {path: (await ask(broker, path, SHOP, **fields)).status for path in ENDPOINTS}
    assert statuses == {"/token": 403, "/send": 200, "/info": 200, "/kick": 403}
    assert {(await ask(broker, path, KEY, **fields)).status for path in ENDPOINTS} == {200}
    assert {(await ask(broker, path, "wrong", **fields)).status for path in ENDPOINTS} == {401}
    refused = await ask(broker, "/kick", SHOP, **fields)
    assert refused.msg == "'shop' may not call /kick"


async def test_wrong_keys_are_slowed_with_retry_after(serve_here: Any) -> None:
    broker = await serve_here({"wrong_keys_per_minute": 5}, api=API)
    statuses = [(await ask(broker, "/send", f"guess-{n}", data="x")).status for n in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    answer = await ask(broker, "/send", "guess", data="x")
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    assert (await ask(broker, "/send", KEY, data="x")).status == 429
    assert broker.gate.counters.wrong_keys >= 5


# --- publishers ---


async def test_a_publisher_reaches_its_users_and_no_one_else(serve_here: Any) -> None:
    broker = await serve_here(api=API)
    token = publisher({"uid": ["anna"], "device": ["ben-1"]}, sub="front")
    async with broker.client("anna", "anna-1") as anna, broker.client("ben", "ben-2") as ben:
        assert (await ask(broker, "/send", token, uid="anna", data="hello")).result == 1
        assert (await anna.next_frame()).data == "hello"
        for target in (
            {},
            {"uid": "ben"},
            {"uid": "anna,ben"},
            {"device": "ben-2"},
            {"uid": "anna", "device": "ben-2"},
        ):
            assert (await ask(broker, "/send", token, data="no", **target)).status == 403
        assert len(anna.frames) == 1
        assert not ben.frames
    for path in ("/token", "/info", "/kick"):
        assert (await ask(broker, path, token, uid="anna")).status == 403


async def test_each_message_of_a_batch_is_held_to_the_publishers_reach(serve_here: Any) -> None:
    broker = await serve_here(api=API)
    token = publisher({"uid": ["anna"]})
    messages = [{"uid": "anna", "data": 1}, {"data": 2}, {"uid": ["ben"], "data": 3}, {"uid": ["anna"], "data": 4}]
    as_list = (await ask(broker, "/send", token, messages=messages)).result
    async with aiohttp.ClientSession() as session:
        lines = "\n".join(map(json.dumps, messages))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"}
        async with session.post(f"{broker.base_url}/send", data=lines, headers=headers) as response:
            as_lines = (await response.json())["result"]
    for result in (as_list, as_lines):
        assert [item if isinstance(item, int) else item["code"] for item in result] == [0, 403, 403, 0]


async def test_a_publisher_is_limited_in_what_it_sends(serve_here: Any) -> None:
    broker = await serve_here({"publisher_sends_per_second": 0.1}, api=API)
    token = publisher({"everyone": True}, sub="front")
    assert (await ask(broker, "/send", token, data="x")).status == 200
    answer = await ask(broker, "/send", token, data="x")
    assert (answer.status, int(answer.headers["retry-after"])) == (429, 10)
    assert (await ask(broker, "/send", KEY, data="x")).status == 200


async def test_a_batch_beyond_the_rate_says_which_lines_were_not_sent(serve_here: Any) -> None:
    broker = await serve_here({"sends_per_second": 10}, api=API)
    messages = [{"data": n} for n in range(300)]
    result = (await ask(broker, "/send", SHOP, messages=messages)).result
    codes = [item if isinstance(item, int) else item["code"] for item in result]
    assert codes == [0] * 128 + [429] * 172  # a group is let in whole, and waited for afterwards
    assert (await ask(broker, "/send", SHOP, messages=messages)).status == 429


async def test_a_batch_holds_only_so_many_messages(serve_here: Any) -> None:
    broker = await serve_here({"batch_messages": 300})  # more than one group of those that are published together
    assert (await ask(broker, "/send", messages=[{"data": 1}] * 300)).status == 200
    sent = broker.broker.traffic.messages
    assert (await ask(broker, "/send", messages=[{"data": 1}] * 301)).status == 413
    assert broker.broker.traffic.messages == sent, "nothing of it: a back end that splits it must not send twice"


async def test_lines_beyond_what_a_batch_holds_are_refused_and_the_others_sent(serve_here: Any) -> None:
    broker = await serve_here({"batch_messages": 300})
    for lines, refused in ((301, 1), (350, 50), (1_000, 300)):
        sent = broker.broker.traffic.messages
        answer = await send_lines(broker, b'{"data": 1}\n' * lines)
        assert answer.status == 200
        codes = [item if isinstance(item, int) else item["code"] for item in answer.result]
        assert codes == [0] * 300 + [413] * refused
        assert broker.broker.traffic.messages == sent + 300
    assert (await send_lines(broker, b"none\n" * 301)).status == 413, "nothing was sent, so the answer is the refusal"


async def test_a_line_that_is_too_long_does_not_hide_what_was_sent_before_it(serve_here: Any) -> None:
    broker = await serve_here({}, server={"max_body_bytes": 4096})
    answer = await send_lines(broker, b'{"data": 1}\n' * 200 + b'"' + b"x" * 200_000)
    codes = [item if isinstance(item, int) else item["code"] for item in answer.result]
    assert codes == [0] * 200 + [413]
    assert broker.broker.traffic.messages == 200


# --- streams ---


async def test_a_user_has_only_so_many_streams_and_may_replace_one(serve_here: Any) -> None:
    broker = await serve_here({"streams_per_user": 2})
    async with broker.client("anna", "a-1"), broker.client("anna", "a-2"), broker.client("ben", "b-1"):
        answer = await opened(broker, token=broker.mint("anna", "a-3"), device="a-3")
        assert answer.status == 429
        assert "user" in answer.msg
        assert int(answer.headers["retry-after"]) >= 1
        assert (await opened(broker, token=broker.mint("anna", "a-2"), device="a-2")).status == 200
    await until(lambda: len(broker.broker.registry) == 0, what="the streams' end")
    assert (await opened(broker, token=broker.mint("anna", "a-3"), device="a-3")).status == 200


async def test_an_address_has_only_so_many_streams(serve_here: Any) -> None:
    broker = await serve_here({"streams_per_address": 2})
    async with broker.client("a", "1"), broker.client("b", "2"):
        answer = await opened(broker, token=broker.mint("c", "3"), device="3")
        assert answer.status == 429
        assert "127.0.0.1" in answer.msg


async def test_streams_are_opened_at_a_rate(serve_here: Any) -> None:
    broker = await serve_here({"opens_per_second": 1})
    answers = [await opened(broker, token="wrong", device="d") for _ in range(12)]
    assert [answer.status for answer in answers][:10] == [401] * 10
    assert answers[-1].status == 429
    assert int(answers[-1].headers["retry-after"]) == 1


async def test_only_so_many_streams_are_about_to_open(serve_here: Any) -> None:
    broker = await serve_here({"pending_opens": 1})
    gate = broker.gate
    with gate.opening():
        answer = await opened(broker, token=broker.mint("a", "1"), device="1")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (await opened(broker, token=broker.mint("a", "1"), device="1")).status == 200
    assert gate.pending == 0


async def test_a_client_that_leaves_while_it_is_refused_leaves_nothing(serve_here: Any) -> None:
    broker = await serve_here({"streams_per_user": 1})
    async with broker.client("anna", "a-1"):
        for _ in range(20):
            await opened(broker, token=broker.mint("anna", "a-2"), device="a-2")
        assert broker.broker.registry.count_of_user("anna") == 1
    await until(lambda: broker.broker.registry.count_of_user("anna") == 0, what="the stream's end")
    assert not broker.broker.registry._of_user
    assert not broker.broker.registry._of_address


# --- tokens ---


async def test_a_device_can_be_required_in_every_token(serve_here: Any) -> None:
    """A token without a device can take over nobody's device name."""
    broker = await serve_here(jwt={"require_device": True, "secret": SECRET})
    async with broker.client("anna", "phone") as client:
        answer = await opened(broker, token=broker.mint("mallory"), device="phone")
        assert answer.status == 401
        assert (await ask(broker, "/token", uid="mallory")).status == 400
        assert (await ask(broker, "/send", device="phone", data="still anna's")).result == 1
        assert (await client.next_frame()).data == "still anna's"


async def test_a_new_key_of_the_issuer_is_taken_at_once(serve_here: Any) -> None:
    from sse_broker.token_keys import parse_jwk_set

    broker = await serve_here()
    keys = broker.gate.access.tokens._public_keys
    keys.replace_fetched(parse_jwk_set(jwk_set(jwk("EdDSA", kid="first"))))
    assert (await opened(broker, token=signed("EdDSA", headers={"kid": "first"}), device="d")).status == 200
    assert (await opened(broker, token=signed("EdDSA", headers={"kid": "other"}), device="d")).status == 401


# --- cookies ---

COOKIE = {"jwt": {"cookie": "__Host-sse", "secret": SECRET}, "server": {"cors_origins": (HERE,)}}


async def with_cookie(broker: ServedBroker, **headers: str) -> int:
    token = broker.mint("anna", "phone")
    fields = {"Cookie": f"other=1; __Host-sse={token}; last=2"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (await opened(broker, fields, device="phone")).status


async def test_a_cookie_may_carry_the_token(serve_here: Any) -> None:
    broker = await serve_here(**COOKIE)
    assert await with_cookie(broker) == 200
    assert await with_cookie(broker, Sec_Fetch_Site="same-origin") == 200
    assert await with_cookie(broker, Origin=HERE, Sec_Fetch_Site="cross-site") == 200
    assert await with_cookie(broker, Origin=broker.base_url) == 200


async def test_a_cookie_counts_for_no_other_sites_page(serve_here: Any) -> None:
    """Neither for a script there, nor for an image or a link, which send no Origin."""
    broker = await serve_here(**COOKIE)
    for origin in (
        "https://evil.example",
        "null",
        "https://app.example.evil.example",
        "http://app.example",
        "https://app.example:444",
    ):
        assert await with_cookie(broker, Origin=origin) == 403
    for site in ("cross-site", "same-site", "whatever"):
        assert await with_cookie(broker, Sec_Fetch_Site=site) == 403
    assert broker.gate.counters.refused_origins == 8


async def test_a_star_lets_no_page_use_the_cookie(serve_here: Any) -> None:
    broker = await serve_here(jwt=COOKIE["jwt"], server={"cors_origins": ("*",)})
    assert await with_cookie(broker, Origin="https://evil.example") == 403


async def test_a_token_that_is_shown_wins_over_the_cookie(serve_here: Any) -> None:
    broker = await serve_here(**COOKIE)
    fields = {"Cookie": "__Host-sse=wrong", "Origin": "https://evil.example"}
    assert (await opened(broker, fields, device="phone", token=broker.mint("anna", "phone"))).status == 200


async def test_two_cookies_of_one_name_are_refused(serve_here: Any) -> None:
    """One of them was set by a neighbouring domain, and nobody knows which."""
    broker = await serve_here(**COOKIE)
    fields = {"Cookie": f"__Host-sse={broker.mint('anna', 'phone')}; __Host-sse={broker.mint('mallory', 'phone')}"}
    assert (await opened(broker, fields, device="phone")).status == 401


async def test_without_the_setting_no_cookie_counts(serve_here: Any) -> None:
    broker = await serve_here()
    assert await with_cookie(broker) == 401


# --- headers ---


async def test_credentials_are_for_named_origins_and_only_with_a_cookie(serve_here: Any) -> None:
    broker = await serve_here(**COOKIE)
    for path in (*ENDPOINTS, "/events"):
        async with aiohttp.ClientSession() as session:
            asks = {"Origin": HERE, "Access-Control-Request-Method": "GET"}
            async with session.options(broker.base_url + path, headers=asks) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == HERE
                assert response.headers["Access-Control-Allow-Credentials"] == "true"
                assert response.headers["Vary"] == "Origin"
            async with session.options(
                broker.base_url + path, headers=asks | {"Origin": "https://evil.example"}
            ) as response:
                assert not [name for name in response.headers if name.lower().startswith("access-control-")]
    star = await serve_here(jwt=COOKIE["jwt"], server={"cors_origins": ("*", HERE)})
    async with aiohttp.ClientSession() as session:
        async with session.get(star.base_url + "/info", headers={"Origin": "https://evil.example"}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in response.headers


async def test_answers_are_kept_nowhere_and_are_nothing_but_json(serve_here: Any) -> None:
    broker = await serve_here()
    for path in ("/token?uid=u", "/info", "/token", "/nowhere"):
        answer = await ask(broker, path, method="GET")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    stream = await opened(broker, token=broker.mint("a", "1"), device="1")
    assert stream.headers["x-content-type-options"] == "nosniff"


async def test_a_kicked_devices_token_stays_refused_after_a_change_of_the_configuration(serve_here: Any) -> None:
    broker = await serve_here()
    token = broker.mint("anna", "phone")
    async with broker.client("anna", "phone", token=token):
        assert (await ask(broker, "/kick", device="phone")).result == 1
        await asyncio.sleep(0)
    broker.gate.change(broker.gate.access)
    assert (await opened(broker, token=token, device="phone")).status == 401
