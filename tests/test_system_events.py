"""The broker's own events, byte for byte as a client gets them (docs/contract.md, section 3)."""

from __future__ import annotations

import json
import re

import pytest

from sse_broker import system_events
from sse_broker.frame import Block
from sse_broker.presence import Reason
from tests.event_parser import EventParser

A_DAY_MS = 86_400_000


def retry_ms(block: Block) -> int:
    found = re.search(rb"^retry: ([0-9]+)\n", block.plain, re.MULTILINE)
    assert found, block.plain
    return int(found[1])


def test_the_first_event_has_the_client_address_and_a_retry_line() -> None:
    block = system_events.connected("203.0.113.9:40001")
    assert re.fullmatch(rb"retry: [0-9]+\nevent: sys_connected\ndata: 203\.0\.113\.9:40001\n\n", block.plain)


def test_the_gap_notice_names_both_ids_as_json() -> None:
    block = system_events.replay_gap(7, 2**53 - 1)
    (event,) = EventParser().feed(block.plain)
    assert event.event == "sys_replay_gap"
    assert json.loads(event.data) == {"requested": 7, "oldest": 2**53 - 1}
    assert b"retry" not in block.plain


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (Reason.KICK, b"sys_kick_offline"),
        (Reason.EXTRUDE, b"sys_extrude_offline"),
        (Reason.INSTANCE_CLOSE, b"sys_instance_close"),
    ],
)
def test_an_end_has_the_name_of_its_reason_and_its_payload(reason: Reason, name: bytes) -> None:
    assert b"event: " + name + b"\ndata: why\n\n" in system_events.end(reason, "why").plain


@pytest.mark.parametrize("reason", [Reason.KICK, Reason.EXTRUDE])
def test_a_client_whose_place_is_taken_stays_away_for_a_day(reason: Reason) -> None:
    assert retry_ms(system_events.end(reason, "")) == A_DAY_MS


def test_the_clients_of_an_instance_that_closes_return_within_one_to_five_seconds_and_not_all_at_once() -> None:
    delays = [retry_ms(system_events.end(Reason.INSTANCE_CLOSE, "")) for _ in range(300)]
    assert 1000 <= min(delays) < 1500
    assert 4500 < max(delays) <= 5000
    assert len(set(delays)) > 100


@pytest.mark.parametrize(
    "text", ["two\nlines", "cr\rand\r\ncrlf", "", " leading", "id: 5", "\n\nevent: message\ndata: forged"]
)
def test_a_payload_stays_data_whatever_it_holds(text: str) -> None:
    (event,) = EventParser().feed(system_events.end(Reason.KICK, text).plain)
    assert event.event == "sys_kick_offline"
    assert event.data == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    "block", [system_events.connected("a"), system_events.replay_gap(1, 2), system_events.end(Reason.KICK, "x")]
)
def test_no_system_event_has_an_id(block: Block) -> None:
    """So a client's last event id stays the last frame's."""
    assert not re.search(rb"^id", block.plain, re.MULTILINE)
