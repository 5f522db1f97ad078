"""How the API's answers read (docs/contract.md, section 2)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sse_broker import answers
from sse_broker.backend import Presence
from sse_broker.clock import local_text
from sse_broker.presence import Device, Instance, Touch, device_id_of
from tests.recording import make_device

T = 1_726_135_079.0


def presence(name: str, *, login: float = T, touched: float = T, frame: int = 0, **fields: Any) -> Presence:
    return Presence(make_device(name, login_time=login, **fields), Touch(touched, frame))


def test_an_answer_is_json_with_code_message_time_and_result() -> None:
    assert json.loads(answers.body(1, "success", 42, {"a": [1]})) == {
        "code": 1,
        "msg": "success",
        "micro": 42,
        "result": {"a": [1]},
    }


@pytest.mark.parametrize("text", ["é☃", "\u2028", "\0", '"</script>', "\U0001f600"])
def test_any_text_is_carried_as_it_is(text: str) -> None:
    assert json.loads(answers.body(400, text, 0, ""))["msg"] == text


def test_an_answer_is_ascii() -> None:
    """So no reader can take it for another encoding."""
    assert answers.body(1, "é", 0, "☃").isascii()


def test_a_device_has_every_field_of_the_contract() -> None:
    one = presence("pad", uid="ann", touched=T + 60, frame=77)
    assert answers.device("pad", one) == {
        "online": True,
        "device_id": device_id_of("pad"),
        "device_name": "pad",
        "uid": "ann",
        "login_time": local_text(T),
        "instance_address": "127.0.0.1:8080",
        "device_address": "203.0.113.9:40001",
        "last_touch_time": local_text(T + 60),
        "last_frame_id": 77,
    }


def test_a_device_that_is_offline_has_its_id_and_name_and_the_rest_empty() -> None:
    offline = answers.device("pad", None)
    assert offline == {
        "online": False,
        "device_id": device_id_of("pad"),
        "device_name": "pad",
        "uid": "",
        "login_time": "",
        "instance_address": "",
        "device_address": "",
        "last_touch_time": "",
        "last_frame_id": 0,
    }
    assert list(offline) == list(answers.device("pad", presence("pad")))


def test_nothing_of_tokens_and_connections_is_told() -> None:
    device: Device = make_device("pad", token_digest="secretdigest", connection_id="secretconnection")
    text = json.dumps(answers.device("pad", Presence(device, Touch(T, 0))))
    assert "secret" not in text


def test_a_user_came_with_the_first_device_and_was_touched_with_the_last() -> None:
    found = answers.user("ann", [presence("a", login=T, touched=T + 5), presence("b", login=T + 3, touched=T + 4)])
    assert found["online"] is True
    assert found["uid"] == "ann"
    assert found["login_time"] == local_text(T)
    assert found["last_touch_time"] == local_text(T + 5)
    devices = found["devices"]
    assert isinstance(devices, list)
    assert [device["device_name"] for device in devices] == ["a", "b"]
    assert "online" not in devices[0]


def test_a_user_without_devices_is_offline() -> None:
    assert answers.user("ann", []) == {
        "online": False,
        "uid": "ann",
        "login_time": "",
        "last_touch_time": "",
        "devices": [],
    }


ONE = Instance("i1", "10.0.0.1:8080", "1.0", T, 3)
TWO = Instance("i2", "10.0.0.2:8080", "1.0", T + 1, 4)
SIX = Instance("i3", "[2001:db8::1]:8080", "1.0", T + 2, 5)


def test_an_instance_has_every_field_of_the_contract() -> None:
    assert answers.instance_at("10.0.0.2:8080", [ONE, TWO]) == {
        "online": True,
        "version": "1.0",
        "address": "10.0.0.2:8080",
        "start_time": local_text(T + 1),
        "device_count": 4,
    }


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("10.0.0.1", ONE),
        ("2001:db8::1", SIX),
        ("[2001:db8::1]", SIX),
        ("[2001:db8::1]:8080", SIX),
    ],
)
def test_an_instance_is_found_with_and_without_port(asked: str, found: Instance) -> None:
    assert answers.instance_at(asked, [ONE, TWO, SIX])["address"] == found.address


@pytest.mark.parametrize("asked", ["10.0.0.3", "10.0.0.1:8081", "10.0.0", "", "10.0.0.1:", ":8080"])
def test_an_address_that_is_no_instance_s_is_offline(asked: str) -> None:
    assert answers.instance_at(asked, [ONE, TWO, SIX]) == {
        "online": False,
        "version": "",
        "address": asked,
        "start_time": "",
        "device_count": 0,
    }


def test_workers_of_one_port_count_as_one_instance() -> None:
    worker = Instance("i4", ONE.address, "1.0", T + 3, 10)
    found = answers.instance_at(ONE.address, [ONE, TWO, worker])
    assert found["device_count"] == 13
    assert found["start_time"] == local_text(T)


def test_instances_of_one_host_are_not_counted_together() -> None:
    """Each port is another one; asked for without a port, the first answers, with its workers."""
    other = Instance("i5", "10.0.0.1:8081", "1.0", T + 4, 20)
    worker = Instance("i4", ONE.address, "1.0", T + 3, 10)
    found = answers.instance_at("10.0.0.1", [ONE, other, worker])
    assert (found["address"], found["device_count"]) == (ONE.address, 13)


def test_the_cluster_is_its_counts_and_its_instances() -> None:
    found = answers.cluster([ONE, TWO], 5, 7)
    assert {key: found[key] for key in ("instance_count", "user_count", "device_count")} == {
        "instance_count": 2,
        "user_count": 5,
        "device_count": 7,
    }
    assert found["instances"] == [answers.instance_at(one.address, [one]) for one in (ONE, TWO)]


def test_a_cluster_of_nobody_is_zeros() -> None:
    assert answers.cluster([], 0, 0) == {"instance_count": 0, "user_count": 0, "device_count": 0, "instances": []}
