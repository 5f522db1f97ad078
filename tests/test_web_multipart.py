"""Multipart forms as bytes: what RFC 7578 says that clients send is read exactly, the rest is refused."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sse_broker.errors import BadRequest
from sse_broker.web_multipart import CODECS, form_text, parameters, parse_form

BOUNDARY = "----formBoundary7MA4"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
DISPOSITION = b'Content-Disposition: form-data; name="a"'


def part(value: bytes, *headers: bytes) -> bytes:
    lines = b"\r\n".join(headers or (DISPOSITION,))
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), lines, value)


def closed(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY.encode()


def parse(body: bytes, content_type: str = CONTENT_TYPE, max_fields: int = 10) -> list[tuple[str, str]]:
    return list(parse_form(body, content_type, max_fields))


def refusal(body: bytes, content_type: str = CONTENT_TYPE, max_fields: int = 10) -> str:
    with pytest.raises(BadRequest) as caught:
        parse(body, content_type, max_fields)
    assert "\n" not in caught.value.message
    return caught.value.message


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
@example(["", "\r\n", "\r\n\r\n", "--", "x\r\n--y"])
def test_values_are_read_exactly_and_in_order(values: list[str]) -> None:
    body = closed(*(part(value.encode()) for value in values))
    assert parse(body) == [("a", value) for value in values]


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"--", BOUNDARY.encode(), b"\r\n", b"a: b", b"x"])).map(b"".join)
)
def test_any_bytes_are_a_form_or_refused(body: bytes) -> None:
    with suppress(BadRequest):
        parse(body)


def test_every_prefix_of_a_form_is_refused_as_incomplete() -> None:
    body = closed(part(b"1"), part(b"2"))
    for end in range(len(body) - len(b"--\r\n")):
        refusal(body[:end])


def test_preamble_epilogue_and_padding_are_allowed() -> None:
    body = b"preamble\r\n" + closed(part(b"1")).replace(b"4\r\n", b"4 \t\r\n", 1) + b"epilogue\r\n--x"
    assert parse(body) == [("a", "1")]
    assert parse(closed()) == []


@pytest.mark.parametrize(
    "disposition",
    [
        b"Content-Disposition: form-data; name=a",
        b'content-disposition:form-data;name="a"',
        b'CONTENT-DISPOSITION: form-data; filename="x; name=b"; NAME="a"',
        b'Content-Disposition: form-data; name="a"; filename="x.txt"\r\nContent-Type: application/octet-stream',
        b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: 8bit\r\nX-Other: y',
    ],
)
def test_a_part_has_its_name_however_it_is_written(disposition: bytes) -> None:
    assert parse(closed(part("é".encode(), disposition))) == [("a", "é")]


def test_a_quote_in_a_name_is_unescaped() -> None:
    assert parse(closed(part(b"1", rb'Content-Disposition: form-data; name="a\"\\b"'))) == [
        (r"a\"\b".replace(r"\"", '"'), "1")
    ]


def test_a_part_may_name_its_character_set() -> None:
    value = "é".encode("latin-1")
    assert parse(closed(part(value, DISPOSITION, b"Content-Type: text/plain; charset=ISO-8859-1"))) == [("a", "é")]
    assert refusal(closed(part(value))) == "'a' is not text in the character set UTF-8"


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Type: text/plain"],
        [b""],
        [b"Content-Disposition: form-data"],
        [b'Content-Disposition: form-data; filename="a"'],
        [DISPOSITION, b"Content-Transfer-Encoding: base64"],
        [DISPOSITION, b"Content-Transfer-Encoding: nonsense"],
        [DISPOSITION, b"X-Long: " + b"x" * 10_000],
        [DISPOSITION, b"Content-Type: text/plain; charset=punycode"],
    ],
)
def test_a_part_with_other_headers_is_refused(headers: list[bytes]) -> None:
    refusal(closed(part(b"x", *headers)))


def test_a_part_without_headers_is_refused() -> None:
    refusal(b"--%b\r\n\r\nvalue\r\n--%b--\r\n" % (BOUNDARY.encode(), BOUNDARY.encode()))


@pytest.mark.parametrize(
    "body", [closed(part(b"1")).replace(b"\r\n", b"\n"), closed(part(b"1")).replace(b"4\r\n", b"4x\r\n", 1)]
)
def test_a_malformed_boundary_is_refused(body: bytes) -> None:
    assert "boundary is missing" in refusal(body)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "x; boundary=" + "x" * 71,
    ],
)
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    assert "boundary" in refusal(closed(part(b"1")), content_type)


def test_a_boundary_may_be_quoted() -> None:
    assert parse(closed(part(b"1")), f'multipart/form-data; charset=x; boundary="{BOUNDARY}"') == [("a", "1")]


def test_too_many_parts_are_refused() -> None:
    assert len(parse(closed(*[part(b"1")] * 10))) == 10
    assert refusal(closed(*[part(b"1")] * 11)) == "the multipart form has more than 10 parts"


def test_a_megabyte_of_anything_takes_no_time() -> None:
    """Nothing that a client may say makes the work grow with the square of the size."""
    size = 2**20
    start = time.process_time()
    for body in (b"\r\n" * (size // 2), b"--%b\r\n" % BOUNDARY.encode() * (size // 26), b"x" * size):
        refusal(body)
    for piece, opening in itertools.product((b";", b"; a=", b'"', b'\\"', b'; a="b"', b"\r\n"), (b"", b'; name="')):
        head = b"Content-Disposition: form-data" + opening + piece * 2000
        with suppress(BadRequest):
            parse(closed(part(b"x", head[:8000])))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("charset", [None, *CODECS, "UTF-8", "Latin1"])
def test_text_of_a_known_character_set_is_read(charset: str | None) -> None:
    assert form_text(b"a", charset, "the body") == "a"


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "undefined", "unicode_escape", "utf-7", "base64", "rot13", "nonsense", "\0"]
)
def test_any_other_character_set_is_refused(charset: str) -> None:
    with pytest.raises(BadRequest, match=r"^the body names a character set that is not supported; send UTF-8$"):
        form_text(b"a", charset, "the body")


def test_parameters_of_a_header_are_found_once_each() -> None:
    header = 'text/plain; A=1;b = "x; c=\\"3\\"" ; a=2; d; e='
    assert parameters(header) == {"a": "1", "b": 'x; c="3"', "e": ""}
