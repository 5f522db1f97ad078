"""How frames and envelopes are written in streams and replies of Redis, and read back. What is read is not trusted: a
damaged or hostile entry is an error for the caller to count, never a broken frame.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from heapq import merge
from itertools import groupby

from sse_broker.backend import Page
from sse_broker.envelope import EndEnvelope, Envelope, FrameEnvelope
from sse_broker.errors import BrokerError
from sse_broker.frame import MAX_ID, Frame, check_data, check_event
from sse_broker.presence import Device, Reason, device_id_of

log = logging.getLogger(__name__)

Entry = Sequence[object]

# One for all: `json.dumps` makes an encoder at each call that has an option.
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_TEXTS = ("uid", "device_name", "device_address", "instance_address", "token_digest")
_TIMES = ("login_time", "token_expires_at")
# Unix seconds, in the year 33658: a later time can not be told to anyone.
MAX_TIME = 1e12


class DamagedEntry(Exception):
    """An entry that the broker can not have written."""


def entry_id(entry: Entry) -> int:
    """Return the id of a stream's entry. Raises: DamagedEntry."""
    try:
        number = int(bytes(entry[0]).partition(b"-")[0])  # type: ignore[call-overload]
    except (TypeError, ValueError, IndexError):
        raise DamagedEntry("no id") from None
    if not 0 < number <= MAX_ID:
        raise DamagedEntry("an id that is none of ours")
    return number


def frame_of(entry: Entry) -> Frame:
    """Return the frame of a log's or an inbox's entry. Raises: DamagedEntry."""
    return _frame(entry_id(entry), _fields(entry))


def envelope_of(entry: Entry) -> Envelope:
    """Return the envelope of an inbox's entry. Raises: DamagedEntry."""
    fields = _fields(entry)
    if "k" in fields:
        try:
            return EndEnvelope(fields["i"], fields["c"], Reason(fields["r"]), fields["p"])
        except (KeyError, ValueError):
            raise DamagedEntry("an end without its parts") from None
    device_ids = tuple(fields.get("t", "").split())
    return FrameEnvelope(_frame(entry_id(entry), fields), device_ids or None)


def page_of(gap_id: int, logs: Iterable[Sequence[Entry]], page_frames: int) -> tuple[Page, int, int]:
    """Merge entries of several logs to one page; return it, up to which id it has read, and how many entries were damaged.

    A log that gave a full page may have more, so nothing with a greater id than its last belongs to this page.
    """
    damaged = 0
    parts: list[list[Frame]] = []
    end_id = MAX_ID
    for entries in logs:
        frames: list[Frame] = []
        for entry in entries:
            try:
                frames.append(frame_of(entry))
            except DamagedEntry:
                damaged += 1
        parts.append(frames)
        if len(entries) >= page_frames:
            with suppress(DamagedEntry):  # an id that is none of ours: no good one can follow
                end_id = min(end_id, entry_id(entries[-1]))
    rising = merge(*parts, key=lambda frame: frame.id)
    once = (next(same) for _, same in groupby(rising, key=lambda frame: frame.id))
    frames_read = tuple(frame for frame in once if frame.id <= end_id)
    return Page(frames_read, more=end_id < MAX_ID, gap_id=gap_id), end_id, damaged


def device_json(device: Device) -> str:
    """Return a device as the JSON of its route; what the route itself holds is left out."""
    # Written out: `dataclasses.asdict` takes 17 µs, all of this 5.
    fields = {
        "uid": device.uid,
        "device_name": device.device_name,
        "device_address": device.device_address,
        "instance_address": device.instance_address,
        "login_time": device.login_time,
        "token_digest": device.token_digest,
        "token_expires_at": device.token_expires_at,
    }
    return _ENCODER.encode(fields)


def device_of(route: bytes) -> Device:
    """Return the device of a route. Raises: DamagedEntry."""
    try:
        instance_id, connection_id, text = route.decode().split(" ", 2)
        fields = json.loads(text)
        for name in _TEXTS:
            fields[name].encode()
        for name in _TIMES:
            check_time(fields[name])
        return Device(
            **fields,
            device_id=device_id_of(fields["device_name"]),
            connection_id=connection_id,
            instance_id=instance_id,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DamagedEntry("a route that can not be read") from None


def devices_of(routes: Iterable[bytes]) -> tuple[list[Device], int]:
    """Return the devices of routes, and how many routes were damaged."""
    devices, damaged = [], 0
    for route in routes:
        try:
            devices.append(device_of(route))
        except DamagedEntry as error:
            damaged += 1
            log.warning("a route is damaged and skipped: %s", error)
    return devices, damaged


def check_time(value: object) -> float:
    """Return a number of Unix seconds that a clock can have shown. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME:
        raise ValueError("no time")
    return value


def _frame(number: int, fields: dict[str, str]) -> Frame:
    try:
        return Frame(number, check_event(fields["e"]), check_data(fields["d"]))
    except (KeyError, BrokerError):
        raise DamagedEntry("a frame without its parts") from None


def _fields(entry: Entry) -> dict[str, str]:
    try:
        flat = [part.decode() for part in entry[1]]  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, IndexError):
        raise DamagedEntry("fields that are no text") from None
    return dict(zip(flat[::2], flat[1::2], strict=False))
