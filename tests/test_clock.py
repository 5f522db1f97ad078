"""Time as the outside reads it."""

from __future__ import annotations

import time

import pytest

from sse_broker.clock import local_text


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The time zone, to be set by TZ; put back at the end."""
    with monkeypatch.context() as patch:
        yield patch
    time.tzset()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UTC", "2024-09-12 09:57:59"),
        ("CST-8", "2024-09-12 17:57:59"),
        ("EST5EDT,M3.2.0,M11.1.0", "2024-09-12 05:57:59"),
    ],
)
def test_a_time_reads_in_the_zone_of_the_broker(zone: pytest.MonkeyPatch, name: str, text: str) -> None:
    zone.setenv("TZ", name)
    time.tzset()
    assert local_text(1726135079) == text


def test_parts_of_a_second_are_dropped(zone: pytest.MonkeyPatch) -> None:
    zone.setenv("TZ", "UTC")
    time.tzset()
    assert local_text(1726135079.999) == "2024-09-12 09:57:59"


def test_no_time_is_empty_text() -> None:
    assert local_text(0) == ""
