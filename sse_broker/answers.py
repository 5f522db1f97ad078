"""How the API's answers read: the JSON envelope and the results of `/info` (docs/contract.md, section 2). Pure."""

import json
from collections.abc import Sequence

from sse_broker.backend import Presence
from sse_broker.clock import local_text
from sse_broker.presence import Instance, device_id_of

CONTENT_TYPE = "application/json; charset=utf-8"
# An answer may hold a token, so nobody keeps it; and it is JSON, whatever a browser thinks that it sees in it.
HEADERS = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def body(code: int, message: str, micro: int, result: object) -> bytes:
    """Return the answer's bytes; `micro` is the handling time in µs."""
    if type(result) is int and message == "success":  # a send's: 0.5 µs instead of 4
        return b'{"code": %d, "msg": "success", "micro": %d, "result": %d}' % (code, micro, result)
    return json.dumps({"code": code, "msg": message, "micro": micro, "result": result}).encode()


def device(name: str, presence: Presence | None) -> dict[str, object]:
    """Return the result for a device."""
    if presence is not None:
        return {"online": True} | _device_fields(presence)
    return {
        "online": False,
        "device_id": device_id_of(name),
        "device_name": name,
        "uid": "",
        "login_time": "",
        "instance_address": "",
        "device_address": "",
        "last_touch_time": "",
        "last_frame_id": 0,
    }


def user(uid: str, presences: Sequence[Presence]) -> dict[str, object]:
    """Return the result for a user."""
    return {
        "online": bool(presences),
        "uid": uid,
        "login_time": local_text(min((one.device.login_time for one in presences), default=0)),
        "last_touch_time": local_text(max((one.touch.time for one in presences), default=0)),
        "devices": [_device_fields(one) for one in presences],
    }


def instance_at(address: str, instances: Sequence[Instance]) -> dict[str, object]:
    """Return the result for the instance at an address; without port it is the first of that host. Workers of one port count
    as one.
    """
    found = [one for one in instances if one.address == address]
    found = found or [one for one in instances if _host(one.address) in (address, f"[{address}]")]
    if not found:
        return {"online": False, "version": "", "address": address, "start_time": "", "device_count": 0}
    first = found[0]
    return _instance_fields(first) | {
        "device_count": sum(one.device_count for one in found if one.address == first.address)
    }


def cluster(instances: Sequence[Instance], user_count: int, device_count: int) -> dict[str, object]:
    """Return the result for the cluster."""
    return {
        "instance_count": len(instances),
        "user_count": user_count,
        "device_count": device_count,
        "instances": [_instance_fields(one) for one in instances],
    }


def _device_fields(presence: Presence) -> dict[str, object]:
    one = presence.device
    return {
        "device_id": one.device_id,
        "device_name": one.device_name,
        "uid": one.uid,
        "login_time": local_text(one.login_time),
        "instance_address": one.instance_address,
        "device_address": one.device_address,
        "last_touch_time": local_text(presence.touch.time),
        "last_frame_id": presence.touch.last_frame_id,
    }


def _instance_fields(one: Instance) -> dict[str, object]:
    return {
        "online": True,
        "version": one.version,
        "address": one.address,
        "start_time": local_text(one.start_time),
        "device_count": one.device_count,
    }


def _host(address: str) -> str:
    return address.rpartition(":")[0]
