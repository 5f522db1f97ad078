"""What one instance tells another."""

from __future__ import annotations

import pytest

from sse_broker.envelope import EndEnvelope, FrameEnvelope
from sse_broker.frame import Frame
from sse_broker.presence import Reason


def test_everyone_and_no_one_are_told_apart() -> None:
    frame = Frame(1, "", "x")
    assert FrameEnvelope(frame, None) != FrameEnvelope(frame, ())


def test_envelopes_are_values() -> None:
    assert FrameEnvelope(Frame(1, "e", "x"), ("d",)) == FrameEnvelope(Frame(1, "e", "x"), ("d",))
    assert EndEnvelope("d", "c", Reason.KICK, "p") == EndEnvelope("d", "c", Reason("kick_offline"), "p")


def test_an_envelope_can_not_be_changed_on_its_way() -> None:
    envelope = FrameEnvelope(Frame(1, "", "x"), None)
    with pytest.raises(AttributeError):
        envelope.device_ids = ("d",)  # type: ignore[misc]
