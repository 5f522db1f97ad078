"""Many sends in one request: `{"messages": [...]}` and newline-delimited JSON. It owns the reading of the body piece by piece,
and that one bad line does not fail the rest. Once some were sent the answer says what became of each, whatever happens then:
a back end that got a failure alone would send them again. A message's parameters are those of a single send.
"""

from collections.abc import AsyncIterator, Sequence

from aiohttp import StreamReader, web

from sse_broker.api_keys import Caller
from sse_broker.backend import GROUP_CHARS, GROUP_MESSAGES, GROUP_NAMES
from sse_broker.broker import Broker
from sse_broker.errors import BadRequest, BrokerError, PayloadTooLarge, TooManyRequests, Unavailable, UnsupportedMedia
from sse_broker.gate import Gate
from sse_broker.presence import device_id_of
from sse_broker.target import Message, Target
from sse_broker.web_params import Params, body_errors, content_encoding, parse_json

NDJSON = "application/x-ndjson"


def message_of(params: Params) -> Message:
    """Return the message that a send's parameters describe. Raises: BadRequest."""
    data = params.payload("data")
    if data is None:
        raise BadRequest("'data' is missing")
    return Message(target_of(params), params.text("event") or "", data)


def target_of(params: Params) -> Target:
    """Return whom the lists `uid` and `device` name. Raises: BadRequest."""
    return Target(params.names("uid"), tuple([device_id_of(name) for name in params.names("device")]))


class Batch:
    """Publishes messages as they come and collects what became of each: its count, or `{"code", "msg"}`."""

    def __init__(self, broker: Broker, gate: Gate, caller: Caller) -> None:
        self._broker = broker
        self._gate = gate
        self._caller = caller
        self._max_messages = gate.access.limits.batch_messages
        self._group: list[Message] = []
        self._places: list[int] = []
        self._names = self._chars = 0
        self._failure: BrokerError | None = None
        self._accepted = 0
        self.results: list[object] = []

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read: as many were refused as may be sent, and results take memory, too."""
        return len(self.results) >= 2 * self._max_messages

    async def add(self, item: object) -> None:
        """Take the next message, an object of parameters or a line of JSON; one beyond the bound is refused."""
        if len(self.results) >= self._max_messages:
            await self.refuse(too_many(self._max_messages))
            return
        self.results.append(0)
        try:
            value = parse_json(item) if isinstance(item, bytes) else item
            if not isinstance(value, dict):
                raise BadRequest("a message must be an object of parameters")
            message = message_of(Params(value))
            self._gate.check_reach(self._caller, message.target)
            self._group.append(message)
            self._places.append(len(self.results) - 1)
            self._names += len(message.target.users) + len(message.target.devices)
            self._chars += len(message.data)
        except BrokerError as error:
            self.results[-1] = _refusal(error)
        if len(self._group) >= GROUP_MESSAGES or self._names >= GROUP_NAMES or self._chars >= GROUP_CHARS:
            await self._publish()

    async def refuse(self, error: BrokerError) -> None:
        """Note that what comes next, and all that follows, can not be sent; what came before it is."""
        await self._publish()
        self._failure = self._failure or error
        self.results.append(_refusal(error))

    async def finish(self) -> list[object]:
        """Publish the rest and return the results in order.

        Raises: when nothing at all was accepted, what was in the way: Unavailable, TooManyRequests, or what was refused with.
        """
        await self._publish()
        if self._failure is not None and not self._accepted:
            raise self._failure
        return self.results

    async def _publish(self) -> None:
        group, places = self._group, self._places
        self._group, self._places = [], []
        self._names = self._chars = 0
        if not group:
            return
        if self._failure is None:
            try:
                self._gate.admit_messages(self._caller, len(group))
                for place, sent in zip(places, await self._broker.send(group), strict=True):
                    self.results[place] = sent.count
                self._accepted += len(group)
                return
            except (Unavailable, TooManyRequests) as error:
                self._failure = error
        for place in places:
            self.results[place] = _refusal(self._failure)


def too_many(max_messages: int) -> PayloadTooLarge:
    """Return the error of a batch with more messages than that."""
    return PayloadTooLarge(f"a batch holds at most {max_messages} messages")


def _refusal(error: BrokerError) -> dict[str, object]:
    return {"code": error.status, "msg": error.message}


async def send_list(broker: Broker, gate: Gate, caller: Caller, messages: object) -> list[object]:
    """Send the messages of a JSON body. Raises: BadRequest, PayloadTooLarge, TooManyRequests, Unavailable."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BadRequest("'messages' must be a list of objects")
    max_messages = gate.access.limits.batch_messages
    if len(messages) > max_messages:
        raise too_many(max_messages)
    batch = Batch(broker, gate, caller)
    for message in messages:
        await batch.add(message)
    return await batch.finish()


async def send_lines(
    broker: Broker, gate: Gate, caller: Caller, request: web.Request, max_line_bytes: int
) -> list[object]:
    """Send each line of the body as it arrives. A body that breaks off, or has a line that is too long, ends with that.

    Raises: UnsupportedMedia; BadRequest, PayloadTooLarge, TooManyRequests or Unavailable when nothing at all was accepted.
    """
    if content_encoding(request) is not None:
        raise UnsupportedMedia("newline-delimited JSON is taken without a content encoding")
    batch = Batch(broker, gate, caller)
    try:
        with body_errors(request):
            async for line in _lines(request.content, max_line_bytes):
                if batch.is_full:
                    break
                await batch.add(line)
    except (BadRequest, PayloadTooLarge) as error:
        await batch.refuse(error)
    return await batch.finish()


async def _lines(body: StreamReader, max_line_bytes: int) -> AsyncIterator[bytes]:
    """Yield the lines of a body that are not blank, holding one incomplete line at most."""
    rest: list[bytes] = []
    rest_bytes = 0
    async for piece in body.iter_any():
        rest.append(piece)
        rest_bytes += len(piece)
        if b"\n" in piece:  # joined only then: a line may come byte by byte
            *whole, last = b"".join(rest).split(b"\n")
            rest, rest_bytes = [last], len(last)
            for line in whole:
                if line.strip():
                    yield line
        if rest_bytes > max_line_bytes:
            raise PayloadTooLarge(f"a line is longer than {max_line_bytes} bytes")
    if line := b"".join(rest).strip():
        yield line
