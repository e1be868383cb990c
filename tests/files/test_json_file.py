"""Reading JSON of unknown origin."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.files.json_file import DEEPEST, build, parse_object, read_object

HOSTILE = {
    "empty": ("", "Expecting value"),
    "cut off": ('{"a": [1', "Expecting"),
    "a list": ("[1]", "not a JSON object"),
    "a number": ("1", "not a JSON object"),
    "an open list 100,000 levels deep": ("[" * 100_000, "more than 64 levels"),
    "a closed list 100,000 levels deep": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "more than 64 levels"),
    "objects 100,000 levels deep": ('{"a":' * 100_000, "more than 64 levels"),
    "just too deep": ('{"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}", "more than 64 levels"),
    "5,000 digits": ('{"a": ' + "9" * 5_000 + "}", "digits"),
    "400 digits": ('{"a": ' + "9" * 400 + "}", "more than 64 bits"),
    "2^64": (f'{{"a": {2**64}}}', "more than 64 bits"),
    "−2^63 − 1": (f'{{"a": [{-(2**63) - 1}]}}', "more than 64 bits"),
    "NaN": ('{"a": NaN}', "not finite"),
    "Infinity": ('{"a": {"b": [Infinity]}}', "not finite"),
    "1e999": ('{"a": -1e999}', "not finite"),
    "a key twice": ('{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
    "half a surrogate pair": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "half a surrogate pair in a key": ('{"\\udfff": 1}', "surrogates not allowed"),
    "a byte-order mark": ("\ufeff{}", "BOM"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_json_is_refused_with_the_reason(case):
    text, reason = HOSTILE[case]
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_object(text)
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)


def test_limits_are_inclusive():
    deep = '{"a": ' + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1) + "}"
    assert parse_object(deep) == json.loads(deep)
    assert parse_object(f'{{"a": [{2**64 - 1}, {-(2**63)}, 1e308]}}') == {"a": [2**64 - 1, -(2**63), 1e308]}


def test_a_large_file_is_refused_before_it_is_read_whole(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}" + " " * 98)
    assert read_object(tmp_path / "a.json", largest=100) == {}
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        read_object(tmp_path / "a.json", largest=99)
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        read_object("/dev/zero", largest=1000)


@pytest.mark.parametrize("data", [b"\xff\xfe{}", b"\x80", b'{"a": "\xc3"}'])
def test_other_bytes_than_utf8_are_refused(tmp_path: Path, data: bytes):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match="utf-8"):
        read_object(tmp_path / "a.json")


def test_missing_files_and_folders_raise_os_errors(tmp_path: Path):
    for file in (tmp_path / "a.json", tmp_path):
        with pytest.raises(OSError, match=r"\[Errno"):
            read_object(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text() | JSON.map(json.dumps) | st.dictionaries(st.text(), JSON).map(json.dumps))
def test_any_text_is_an_object_or_refused(text: str):
    try:
        content = parse_object(text)
    except ValueError:
        return
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@dataclass(frozen=True)
class Part:
    name: str
    size: int


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    kind: Literal["a", "b"]
    share: float
    best: Part | None = None
    notes: list[str | None] = field(default_factory=list)
    by_name: dict[str, Part] = field(default_factory=dict)
    free: Any = None


PART = {"name": "x", "size": 1}
PLAIN = {"parts": [PART], "kind": "a", "share": 1}


def test_plain_data_become_dataclasses():
    assert build(Whole, PLAIN) == Whole((Part("x", 1),), "a", 1)
    full = {**PLAIN, "share": 0.5, "best": PART, "notes": ["n", None], "by_name": {"y": PART}, "free": [{}]}
    part = Part("x", 1)
    assert build(Whole, full) == Whole((part,), "a", 0.5, part, ["n", None], {"y": part}, [{}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": None}, "parts is not of type tuple"),
        ({"parts": {}}, "parts is not of type tuple"),
        ({"parts": [PART, 3]}, r"parts\[1\] is not an object"),
        ({"parts": [{"name": "x"}]}, r"parts\[0\]\.size is missing"),
        ({"parts": [{**PART, "size": True}]}, r"parts\[0\]\.size is not of type int"),
        ({"parts": [{**PART, "size": 1.0}]}, r"parts\[0\]\.size is not of type int"),
        ({"parts": [{**PART, "more": 1}]}, r"parts\[0\]\.'more' is unknown"),
        ({"kind": "c"}, "kind is none of a, b"),
        ({"kind": []}, "kind is none of a, b"),
        ({"share": "1"}, "share is not of type float"),
        ({"share": True}, "share is not of type float"),
        ({"best": []}, "best is not an object"),
        ({"notes": [1]}, r"notes\[0\] is not of type str"),
        ({"by_name": {"y": None}}, r"by_name\.y is not an object"),
        ({"x" * 1000: 1}, "'x{40}' is unknown"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_their_place(changes, message):
    with pytest.raises(ValueError, match=message):
        build(Whole, {**PLAIN, **changes})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(JSON | st.fixed_dictionaries({name: JSON | st.just(value) for name, value in PLAIN.items()}))
def test_any_data_fit_or_are_refused(data: Any):
    try:
        assert isinstance(build(Whole, data), Whole)
    except ValueError:
        return
