"""Limits of rates: token buckets, one for each address, key or user, in bounded memory.

Pure: the clock is passed in. Owns how much each may do and how long it has to wait. Must not know what is limited, nor
how a refusal is said.
"""

import ipaddress
import math
import time
from collections.abc import Callable

# Beyond so many different keys those that were quiet for longest are forgotten. At about 150 bytes each, 10 MB.
MAX_KEYS = 65_536
_IPV6_PREFIX = 64


class Buckets:
    """Token buckets by key: each holds `burst` tokens, and `rate` more flow in per second.

    A bucket is kept as one number, the time at which it would be full again (the "generic cell rate algorithm"); one that
    is full needs no memory. A take may go into debt by more than one token, so that a batch of any size is let in whole
    and waited for afterwards. `rate` 0 is no limit.
    """

    __slots__ = ("_clock", "_full_at", "_max_keys", "_rate", "_slack_seconds")

    def __init__(
        self,
        rate: float,
        burst: float,
        *,
        max_keys: int = MAX_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._full_at: dict[str, float] = {}
        self.change(rate, burst)

    def __len__(self) -> int:
        return len(self._full_at)

    def change(self, rate: float, burst: float) -> None:
        """Apply another rate and size from now on; what was taken stays taken."""
        self._rate = rate
        # How far from full a bucket may be and still hold a token. Rounding must not cost the last one of a burst.
        self._slack_seconds = (burst - 1) / rate + 1e-6 if rate else math.inf

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._rate > 0

    def take(self, key: str, tokens: float = 1) -> int:
        """Take tokens and return 0, or take nothing and return after how many seconds, at least 1, there is one."""
        if not self._rate:
            return 0
        wait = self.wait(key)
        full_at = self._full_at.pop(key, 0.0)
        # Put back also when it is refused: who goes on asking must not be forgotten among many who come once.
        self._put(key, full_at if wait else max(full_at, self._clock()) + tokens / self._rate)
        return wait

    def wait(self, key: str) -> int:
        """Return after how many seconds there is a token, 0 for now; nothing is taken."""
        full_at = self._full_at.get(key)
        if full_at is None:
            return 0
        missing = full_at - self._clock() - self._slack_seconds
        return max(1, math.ceil(missing)) if missing > 0 else 0

    def _put(self, key: str, full_at: float) -> None:
        # Popped and put back, so the order of the dict is that of the last use and the first key is the quietest.
        self._full_at[key] = full_at
        if len(self._full_at) > self._max_keys:
            self._forget()

    def _forget(self) -> None:
        """Drop buckets that are full, and of the others the quietest, until a tenth of the room is free."""
        now = self._clock()
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        surplus = len(self._full_at) - self._max_keys * 9 // 10
        for key in list(self._full_at)[: max(0, surplus)]:
            del self._full_at[key]


def address_key(address: str) -> str:
    """Return the name under which an address is limited; `host`, `host:port` and `[IPv6]:port` are all taken."""
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    if ":" not in host:
        return host
    try:
        parsed = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _IPV6_PREFIX), strict=False))
