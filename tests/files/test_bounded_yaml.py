"""YAML from users: refused by size, depth and number of values, in one sentence."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import DEEPEST, LARGEST_FILE, MOST_VALUES, parse_yaml, read_text


def laughs(levels: int, item: str = "[%s]") -> str:
    lines = ["l0: &l0 [lol, lol]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} " + item % ", ".join([f"*l{level - 1}"] * 9))
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["m0: &m0 {a: 1}"]
    for level in range(1, levels):
        lines.append(f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 9)}]}}")
    return "\n".join(lines)


BAD = {
    "aliases": (laughs(12), "more than"),
    "merges": (merges(12), "more than"),
    "brackets": ("[" * 3000, f"{DEEPEST} levels"),
    "braces": ("{a: " * 3000 + "1" + "}" * 3000, f"{DEEPEST} levels"),
    "dashes": ("".join(" " * i + "- \n" for i in range(700)), f"{DEEPEST} levels"),
    "dashes in one line": ("- " * 3000, f"{DEEPEST} levels"),
    "keys in one line": ("? " * 3000, f"{DEEPEST} levels"),
    "keys": ("\n".join(f"k{i}: v" for i in range(40_000)), "more than"),
    "alias of itself": ("a: &a [*a]", "*a"),
    "alias of itself, mapping": ("&a {b: *a}", "*a"),
    "alias without anchor": ("a: *b", "line 1"),
    "python tag": ("a: !!python/object/apply:os.getcwd []", "tag"),
    "bad bool": ("a: !!bool perhaps", "tag"),
    "bad int": ("a: !!int ''", "tag"),
    "bad timestamp": ("a: !!timestamp x", "tag"),
    "unknown tag": ("a: !thing x", "tag"),
    "half a surrogate pair": (r'a: "\ud800"', "surrogate"),
    "half a surrogate pair as a key": (r'"\udc00": b', "surrogate"),
    "a long number": ("a: " + "9" * 5000, "5000 characters"),
    "a long hexadecimal number": ("a: 0x" + "f" * 5000, "5002 characters"),
    "a long sexagesimal number": ("a: " + "1:" * 5000 + "1", "10001 characters"),
    "an impossible date": ("a: 2024-13-45", "YAML"),
    "key twice": ("a: 1\nb: 2\na: 3", "line 3"),
    "two documents": ("a: 1\n---\nb: 2", "line"),
    "NUL": ("a: \0", "YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_hand_writes_is_refused_in_one_sentence(case: str):
    text, part = BAD[case]
    with pytest.raises(UserError) as refusal:
        parse_yaml(text, "x.yaml")
    message = str(refusal.value)
    assert message.startswith("x.yaml is not valid YAML (")
    assert part in message
    assert "\n" not in message
    assert len(message) < 300


def test_aliases_and_merges_within_the_bounds_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert parse_yaml(r'"\ud83d\ude00"', "x") == "\U0001f600"
    assert parse_yaml("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1), "x")
    assert len(parse_yaml("[" + "1," * (MOST_VALUES - 1) + "]", "x")) == MOST_VALUES - 1


def test_a_file_that_is_too_large_is_refused(tmp_path: Path):
    file = tmp_path / "large.yaml"
    file.write_text("#" * (LARGEST_FILE + 1))
    with pytest.raises(UserError, match=r"larger than 262,144 bytes\): give a UTF-8 text of at most 256 KiB"):
        read_text(file, "story")
    file.write_text("#" * LARGEST_FILE)
    assert len(read_text(file, "story")) == LARGEST_FILE


PIECES = ["a", "1", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!", "!x ", "|", ">", "'",
          '"', "\\ud800", "#", "? ", "%", "@", "---", "...", "=", "~", "0x_", "1:2", "2024-01-01", "\t",
          "\0", "é"]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=30))
def test_any_text_is_data_or_refused(text: str):
    with suppress(UserError):
        parse_yaml(text, "x.yaml")
