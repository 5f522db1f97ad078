"""A witness of bad input: a stream that is open while a test runs and gets a frame after it, from the same process, with
nothing in the log that should not be there; and requests that such tests make.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.broker_process import TROUBLE, BrokerProcess
from tests.event_client import Answer
from tests.raw_http import request_bytes

# Stands in the data of every request, and must stand in no log.
MARK = "SESAME"
MIB = 1024 * 1024
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@asynccontextmanager
async def watched(process: BrokerProcess) -> AsyncIterator[BrokerProcess]:
    """Watch what is done to a running broker: an open stream must outlive it, and the log must stay clean."""
    pid, token = process.pid, process.mint("witness", "witness")
    said_before = len(process.stderr_text())
    async with (
        process.api() as api,
        process.client("witness", "witness", headers={"X-SSE-TOKEN": token}) as witness,
    ):
        yield process
        assert process.running
        assert process.pid == pid
        assert (await api.send(f"after {MARK}", device="witness")).result == 1
        assert (await witness.next_frame()).data == f"after {MARK}"
        assert len(witness.frames) == 1, "something was sent that should have been refused"
    text = process.stderr_text()[said_before:]
    assert not TROUBLE.search(text), text[-4000:]
    assert token.rpartition(".")[2] not in text
    assert MARK not in text
    assert not re.search(r'HTTP/\d\.\d" 5\d\d ', text)


def post(body: bytes, content_type: str = JSON, target: str = "/send", **headers: str) -> bytes:
    """Return a POST."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes("POST", target, {"Content-Type": content_type} | names, body)


def assert_refused(answer: Answer, status: int, message: str = "", case: str = "") -> None:
    """Check that an answer is a refusal in the form of the API."""
    assert (answer.status, answer.body["code"], answer.result) == (status, status, ""), (case, answer)
    assert message in answer.msg, case
    assert "\n" not in answer.msg
    assert MARK not in answer.msg


async def endless(piece: bytes, count: int) -> AsyncIterator[bytes]:
    """Yield the same bytes again and again."""
    for _ in range(count):
        yield piece


def resident_bytes(pid: int) -> int:
    """Return the memory of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def cpu_seconds(pid: int) -> float:
    """Return the time that a process has worked, which does not depend on what else the machine does."""
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
