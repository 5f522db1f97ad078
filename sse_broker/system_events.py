"""The broker's own events (docs/contract.md, section 3) as blocks. Pure."""

import json

from sse_broker.frame import RETRY_NEVER_MS, Block, soon_ms, system_event
from sse_broker.presence import Reason


def connected(client_address: str) -> Block:
    """Return the first event of a stream; its retry spreads the clients of an instance that dies without a word."""
    return system_event("sys_connected", client_address, soon_ms())


def replay_gap(requested_id: int, oldest_id: int) -> Block:
    """Return the notice that frames between these two ids were already dropped."""
    return system_event("sys_replay_gap", json.dumps({"requested": requested_id, "oldest": oldest_id}))


def expired() -> Block:
    """Return the last words to a client whose token has expired: a comment, for the contract has no event for it."""
    return Block.of(b":the token has expired\n\n")


def end(reason: Reason, payload: str) -> Block:
    """Return the last event of a stream that the broker ends, for one of the three reasons that have one."""
    if reason is Reason.KICK:
        return system_event("sys_kick_offline", payload, RETRY_NEVER_MS)
    if reason is Reason.EXTRUDE:
        return system_event("sys_extrude_offline", payload, RETRY_NEVER_MS)
    return system_event("sys_instance_close", payload, soon_ms())
