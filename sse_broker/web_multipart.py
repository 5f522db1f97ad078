"""Multipart forms out of a body that was read whole, and text in the character sets that a form may name. Pure.

aiohttp has a reader of multipart, made for streams without end: it decodes with any codec that a client names (some take
minutes for a megabyte), and keeps a warning for each malformed header that anybody ever sent. This one takes what RFC 7578
says that clients send, and refuses the rest.
"""

import re
from collections.abc import Sequence

from sse_broker.errors import BadRequest

MAX_HEADERS_BYTES = 8 * 1024

# By the names that forms use; others are refused rather than guessed.
CODECS = {
    "": "utf-8",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
}

_PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]*))')


def form_text(data: bytes, charset: str | None, where: str) -> str:
    """Return bytes as text; `where` names them in the message. Raises: BadRequest."""
    codec = CODECS.get((charset or "").lower())
    if codec is None:
        raise BadRequest(f"{where} names a character set that is not supported; send UTF-8")
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        raise BadRequest(f"{where} is not text in the character set {charset or 'UTF-8'}") from None


def parse_form(body: bytes, content_type: str, max_fields: int) -> Sequence[tuple[str, str]]:
    """Return names and values of a `multipart/form-data` body, in order. Raises: BadRequest."""
    boundary = parameters(content_type).get("boundary", "")
    if not 0 < len(boundary) <= 70:
        raise BadRequest("the multipart form's content type names no boundary of 1 to 70 characters")
    delimiter = b"\r\n--" + boundary.encode("utf-8", "surrogateescape")
    _, *pieces = (b"\r\n" + body).split(delimiter, max_fields + 2)
    fields: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.startswith(b"--"):
            return fields
        padding, end_of_line, part = piece.partition(b"\r\n")
        if not end_of_line or padding.strip(b" \t"):
            break
        if len(fields) == max_fields:
            raise BadRequest(f"the multipart form has more than {max_fields} parts")
        fields.append(_field(part))
    raise BadRequest("the multipart form is incomplete or malformed: a boundary is missing")


def parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header such as Content-Type, by lower-case name; the first of a name counts."""
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(header):
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
    return found


def _field(part: bytes) -> tuple[str, str]:
    # A part without headers begins with the empty line at once.
    head, empty_line, value = (b"\r\n" + part).partition(b"\r\n\r\n")
    if not empty_line or len(head) > MAX_HEADERS_BYTES:
        raise BadRequest("the multipart form is malformed: a part has no end of its headers")
    headers = _headers(head)
    name = parameters(headers.get("content-disposition", "")).get("name")
    if name is None:
        raise BadRequest("the multipart form is malformed: a part has no name")
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise BadRequest(f"the multipart form encodes '{name[:40]}' for mail; send it as it is")
    return name, form_text(value, parameters(headers.get("content-type", "")).get("charset"), f"'{name[:40]}'")


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("utf-8", "replace").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
