"""Keys that are published: fetched, rotated, and kept while nobody answers. Against a real HTTP server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from sse_broker import web_jwks
from sse_broker.errors import Unauthorized
from sse_broker.token_keys import PublicKey, PublicKeys
from sse_broker.tokens import Tokens, UnknownKey
from sse_broker.web_jwks import JwkSet
from tests.test_token_keys import SECRET, jwk, jwk_set, signed
from tests.waiting import until


class Issuer:
    """A server that publishes keys; what it answers can be changed."""

    def __init__(self) -> None:
        self.body = jwk_set(jwk("EdDSA", kid="first"))
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay_seconds = 0.0
        self.requests = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/keys.json", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/keys.json"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        await asyncio.sleep(self.delay_seconds)
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    server = Issuer()
    await server.start()
    yield server
    await server.stop()


class Listener:
    """What the web layer does with a token: fetch again when its key is unknown, once."""

    def __init__(self, issuer: Issuer, refresh_seconds: float = 300) -> None:
        keys = PublicKeys(awaits=True)
        self.jwks = JwkSet(issuer.url, keys, refresh_seconds)
        self.tokens = Tokens(SECRET, public_keys=keys)

    async def __aenter__(self) -> Listener:
        await self.jwks.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.jwks.close()

    async def uid_of(self, token: str) -> str:
        try:
            return self.tokens.verify(token).uid
        except UnknownKey:
            await self.jwks.refresh()
            return self.tokens.verify(token).uid


def by(kid: str) -> str:
    return signed("EdDSA", headers={"kid": kid})


async def test_published_keys_are_there_after_the_start(issuer: Issuer) -> None:
    async with Listener(issuer) as listener:
        assert await listener.uid_of(by("first")) == "anna"
        assert issuer.requests == 1


async def test_a_token_with_a_new_key_has_the_keys_fetched_at_once(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_jwks, "MIN_PAUSE_SECONDS", 0.0)
    async with Listener(issuer) as listener:
        issuer.body = jwk_set(jwk("EdDSA", kid="second"))
        assert await listener.uid_of(by("second")) == "anna"
        with pytest.raises(Unauthorized):
            await listener.uid_of(by("first"))


async def test_tokens_with_unknown_keys_are_no_flood_for_the_issuer(issuer: Issuer) -> None:
    async with Listener(issuer) as listener:
        for number in range(200):
            with pytest.raises(UnknownKey):
                await listener.uid_of(by(f"unknown-{number}"))
        assert issuer.requests == 1


async def test_many_who_wait_have_one_request(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_jwks, "MIN_PAUSE_SECONDS", 0.0)
    async with Listener(issuer) as listener:
        issuer.body = jwk_set(jwk("EdDSA", kid="second"))
        issuer.delay_seconds = 0.1
        assert await asyncio.gather(*(listener.uid_of(by("second")) for _ in range(50))) == ["anna"] * 50
        assert issuer.requests == 2


async def test_keys_are_fetched_again_now_and_then(issuer: Issuer) -> None:
    async with Listener(issuer, refresh_seconds=0.05) as listener:
        issuer.body = jwk_set(jwk("EdDSA", kid="second"))

        async def rotated() -> bool:
            try:
                return listener.tokens.verify(by("second")).uid == "anna"
            except UnknownKey:
                return False

        await until(rotated, seconds=10, what="the new key")
        with pytest.raises(UnknownKey):
            listener.tokens.verify(by("first"))


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"", {}),
        (404, b"{}", {}),
        (200, b"", {}),
        (200, b"<html>", {}),
        (200, b'{"keys": []}', {}),
        (200, b" " * (web_jwks.MAX_BYTES + 1), {}),
        (302, b"", {"Location": "/elsewhere"}),
    ],
    ids=["500", "404", "empty", "html", "no keys", "endless", "redirect"],
)
async def test_the_last_keys_stay_while_nothing_good_comes(
    issuer: Issuer, status: int, body: bytes, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_jwks, "MIN_PAUSE_SECONDS", 0.0)
    async with Listener(issuer) as listener:
        issuer.status, issuer.body, issuer.headers = status, body, headers
        with pytest.raises(UnknownKey):
            await listener.uid_of(by("second"))
        assert listener.jwks.failures == 1
        assert await listener.uid_of(by("first")) == "anna"


async def test_a_dead_issuer_is_no_reason_not_to_start_and_is_asked_again(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_jwks, "RETRY_SECONDS", 0.05)
    issuer.status = 503
    async with Listener(issuer) as listener:
        with pytest.raises(UnknownKey):
            await listener.uid_of(by("first"))
        issuer.status = 200

        async def known() -> bool:
            return len(listener.tokens._public_keys) == 1

        await until(known, seconds=10, what="the key")
        assert await listener.uid_of(by("first")) == "anna"


async def test_an_unknown_error_neither_prevents_the_start_nor_ends_the_refreshing(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(web_jwks, "RETRY_SECONDS", 0.05)
    parse, failures = web_jwks.parse_jwk_set, [LookupError("unforeseen")] * 3

    def parse_at_last(text: bytes) -> list[PublicKey]:
        if failures:
            raise failures.pop()
        return parse(text)

    monkeypatch.setattr(web_jwks, "parse_jwk_set", parse_at_last)
    async with Listener(issuer) as listener:
        await until(lambda: len(listener.tokens._public_keys) == 1, seconds=10, what="the key")
        assert listener.jwks.failures == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3


async def test_an_issuer_that_hangs_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_jwks, "FETCH_SECONDS", 0.1)
    issuer.delay_seconds = 30
    started = time.monotonic()
    async with Listener(issuer) as listener:
        assert listener.jwks.failures == 1
    assert time.monotonic() - started < 5
