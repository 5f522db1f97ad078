"""`/info` through HTTP (docs/contract.md, section 2): users, devices, instances and the cluster, online and off, on each backend."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

from sse_broker.version import VERSION
from tests.served import Serve, ServedBroker
from tests.waiting import until

DEVICE_FIELDS = {
    "device_id",
    "device_name",
    "uid",
    "login_time",
    "instance_address",
    "device_address",
    "last_touch_time",
    "last_frame_id",
}
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def seconds_ago(text: str) -> float:
    """Return how long ago a time of the broker's was; it must read as the contract has it."""
    assert LOCAL_TIME.fullmatch(text), text
    return time.time() - time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


async def info(broker: ServedBroker, **which: Any) -> dict[str, Any]:
    answer = await broker.api.info(**which)
    assert answer.status == 200, answer
    result: dict[str, Any] = answer.result
    return result


async def test_a_device_that_is_online(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("anna", "xuyd") as client:
        result = await info(broker, device="xuyd")
        assert set(result) == DEVICE_FIELDS | {"online"}
        assert result["online"] is True
        assert result["device_id"] == "c7ea097beaf447e97f41af1c4651983c"
        assert (result["device_name"], result["uid"]) == ("xuyd", "anna")
        assert result["instance_address"] == broker.address
        assert result["device_address"] == client.address
        assert -1 <= seconds_ago(result["login_time"]) < 10
        assert -1 <= seconds_ago(result["last_touch_time"]) < 10
        assert result["last_frame_id"] == 0


async def test_a_device_that_is_not_online(serve: Serve) -> None:
    broker = await serve()
    nobody = await info(broker, device="nobody é")
    async with broker.client("u", "d"):
        pass

    async def gone() -> dict[str, Any] | None:
        result = await info(broker, device="d")
        return None if result["online"] else result

    left = await until(gone)
    for name, result in (("nobody é", nobody), ("d", left)):
        assert result == {
            "online": False,
            "device_id": hashlib.md5(name.encode()).hexdigest(),
            "device_name": name,
            "uid": "",
            "login_time": "",
            "instance_address": "",
            "device_address": "",
            "last_touch_time": "",
            "last_frame_id": 0,
        }


async def test_a_user_with_several_devices(serve: Serve) -> None:
    """Oldest login first; the user's own login is that of the first device."""
    broker = await serve()
    async with broker.client("anna", "first"), broker.client("ben", "other"):
        login_time = (await info(broker, uid="anna"))["login_time"]
        await until(lambda: seconds_ago(login_time) > 1, what="a later second, as times are told in seconds")
        async with broker.client("anna", "second"):
            result = await info(broker, uid="anna")
            assert set(result) == {"online", "uid", "login_time", "last_touch_time", "devices"}
            assert (result["online"], result["uid"]) == (True, "anna")
            assert result["login_time"] == login_time
            assert -1 <= seconds_ago(result["last_touch_time"]) < 10
            assert [set(one) for one in result["devices"]] == [DEVICE_FIELDS, DEVICE_FIELDS]
            assert [one["device_name"] for one in result["devices"]] == ["first", "second"]
            assert result["devices"][0]["login_time"] == login_time
            assert result["devices"][0]["login_time"] < result["devices"][1]["login_time"]


async def test_a_user_who_is_not_online(serve: Serve) -> None:
    broker = await serve()
    nobody = {"online": False, "uid": "nobody", "login_time": "", "last_touch_time": "", "devices": []}
    assert await info(broker, uid="nobody") == nobody


async def test_the_last_frame_that_a_device_has_is_known(serve: Serve) -> None:
    """What it came with, until it gets more; from its own instance and from others."""
    broker = await serve({"sse": {"heartbeat_interval": 0.5}})
    async with broker.client("u", "d") as client:
        await broker.api.send("x", device="d")
        last_id = (await client.next_frame()).id
        assert (await info(broker, device="d"))["last_frame_id"] == last_id
    async with broker.client("u", "d", last_id=last_id):
        assert (await info(broker, uid="u"))["devices"][0]["last_frame_id"] == last_id


async def test_what_changes_is_renewed_for_other_instances(serve_on_redis: Serve) -> None:
    tables = {"sse": {"heartbeat_interval": 0.5}}
    broker, other = await serve_on_redis(tables), await serve_on_redis(tables)
    async with broker.client("u", "d") as client:
        touched = (await info(other, device="d"))["last_touch_time"]
        await broker.api.send("x", device="d")
        last_id = (await client.next_frame()).id

        async def renewed() -> bool:
            result = await info(other, device="d")
            return bool(result["last_frame_id"] == last_id and result["last_touch_time"] > touched)

        await until(renewed, what="a later touch with the last frame's id")


async def test_an_instance_by_its_address_with_and_without_port(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d"), broker.client("u", "e"):
        for which in (
            {"ip": broker.address},
            {"address": broker.address},
            {"ip": "127.0.0.1"},
            {"address": "127.0.0.1"},
        ):
            result = await info(broker, **which)
            assert set(result) == {"online", "version", "address", "start_time", "device_count"}
            assert (result["online"], result["version"], result["address"]) == (True, VERSION, broker.address)
            assert -1 <= seconds_ago(result["start_time"]) < 20
            assert result["device_count"] == 2


async def test_an_instance_that_is_not_there(serve: Serve) -> None:
    broker = await serve()
    for address in ("127.0.0.1:1", "10.9.8.7", "10.9.8.7:8080", "nonsense", "[::1]:1"):
        result = await info(broker, ip=address)
        expected = {"online": False, "version": "", "address": address, "start_time": "", "device_count": 0}
        assert result == expected


async def test_the_cluster(serve: Serve) -> None:
    broker = await serve()
    assert (await info(broker))["instances"][0]["device_count"] == 0
    async with broker.client("anna", "1"), broker.client("anna", "2"), broker.client("ben", "3"):
        result = await info(broker)
        instances = result.pop("instances")
        assert result == {"instance_count": 1, "user_count": 2, "device_count": 3}
        assert instances == [await info(broker, ip=broker.address)]
        assert (instances[0]["device_count"], instances[0]["online"]) == (3, True)


async def test_each_instance_knows_the_whole_cluster(serve_on_redis: Serve) -> None:
    first, second = await serve_on_redis(), await serve_on_redis()
    async with first.client("anna", "1"), second.client("anna", "2"), second.client("ben", "3") as client:
        for broker in (first, second):
            result = await info(broker)
            assert (result["instance_count"], result["user_count"], result["device_count"]) == (2, 2, 3)
            counts = {one["address"]: one["device_count"] for one in result["instances"]}
            assert counts == {first.address: 1, second.address: 2}
            assert (await info(broker, ip=first.address))["device_count"] == 1
            user = await info(broker, uid="anna")
            assert {one["instance_address"] for one in user["devices"]} == {first.address, second.address}
            device = await info(broker, device="3")
            assert (device["online"], device["instance_address"]) == (True, second.address)
            assert device["device_address"] == client.address
            assert (await broker.api.send("x", uid=["anna", "ben"], device="1")).result == 3
    await second.stop()
    assert [one["address"] for one in (await info(first))["instances"]] == [first.address]


async def test_asking_leaves_presence_as_it_is(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as client:
        for which in ({}, {"uid": "u"}, {"device": "d"}, {"ip": broker.address}):
            await info(broker, **which)
        assert not client.closed
        assert (await info(broker))["device_count"] == 1
