"""Devices' ids and presence messages (docs/contract.md, sections 1 and 4)."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker import presence
from sse_broker.presence import PresenceMessage, Reason, device_id_of
from tests.recording import make_device


def test_a_device_id_is_the_md5_of_the_name() -> None:
    assert device_id_of("xuyd") == "c7ea097beaf447e97f41af1c4651983c"


def test_a_device_id_is_made_of_the_utf_8_bytes() -> None:
    assert device_id_of("设备") == "f55f17362872c3cc83e6199e618c93d2"


def test_channels_and_reasons_are_those_of_the_contract() -> None:
    channels = (presence.DEVICE_ONLINE, presence.DEVICE_OFFLINE, presence.USER_ONLINE, presence.USER_OFFLINE)
    assert channels == (
        "sse_topic_device_online",
        "sse_topic_device_offline",
        "sse_topic_user_online",
        "sse_topic_user_offline",
    )
    assert {str(reason) for reason in Reason} == {
        "connected",
        "device_online",
        "disconnect",
        "extrude_offline",
        "kick_offline",
        "instance_close",
        "instance_clear",
        "heartbeat_fail",
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT, TEXT)
def test_a_message_reads_back_as_what_it_says(uid: str, name: str, payload: str) -> None:
    message = PresenceMessage(
        presence.DEVICE_OFFLINE, uid, device_id_of(name), name, "2024-09-12 09:57:59", Reason.KICK, payload
    )
    assert json.loads(message.to_json()) == {
        "uid": uid,
        "device_id": device_id_of(name),
        "device_name": name,
        "trigger_time": "2024-09-12 09:57:59",
        "reason": "kick_offline",
        "payload": payload,
    }


def test_a_message_is_compact_and_keeps_its_characters() -> None:
    message = PresenceMessage("c", "ü", "i", "n", "t", Reason.CONNECTED, "")
    assert message.to_json() == (
        '{"uid":"ü","device_id":"i","device_name":"n","trigger_time":"t","reason":"connected","payload":""}'
    )


def test_a_device_can_not_be_changed() -> None:
    device = make_device()
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.uid = "other"  # type: ignore[misc]
