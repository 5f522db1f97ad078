"""Names of the keys in Redis, what each holds, and why it does not stay for ever. Nothing else makes a key name.

Logs, routes and inboxes stand in one slot (the hash tag of `shard`), so that one script can change them together: this is
what gives the cluster one order. What changes with each heartbeat is named by device, spread over all slots.

Names below are what follows the shard's prefix `{sse}:`. The scripts make the same names from the same prefix.

| name | type | holds | goes when |
| --- | --- | --- | --- |
| id | string | the last id given | never: one key |
| epoch | string | the first id of this data set; older ids are of a lost one | never: one key |
| routes | hash | device id: instance, connection, JSON of the device | the device leaves or its instance is cleared |
| users | hash | uid: number of online devices | the user's last device leaves |
| user:UID | set | device ids of a user | likewise |
| held:INSTANCE | set | device ids of an instance | likewise |
| nodes | hash | members, instance id: address | the instance retires or is cleared |
| outside | hash | instances that hold routes and are no members, like `nodes` | it is cleared, or a member again |
| acked | hash | instance id: the greatest id that was acknowledged to it | the instance retires or is cleared |
| node:INSTANCE | hash | the instance's heartbeat: address, version, start | TTL of two heartbeats |
| inbox:INSTANCE | stream | envelopes for an instance | read entries trimmed by it, the key when it retires or is cleared |
| cleared:INSTANCE | string | that it was cleared, should it still live | TTL of a day, or it is a member again |
| log:all, log:u:UID | stream | frames for replay | TTL `sse.device_frame_cache_expire` |
| log:d:DEVICE:UID | stream | likewise, for a device while it is a user's; without UID until it first is one's | the same TTL |
| owner:DEVICE | string | the user under whom an offline device was here last | the same TTL, from its going or the last frame for it |
| strayed:DEVICE:UID | string | up to which id frames for a device may lie with a former user, as a failover lost its change | the same TTL |
| revoked:DIGEST | string | a kicked device's token | TTL until the token expires |
| done:NONCE | string | the answer to a call, in case it is repeated; for a join, NONCE is its connection | TTL of seconds |

And outside the shard, `sse:device:{DEVICE}:CONNECTION`, hash: last touch and last frame id, TTL of a little over three
heartbeats. The connection is in the name, so an old stream can not touch its successor's.
"""

DEFAULT_SHARD = "sse"


def shard() -> str:
    """Return the hash tag under which logs, routes and inboxes stand: the one place to change, should they be split."""
    return DEFAULT_SHARD


def shard_key(name: str) -> str:
    """Return a key of the shard."""
    return f"{{{shard()}}}:{name}"


def inbox(instance_id: str) -> str:
    """Return the stream of envelopes for an instance."""
    return shard_key(f"inbox:{instance_id}")


def touch(device_id: str, connection_id: str) -> str:
    """Return the hash of what changes while a device is online."""
    return f"sse:device:{{{device_id}}}:{connection_id}"
