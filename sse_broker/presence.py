"""Who is here: devices, instances, the reasons for which a device goes, and the messages that announce both. Pure values;
where they are kept and who hears of them is the backend's matter.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

DEVICE_ONLINE = "sse_topic_device_online"
DEVICE_OFFLINE = "sse_topic_device_offline"
USER_ONLINE = "sse_topic_user_online"
USER_OFFLINE = "sse_topic_user_offline"


class Reason(StrEnum):
    """Why a presence message was sent: the `reason` of docs/contract.md, section 4."""

    CONNECTED = "connected"
    DEVICE_ONLINE = "device_online"
    DISCONNECT = "disconnect"
    EXTRUDE = "extrude_offline"
    KICK = "kick_offline"
    INSTANCE_CLOSE = "instance_close"
    INSTANCE_CLEAR = "instance_clear"
    HEARTBEAT_FAIL = "heartbeat_fail"


def device_id_of(device_name: str) -> str:
    """Return the lower-case MD5 hex of the name's UTF-8 bytes. A name for a name, not a secret."""
    return hashlib.md5(device_name.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Instance:
    """One running broker process; `id` is new at each start, `address` is `ip:port`, times are Unix seconds."""

    id: str
    address: str
    version: str
    start_time: float
    device_count: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """One client installation with a live stream; `connection_id` names that stream.

    `token_digest` and `token_expires_at` (Unix seconds) name the token that it came with, so that a kick can revoke it.
    """

    uid: str
    device_id: str
    device_name: str
    connection_id: str
    device_address: str
    instance_id: str
    instance_address: str
    login_time: float
    token_digest: str = ""
    token_expires_at: float = 0


@dataclass(frozen=True, slots=True)
class Touch:
    """What changes while a device is online: when its stream was last written to, and the last frame id that it has."""

    time: float
    last_frame_id: int


@dataclass(frozen=True, slots=True)
class PresenceMessage:
    """One presence message: the channel, and the fields of its JSON (docs/contract.md, section 4)."""

    channel: str
    uid: str
    device_id: str
    device_name: str
    trigger_time: str
    reason: str
    payload: str

    def to_json(self) -> str:
        """Return the JSON text that subscribers get."""
        return json.dumps(
            {
                "uid": self.uid,
                "device_id": self.device_id,
                "device_name": self.device_name,
                "trigger_time": self.trigger_time,
                "reason": self.reason,
                "payload": self.payload,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
