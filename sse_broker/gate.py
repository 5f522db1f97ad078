"""The gate of one instance: who may call an endpoint, open a stream, send so much. It owns what has to be remembered for that
(rates, wrong keys, what is about to open) over every change of the configuration. It knows plain values, no HTTP.
"""

import functools
import ipaddress
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sse_broker.access import Access
from sse_broker.api_keys import ANYONE, Caller
from sse_broker.counters import Counters
from sse_broker.errors import Forbidden, TooManyRequests, Unauthorized, Unavailable
from sse_broker.limits import Buckets, address_key
from sse_broker.target import Target

log = logging.getLogger(__name__)

# Rates are averages over so many seconds: what comes in a burst is let in, what goes on is not.
BURST_SECONDS = 10
MAX_KNOWN_CALLERS = 65_536
PENDING_RETRY_SECONDS = 2


class Gate:
    """Lets in or refuses; `access` is in force until `change`."""

    __slots__ = (
        "_known",
        "_opens",
        "_publisher_sends",
        "_sends",
        "_wrong",
        "access",
        "counters",
        "limited_as",
        "pending",
    )

    def __init__(self, access: Access, counters: Counters | None = None) -> None:
        self.counters = Counters() if counters is None else counters
        self.pending = 0
        self._known: dict[tuple[str, str], None] = {}
        self._wrong = Buckets(0, 1)
        self._opens = Buckets(0, 1)
        self._sends = Buckets(0, 1)
        self._publisher_sends = Buckets(0, 1)
        self.change(access)

    def change(self, access: Access) -> None:
        """Put another access into force; what was counted stays counted."""
        self.access = access
        limits = access.limits
        self._wrong.change(limits.wrong_keys_per_minute / 60, limits.wrong_keys_per_minute)
        for buckets, rate in (
            (self._opens, limits.opens_per_second),
            (self._sends, limits.sends_per_second),
            (self._publisher_sends, limits.publisher_sends_per_second),
        ):
            buckets.change(rate, max(1, rate * BURST_SECONDS))
        # Asked for each request, and clients come back: parsing takes 2 µs and more, remembering 0.1.
        self.limited_as: Callable[[str], str] = functools.lru_cache(maxsize=8192)(self._find_limited_as)

    # --- endpoints ---

    def caller(self, scope: str, credential: str, host: str) -> Caller:
        """Return who calls an endpoint with this API key or publisher token from this address.

        Raises: Unauthorized, Forbidden, and TooManyRequests for an address that tried too many wrong ones: it is not told
        any more which key is right. A key that was good from there before still is, for others may share the address;
        and so is a token, which nobody can guess.
        """
        access = self.access
        if not access.keys:
            return ANYONE
        key = access.keys.find(credential) if credential else None
        address = self.limited_as(host)
        if key is None:
            caller = self._publisher(credential, address)
        else:
            caller = key.caller
            if address and (caller.name, address) not in self._known:
                self._check_not_blocked(address)
                self._remember(caller.name, address)
        if scope not in caller.scopes:
            self.counters.refused_scopes += 1
            raise Forbidden(f"'{caller.name}' may not call /{scope}")
        return caller

    def admit_messages(self, caller: Caller, count: int) -> None:
        """Let a caller send so many messages. Raises: TooManyRequests."""
        buckets = self._sends if caller.reach is None else self._publisher_sends
        if not buckets.limited or caller is ANYONE:
            return
        wait = buckets.take(caller.name, count)
        if wait:
            self.counters.refused_sends += 1
            raise TooManyRequests(f"'{caller.name}' sends more in a second than it may", wait)

    def check_reach(self, caller: Caller, target: Target) -> None:
        """Refuse a target that a publisher may not send to. Raises: Forbidden."""
        if caller.reach is not None and not caller.reach.covers(target):
            self.counters.refused_scopes += 1
            raise Forbidden("the token may not send to each of these" if not target.everyone else _NOT_TO_EVERYONE)

    # --- streams ---

    def admit_open(self, host: str) -> None:
        """Let an address ask for a stream; it counts whatever comes of it. Raises: TooManyRequests."""
        if not self._opens.limited or not (address := self.limited_as(host)):
            return
        wait = self._opens.take(address)
        if wait:
            self.counters.refused_opens += 1
            raise TooManyRequests(f"more streams were opened from {address} in a second than may be", wait)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Count a stream as about to open, for as long as the block lasts. Raises: Unavailable when too many are."""
        most = self.access.limits.pending_opens
        if most and self.pending >= most:
            self.counters.refused_pending_opens += 1
            raise Unavailable("too many streams are about to open here; try again", PENDING_RETRY_SECONDS)
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    def check_streams(self, host: str, of_address: int, of_user: int) -> None:
        """Refuse a stream where its address or its user has as many as may be. Raises: TooManyRequests."""
        limits = self.access.limits
        if limits.streams_per_user and of_user >= limits.streams_per_user:
            self.counters.refused_streams_per_user += 1
            raise TooManyRequests("the user has as many streams here as one may have", 5)
        if limits.streams_per_address and of_address >= limits.streams_per_address and self.limited_as(host):
            self.counters.refused_streams_per_address += 1
            raise TooManyRequests(f"there are as many streams from {address_key(host)} as may be", 5)

    # --- what they share ---

    def _publisher(self, credential: str, address: str) -> Caller:
        if not credential:
            raise Unauthorized("an API key is needed, as X-SSE-API-Key or Bearer")
        wrong = "the API key is wrong"
        if credential.count(".") == 2:
            try:
                publisher = self.access.tokens.verify_publisher(credential)
                return Caller(publisher.name, _PUBLISHER_SCOPES, publisher.reach)
            except Unauthorized as error:
                wrong = f"neither an API key nor a token that is good: {error.message}"
        self.counters.wrong_keys += 1
        if address:
            self._check_not_blocked(address)
            self._wrong.take(address)
            if self._wrong.wait(address):
                log.warning("too many wrong API keys from %s: it has to wait", address)
        raise Unauthorized(wrong)

    def _check_not_blocked(self, address: str) -> None:
        wait = self._wrong.wait(address)
        if wait:
            self.counters.refused_wrong_keys += 1
            raise TooManyRequests(f"too many wrong API keys came from {address}", wait)

    def _remember(self, name: str, address: str) -> None:
        if len(self._known) >= MAX_KNOWN_CALLERS:
            self._known.clear()
        self._known[name, address] = None

    def _find_limited_as(self, host: str) -> str:
        """Return the name under which an address is limited; empty when it is not."""
        key = address_key(host)
        try:
            address = ipaddress.ip_address(key.partition("/")[0])
        except ValueError:
            return key
        return "" if any(address in network for network in self.access.limits.exempt_networks) else key


_PUBLISHER_SCOPES = frozenset({"send"})
_NOT_TO_EVERYONE = "the token may not send to everyone: name users or devices with 'uid' or 'device'"
