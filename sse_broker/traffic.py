"""What went through this instance, as plain numbers that only grow; others export them. Pure."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Traffic:
    """Counts since the start of the process. `offline` is by the reason of the stream's end."""

    messages: int = 0
    refused_messages: int = 0
    opened: int = 0
    resumed: int = 0
    replayed_frames: int = 0
    gaps: int = 0
    catch_ups: int = 0
    deliveries: int = 0
    delivered_bytes: int = 0
    offline: Counter[str] = field(default_factory=Counter)
