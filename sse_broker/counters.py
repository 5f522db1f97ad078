"""What the gate of this instance refused, as plain numbers that only grow; others export them. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Refusals since the start of the process, by cause; and the reloads of what decides about them."""

    wrong_keys: int = 0
    wrong_tokens: int = 0
    refused_wrong_keys: int = 0
    refused_scopes: int = 0
    refused_sends: int = 0
    refused_opens: int = 0
    refused_pending_opens: int = 0
    refused_streams_per_address: int = 0
    refused_streams_per_user: int = 0
    refused_origins: int = 0
    slow_clients: int = 0
    reloads: int = 0
    refused_reloads: int = 0
