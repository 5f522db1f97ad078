"""Parameters of a request as the API takes them: from the query, JSON, an urlencoded or a multipart form. It knows how
they are written and nothing of what they are for.
"""

import asyncio
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from sse_broker.bounds import MAX_NAME_CHARS
from sse_broker.errors import BadRequest, PayloadTooLarge, UnsupportedMedia
from sse_broker.frame import check_text
from sse_broker.web_multipart import form_text, parse_form

MAX_FIELDS = 1_000
# Of one list. Each name costs Redis and the loop 15 µs, in one piece, since a frame has one place in the order.
MAX_NAMES = 10_000

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"


class Params:
    """Named values; a value is text, a tuple of texts when it came several times, or anything that JSON can say."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        """Return a value as it came; None when it is absent."""
        return self._values.get(name)

    def text(self, name: str, *, max_chars: int | None = None) -> str | None:
        """Return one text; None when it is absent or empty. Raises: BadRequest."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        text = check_text(name, _as_text(name, value))
        if max_chars is not None and len(text) > max_chars:
            raise BadRequest(f"'{name}' is longer than {max_chars} characters")
        return text

    def required_text(self, name: str, *, max_chars: int | None = None) -> str:
        """Return one text that must be there and not be empty. Raises: BadRequest."""
        text = self.text(name, max_chars=max_chars)
        if text is None:
            raise BadRequest(f"'{name}' is missing")
        return text

    def names(self, name: str) -> tuple[str, ...]:
        """Return a list of user or device names: a JSON array as it is, text, once or several times, split at commas. Empty
        items are dropped.

        An array that names nobody is refused: leaving the list out means everyone, and a back end that computed an empty
        list did not mean that. Raises: BadRequest.
        """
        value = self._values.get(name)
        if value is None or value == "":
            return ()
        if isinstance(value, str) and value.isalnum() and value.isascii() and len(value) <= MAX_NAME_CHARS:
            return (value,)  # one plain name, as in most: nothing to split, strip or refuse
        if isinstance(value, tuple):
            value = ",".join(value)
        if isinstance(value, list):
            items = [text for item in value if (text := _as_text(name, item))]
        else:
            items = [text for item in _as_text(name, value).split(",") if (text := item.strip(" "))]
        if not items:
            raise BadRequest(f"'{name}' is a list that names nobody; leave it out to mean everyone")
        if len(items) > MAX_NAMES:
            raise BadRequest(f"'{name}' names more than {MAX_NAMES}; send to some of them at a time")
        for item in items:
            if len(check_text(name, item)) > MAX_NAME_CHARS:
                raise BadRequest(f"'{name}' holds a name that is longer than {MAX_NAME_CHARS} characters")
        return tuple(items)

    def payload(self, name: str) -> str | None:
        """Return text as it is and any other JSON value as compact JSON; None when it is absent. Raises: BadRequest."""
        if name not in self._values:
            return None
        value = self._values[name]
        if isinstance(value, tuple):
            raise BadRequest(f"'{name}' is given more than once")
        return check_text(name, value if isinstance(value, str) else _as_json(name, value))

    def number(self, name: str) -> float | None:
        """Return a number; None when it is absent or empty. Raises: BadRequest."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        number = math.nan
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                number = float(value)
        if not math.isfinite(number):
            raise BadRequest(f"'{name}' must be a number")
        return number


def query_values(target: str) -> dict[str, object]:
    """Return the parameters in a request's target. Raises: BadRequest."""
    # The raw text: a lenient decoder would change what it can not decode, and this must be exact or refused.
    query = target.partition("#")[0].partition("?")[2]
    return _form_values(query, "query") if query else {}


async def request_values(request: web.Request) -> dict[str, object]:
    """Return the parameters in the body that aiohttp reads. Raises: BadRequest, PayloadTooLarge, UnsupportedMedia."""
    if not request.body_exists:
        return {}
    kind = request.content_type
    _check_kind(kind)
    return body_values(await _read(request), kind, request.charset, request.headers.get(hdrs.CONTENT_TYPE, ""))


def body_values(body: bytes, kind: str, charset: str | None, content_type: str) -> dict[str, object]:
    """Return the parameters in a body of media type `kind`; `content_type` is the whole header.

    Raises: BadRequest, UnsupportedMedia.
    """
    _check_kind(kind)
    if kind == MULTIPART:
        return _gathered(parse_form(body, content_type, MAX_FIELDS))
    if kind == FORM:
        return _form_values(form_text(body, charset, "the body"), "body")
    value = parse_json(body) if body else {}
    if not isinstance(value, dict):
        raise BadRequest("the JSON body must be an object of parameters")
    return value


def parse_json(text: str | bytes) -> object:
    """Return what JSON text says: UTF-8 (RFC 8259, section 8.1), without NaN and Infinity. Raises: BadRequest."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {_first_line(error)}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# One for all: json.loads builds a decoder at each call that has an option, which costs more than a short text.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@contextmanager
def body_errors(request: web.Request) -> Iterator[None]:
    """Turn what the reading of a body may raise into the errors of the API."""
    try:
        yield
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge(f"the body is longer than {request.client_max_size} bytes") from None
    except (web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError):
        raise BadRequest("the body is incomplete or its encoding is broken") from None


def _check_kind(kind: str) -> None:
    if kind != JSON and kind not in (FORM, MULTIPART) and not kind.endswith("+json"):
        raise UnsupportedMedia(f"the content type must be {JSON}, {FORM} or {MULTIPART}, not '{kind}'")


async def _read(request: web.Request) -> bytes:
    """Return the whole body, inflated. By its stated length it is refused before it comes."""
    max_bytes = request.client_max_size
    if (request.content_length or 0) > max_bytes:
        raise PayloadTooLarge(f"the body is longer than {max_bytes} bytes")
    with body_errors(request):
        body = await request.read()
    encoding = content_encoding(request)
    return body if encoding is None else _inflated(body, encoding, max_bytes)


def content_encoding(request: web.Request) -> str | None:
    """Return the lower-case content encoding of the body; None for a body as it is. `web.runner` leaves it to us."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    return None if encoding in ("", "identity") else encoding


def _inflated(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMedia("the content encoding must be gzip or deflate, or none")
    inflater = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        raise BadRequest(f"the body is not in the encoding that it names, {encoding}") from None
    if len(inflated) > max_bytes:
        raise PayloadTooLarge(f"the body is longer than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise BadRequest(f"the body is incomplete, or longer than its {encoding} encoding says")
    return inflated


def _form_values(text: str, where: str) -> dict[str, object]:
    if "%" not in text and "+" not in text and text.count("&") < MAX_FIELDS:
        # Nothing to decode, as in most: the same in 2 µs instead of 4.
        parts = [part.partition("=") for part in text.split("&") if part]
        return _gathered([(name, value) for name, _, value in parts])
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise BadRequest(f"the {where} holds percent escapes that are not UTF-8") from None
    except ValueError:
        raise BadRequest(f"the {where} has more than {MAX_FIELDS} parameters") from None
    return _gathered(pairs)


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Return the values by name; one that comes several times has a tuple, which is good for lists alone."""
    values: dict[str, object] = {}
    for name, value in pairs:
        former = values.get(name)
        if former is None:
            values[name] = value
        else:
            values[name] = (*former, value) if isinstance(former, tuple) else (former, value)
    return values


def _as_text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise BadRequest(f"'{name}' must be one text, not a list")
    if isinstance(value, tuple):
        raise BadRequest(f"'{name}' is given more than once")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"'{name}' must be text")
    return _as_json(name, value)


def _as_json(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):  # 1e999 was read as infinity, which JSON can not say
        raise BadRequest(f"'{name}' holds a number too great or nesting too deep to be written as JSON") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
