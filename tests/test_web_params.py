"""Parameters as values: texts, lists, numbers and payloads, whatever JSON or a form made of them."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker.bounds import MAX_NAME_CHARS
from sse_broker.errors import BadRequest
from sse_broker.web_params import MAX_NAMES, Params, parse_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    max_leaves=12,
)


def refusal(params: Params, method: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        getattr(params, method)(*arguments, **options)
    return caught.value.message


# --- text ---


def test_a_text_that_is_absent_null_or_empty_is_none() -> None:
    params = Params({"null": None, "empty": ""})
    for name in ("absent", "null", "empty"):
        assert params.text(name) is None
        assert refusal(params, "required_text", name) == f"'{name}' is missing"


@pytest.mark.parametrize(("value", "text"), [("x", "x"), (" x ", " x "), (7, "7"), (0, "0"), (-2.5, "-2.5")])
def test_a_text_is_kept_and_a_number_is_text(value: object, text: str) -> None:
    assert Params({"a": value}).text("a") == text
    assert Params({"a": value}).required_text("a") == text


@pytest.mark.parametrize("value", [True, False, {}, {"a": 1}])
def test_what_is_no_text_is_refused(value: object) -> None:
    assert refusal(Params({"a": value}), "text", "a") == "'a' must be text"


@pytest.mark.parametrize("value", [[], ["x"], [1, 2]])
def test_a_list_is_no_text(value: object) -> None:
    assert refusal(Params({"a": value}), "text", "a") == "'a' must be one text, not a list"


def test_the_length_of_a_text_is_counted_in_characters() -> None:
    at_most = "😀" * 5
    assert Params({"a": at_most}).text("a", max_chars=5) == at_most
    assert refusal(Params({"a": at_most + "x"}), "text", "a", max_chars=5) == "'a' is longer than 5 characters"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ude00\ud83d"])
def test_half_a_surrogate_pair_is_refused_everywhere(text: str) -> None:
    params = Params({"a": text, "list": [text], "deep": {"a": [text]}, "key": {text: 1}})
    said = [refusal(params, "text", "a"), refusal(params, "names", "a"), refusal(params, "payload", "a")]
    said += [refusal(params, "names", "list"), refusal(params, "payload", "deep"), refusal(params, "payload", "key")]
    assert all("surrogate" in message for message in said)


# --- names ---


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b ,, c,", ("a", "b", "c")),
        ("a b", ("a b",)),
        (7, ("7",)),
        (["a,b", " c "], ("a,b", " c ")),
        ([1, 2.5], ("1", "2.5")),
        (["a", "", "b"], ("a", "b")),
        ("", ()),
        (None, ()),
    ],
)
def test_names_are_text_with_commas_or_an_array(value: object, names: tuple[str, ...]) -> None:
    assert Params({"a": value}).names("a") == names
    assert Params({}).names("a") == ()


@pytest.mark.parametrize("value", [[], [""], ",", " , ", " "])
def test_a_list_that_names_nobody_does_not_mean_everyone(value: object) -> None:
    assert "names nobody" in refusal(Params({"a": value}), "names", "a")


@pytest.mark.parametrize("value", [True, {}, [True], [None], [{}], [["a"]], ["a", None]])
def test_names_that_are_no_text_are_refused(value: object) -> None:
    assert refusal(Params({"a": value}), "names", "a").startswith("'a' must be ")


def test_each_name_has_its_greatest_length() -> None:
    longest = "x" * MAX_NAME_CHARS
    assert Params({"a": f"{longest},b,{longest}"}).names("a") == (longest, "b", longest)
    for value in (f"b,{longest}x", [longest + "x"]):
        assert refusal(Params({"a": value}), "names", "a") == "'a' holds a name that is longer than 256 characters"


def test_a_list_has_at_most_so_many_names() -> None:
    """More would hold up Redis and everybody else."""
    names = tuple(str(number) for number in range(MAX_NAMES))
    assert Params({"a": list(names)}).names("a") == Params({"a": ",".join(names)}).names("a") == names
    assert refusal(Params({"a": [*names, "x"]}), "names", "a") == (
        "'a' names more than 10000; send to some of them at a time"
    )


def test_what_comes_several_times_is_good_for_a_list_alone() -> None:
    params = Params({"a": ("x, y", "z", "")})
    assert params.names("a") == ("x", "y", "z")
    for method in ("text", "payload", "required_text"):
        assert refusal(params, method, "a") == "'a' is given more than once"
    assert refusal(params, "number", "a") == "'a' must be a number"


# --- payload ---


@given(TEXT)
def test_a_payload_of_text_is_the_text(text: str) -> None:
    assert Params({"a": text}).payload("a") == text


@given(JSON_VALUES.filter(lambda value: not isinstance(value, str)))
def test_any_other_payload_is_its_compact_json(value: object) -> None:
    payload = Params({"a": value}).payload("a")
    assert payload == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(payload) == value


def test_a_payload_may_be_null_or_empty_but_not_absent() -> None:
    params = Params({"null": None, "empty": ""})
    assert (params.payload("null"), params.payload("empty"), params.payload("absent")) == ("null", "", None)


@pytest.mark.parametrize("value", [math.inf, -math.inf, [1, {"a": math.inf}]])
def test_a_number_beyond_all_numbers_is_no_payload(value: object) -> None:
    """JSON's 1e999 becomes infinity, which JSON can not say."""
    assert "'a'" in refusal(Params({"a": value}), "payload", "a")


def test_a_number_beyond_all_numbers_is_no_name() -> None:
    assert "'a'" in refusal(Params({"a": math.inf}), "text", "a")
    assert "'a'" in refusal(Params({"a": [math.inf]}), "names", "a")


# --- numbers ---


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("-2.5", -2.5), ("1e3", 1000), (7, 7), (0.25, 0.25), (0, 0)])
def test_a_number_is_a_number_or_a_text_that_says_one(value: object, number: float) -> None:
    assert Params({"a": value}).number("a") == number


def test_a_number_that_is_absent_null_or_empty_is_none() -> None:
    params = Params({"null": None, "empty": ""})
    assert [params.number(name) for name in ("absent", "null", "empty")] == [None] * 3


@pytest.mark.parametrize(
    "value", ["x", "1 2", "nan", "inf", "-Infinity", "0x10", "1" * 400, True, [1], {}, math.inf, 10**400]
)
def test_what_is_no_number_is_refused(value: object) -> None:
    assert refusal(Params({"a": value}), "number", "a") == "'a' must be a number"


# --- JSON ---


@given(JSON_VALUES)
def test_json_is_read_as_it_was_written(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


MALFORMED = ["", "{", "{]", "nul", "{'a': 1}", '{"a": 1,}', '{"a": 1} x', '"\n"', '{"a": 01}', "\0", '"\\ud8"', '"\\x"']


@pytest.mark.parametrize("text", [*MALFORMED, "NaN", "[Infinity]", '{"a": -Infinity}', "1" * 5000])
def test_what_is_no_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^the body is not valid JSON: [^\n]+$"):
        parse_json(text.encode())


@pytest.mark.parametrize("body", [b'{"a": "\xff"}', b'{"a": "\xc3', "{}".encode("utf-16")[:-1], b"\xef\xbb"])
def test_json_that_is_no_utf_8_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_json(body)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_carried_or_refused(opening: str, closing: str) -> None:
    """At every depth: what the parser takes, the writer must not fall over."""
    for depth in (*range(100, 900, 50), *range(900, 1050), 5_000, 100_000):
        text = opening * depth + "1" + closing * depth
        try:
            value = parse_json(text)
            assert Params({"a": value}).payload("a") == text
        except BadRequest:
            assert depth > sys.getrecursionlimit() / 4
