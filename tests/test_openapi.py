"""The description at /openapi.json: true for the API as it is, as Schemathesis finds in some seconds (`make fuzz-api`: longer)."""

from __future__ import annotations

import json
import re

import aiohttp
import pytest
from openapi_spec_validator import validate

from sse_broker.openapi import description
from tests.api_fuzz import KEY, fuzz
from tests.broker_process import BrokerProcess
from tests.redis_servers import RedisServer
from tests.served import Serve

GOOD = {
    "/token": {"uid": "u"},
    "/send": {"data": {"x": [1]}, "event": "news", "uid": ["u"]},
    "/info": {},
    "/kick": {"uid": ["u"], "data": "bye"},
}


def test_it_is_a_valid_description() -> None:
    validate(description())


async def test_it_is_served_to_anybody(serve_embedded: Serve) -> None:
    broker = await serve_embedded({"api": {"keys": ("k7Rw2pXn9vBq4TzL",)}})
    async with aiohttp.ClientSession() as session:
        async with session.get(broker.base_url + "/openapi.json") as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert json.loads(await response.read()) == description()


async def test_it_names_every_endpoint_with_its_methods(serve_embedded: Serve) -> None:
    broker = await serve_embedded()
    for path, methods in description()["paths"].items():
        for method in ("get", "post", "put", "delete", "patch"):
            answer = await broker.api.request(method.upper(), path)
            assert (answer.status == 405) == (method not in methods), (path, method)


@pytest.mark.parametrize("path", GOOD)
async def test_what_it_allows_is_taken_and_answered_as_it_says(serve_embedded: Serve, path: str) -> None:
    broker = await serve_embedded()
    answer = await broker.api.request("POST", path, json=GOOD[path])
    assert answer.status == 200, answer
    schema = description()["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answer.body) == set(schema["required"])


async def test_schemathesis_finds_nothing_with_all_phases_and_checks(redis_server: RedisServer) -> None:
    async with BrokerProcess({"api": {"keys": [KEY]}}, redis=redis_server) as broker:
        report = await fuzz(broker.base_url, seconds=16, seed=1)
    assert report.clean, report.text[-8000:]
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert re.search(rf"✅ +{phase} \(in", report.text), report.text
    assert report.cases >= 200
