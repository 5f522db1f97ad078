"""Many sends in one request: newline-delimited JSON and `{"messages": [...]}`, against a real broker."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from sse_broker.backend import GROUP_CHARS, GROUP_MESSAGES, GROUP_NAMES
from sse_broker.memory import MemoryBackend
from sse_broker.target import Message, Sent
from tests.broker_process import BrokerProcess
from tests.event_client import EventClient
from tests.served import ServedBroker

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
async def broker() -> AsyncIterator[BrokerProcess]:
    """A broker on the embedded backend with a small body limit."""
    async with BrokerProcess({"server": {"max_body_bytes": 4096}}) as process:
        yield process


async def _opened(broker: BrokerProcess, uid: str, device: str) -> EventClient:
    return await broker.client(uid, device).open()


def _lines(*messages: object) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


async def test_each_line_is_a_send_and_a_bad_line_fails_alone(broker: BrokerProcess) -> None:
    stream = await _opened(broker, "ann", "phone")
    body = _lines({"uid": "ann", "data": 1}, {"uid": "ann"}, {"uid": ["ann", "bob"], "event": "e", "data": {"a": "é"}})
    async with broker.api() as api:
        answer = await api.request(
            "POST", "/send", data=body + b"\n{nonsense\n[1]\n" + _lines({"data": "all"}), headers=NDJSON
        )
    assert answer.status == 200
    first, missing, third, nonsense, no_object, everyone = answer.result
    assert (first, third, everyone) == (1, 1, 1)
    assert missing == {"code": 400, "msg": "'data' is missing"}
    assert nonsense["code"] == no_object["code"] == 400
    await stream.wait_for(lambda event: event.data == "all")
    assert [(frame.event, frame.data) for frame in stream.frames] == [
        ("message", "1"),
        ("e", '{"a":"é"}'),
        ("message", "all"),
    ]
    await stream.close()


async def test_a_json_body_carries_a_list_of_messages(broker: BrokerProcess) -> None:
    stream = await _opened(broker, "ann", "phone")
    messages = [{"device": "phone", "data": str(number)} for number in range(3)] + [
        {"device": "", "data": {}, "event": "sys_x"}
    ]
    async with broker.api() as api:
        answer = await api.request("POST", "/send", json={"messages": messages})
        not_a_list = await api.request("POST", "/send", json={"messages": {"data": 1}})
    assert answer.result[:3] == [1, 1, 1]
    assert answer.result[3]["code"] == 400
    assert not_a_list.status == 400
    assert "'messages'" in not_a_list.msg
    await stream.wait_for(lambda event: event.data == "2")
    assert [frame.data for frame in stream.frames] == ["0", "1", "2"]
    await stream.close()


async def test_a_batch_may_be_longer_than_a_body_since_it_is_read_piece_by_piece(broker: BrokerProcess) -> None:
    """Frames arrive while the request is still being written, and the whole is a hundred times the body limit."""
    stream = await _opened(broker, "ann", "phone")
    count = 10 * GROUP_MESSAGES
    seen_before_the_end = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal seen_before_the_end
        for number in range(count):
            yield _lines({"device": "phone", "data": f"{number} " + "x" * 300})
        await stream.wait_for(lambda event: event.data.startswith("0 "))
        seen_before_the_end = len(stream.frames)
        yield _lines({"device": "phone", "data": "last"})

    async with broker.api() as api:
        answer = await api.request("POST", "/send", data=body(), headers=NDJSON)
    assert answer.result == [1] * (count + 1)
    assert seen_before_the_end > 0
    await stream.wait_for(lambda event: event.data == "last")
    assert [frame.data.split()[0] for frame in stream.frames] == [*map(str, range(count)), "last"]
    await stream.close()


async def test_a_line_longer_than_a_body_may_be_is_refused(broker: BrokerProcess) -> None:
    async with broker.api() as api:
        answer = await api.request("POST", "/send", data=b'{"data":"' + b"x" * 5000, headers=NDJSON)
        assert answer.status == 413
        assert (await api.request("POST", "/send", data=_lines({"data": 1}), headers=NDJSON)).result == [0]


async def test_an_empty_batch_is_an_empty_list(broker: BrokerProcess) -> None:
    async with broker.api() as api:
        assert (await api.request("POST", "/send", data=b"\n \n", headers=NDJSON)).result == []
        assert (await api.request("POST", "/send", json={"messages": []})).result == []


async def test_a_sender_that_leaves_in_the_middle_takes_nobody_with_it(broker: BrokerProcess) -> None:
    stream = await _opened(broker, "ann", "phone")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.address.rpartition(":")[2]))
    line = _lines({"device": "phone", "data": "x"}) * GROUP_MESSAGES
    head = b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head + line)
    await stream.next_frame()
    writer.transport.abort()
    del reader
    async with broker.api() as api:
        await api.send("still here", device="phone")
    await stream.wait_for(lambda event: event.data == "still here")
    assert len(stream.frames) == GROUP_MESSAGES + 1
    await stream.close()


async def test_a_batch_is_published_in_groups_of_bounded_weight() -> None:
    """By the number of messages, of names, and by the length of the data."""

    class Recording(MemoryBackend):
        def __init__(self) -> None:
            super().__init__(max_frames=10, expire_seconds=10)
            self.groups: list[int] = []

        async def publish(self, messages: Sequence[Message]) -> list[Sent]:
            self.groups.append(len(messages))
            return await super().publish(messages)

    backend = Recording()
    async with ServedBroker(wrap=lambda _: backend) as broker:
        for message, group in (
            ({"data": "x"}, GROUP_MESSAGES),
            ({"data": "x", "uid": [f"u{number}" for number in range(GROUP_NAMES // 4)]}, 4),
            ({"data": "x" * (GROUP_CHARS // 2)}, 2),
        ):
            backend.groups.clear()
            count = 2 * group + 1
            answer = await broker.api.request("POST", "/send", data=_lines(*[message] * count), headers=NDJSON)
            assert answer.result == [0] * count
            assert backend.groups == [group, group, 1]


async def test_a_line_may_come_byte_by_byte(broker: BrokerProcess) -> None:
    body = _lines({"uid": "nobody", "data": 1}, {"uid": "nobody", "data": 2})

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(len(body)):
            yield body[at : at + 1]

    async with broker.api() as api:
        assert (await api.request("POST", "/send", data=pieces(), headers=NDJSON)).result == [0, 0]


async def test_lines_are_not_taken_compressed(broker: BrokerProcess) -> None:
    headers = NDJSON | {"Content-Encoding": "gzip"}
    async with broker.api() as api:
        answer = await api.request("POST", "/send", data=gzip.compress(_lines({"data": 1})), headers=headers)
    assert (answer.status, answer.body["code"], answer.result) == (415, 415, "")
