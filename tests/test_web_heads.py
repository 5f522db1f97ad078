"""Heads that were parsed before: the same bytes mean the same, and any other bytes are parsed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from sse_broker.web_door import Door
from sse_broker.web_heads import MAX_HEAD_BYTES, MAX_HEADS
from tests.raw_http import RawConnection, request_bytes
from tests.served import ServedBroker
from tests.waiting import until


@pytest.fixture
async def served() -> AsyncIterator[ServedBroker]:
    """A broker with an API key, on the embedded backend."""
    async with ServedBroker({"api": {"keys": ("key",)}}) as broker:
        yield broker


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is given to the parser from now on."""
    came: list[bytes] = []
    parse = Door._parse

    def seen(door: Door, parser: object, data: bytes) -> None:
        came.append(data)
        parse(door, parser, data)  # type: ignore[arg-type]

    monkeypatch.setattr(Door, "_parse", seen)
    return came


def send(key: str = "key", *headers: str, **parameters: str) -> bytes:
    """Return the bytes of a send."""
    body = json.dumps(parameters).encode()
    lines = ["POST /send HTTP/1.1", "Host: x", f"X-SSE-API-Key: {key}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def test_a_head_is_parsed_once_whatever_stands_in_the_body(served: ServedBroker, parsed: list[bytes]) -> None:
    async with served.client("u", "d") as client:
        parsed.clear()
        for _ in range(2):  # on any connection
            async with RawConnection(served.port) as connection:
                for number in range(10):
                    await connection.send(send(uid="u", data=str(number)))
                    assert (await connection.answer("POST")).result == 1
                    assert (await client.next_frame()).data == str(number)
    assert len(parsed) == 1


async def test_a_head_with_another_key_is_another(served: ServedBroker, parsed: list[bytes]) -> None:
    async with RawConnection(served.port) as connection:
        for key, status in (("key", 200), ("kex", 401), ("key", 200), ("kex", 401)):
            await connection.send(send(key, data="x"))
            assert (await connection.answer("POST")).status == status
    assert len(parsed) == 2


@pytest.mark.parametrize("cut", [1, 5, -1])
async def test_a_known_head_whose_body_comes_later_waits_for_it(served: ServedBroker, cut: int) -> None:
    request = send(data="first")
    start = request.index(b"\r\n\r\n") + 4
    async with RawConnection(served.port) as connection:
        await connection.send(request)
        assert (await connection.answer("POST")).status == 200
        await connection.send(request[: start + cut] if cut > 0 else request[:cut])
        await until(lambda: [door for door in served.http.hall.doors if door.body_progress], what="the first part")
        await connection.send(request[start + cut :] if cut > 0 else request[cut:])
        assert (await connection.answer("POST")).status == 200


async def test_what_stands_behind_the_body_is_a_request_of_its_own(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        await connection.send(send(data="x"))
        assert (await connection.answer("POST")).status == 200
        await connection.send(send(data="x") + send("kex", data="x") + send(data="x"))
        assert [(await connection.answer("POST")).status for _ in range(3)] == [200, 401, 200]


async def test_a_head_that_names_another_length_is_no_known_one(served: ServedBroker) -> None:
    """One digit apart, so that a prefix or a body would do if bytes were not compared whole."""
    async with RawConnection(served.port) as connection:
        for data in ("x", "xx", "x" * 90, "x" * 91, "x"):
            await connection.send(send(data=data, uid="nobody"))
            assert (await connection.answer("POST")).result == 0


async def test_a_get_is_not_remembered(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        for number in range(3):
            await connection.send(request_bytes("GET", f"/send?data={number}", {"X-SSE-API-Key": "key"}))
            assert (await connection.answer("GET")).status == 200
    assert len(served.http.hall.heads) == 0


async def test_so_many_heads_are_remembered_and_no_long_ones(served: ServedBroker) -> None:
    async with RawConnection(served.port) as connection:
        for number in range(MAX_HEADS + 10):
            await connection.send(send("key", f"X-Number: {number}", data="x"))
            assert (await connection.answer("POST")).status == 200
        assert len(served.http.hall.heads) == 10
        await connection.send(send("key", f"X-Long: {'x' * MAX_HEAD_BYTES}", data="x"))
        assert (await connection.answer("POST")).status == 200
        assert len(served.http.hall.heads) == 10
