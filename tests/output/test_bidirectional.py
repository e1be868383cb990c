"""Lines with letters that run from right to left."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.output.bidirectional import compute_levels, is_right_to_left, order_runs


def show(text: str) -> str:
    """Return the visual order of a line, with capitals for Hebrew letters and % for an Arabic letter."""
    line = "".join(chr(0x5D0 + ord(char) - ord("A")) if char.isupper() else char for char in text)
    line = line.replace("%", "\u0628").replace("~", "\u05b8")
    levels = compute_levels(line)
    assert len(levels) == len(line)
    return "".join(text[index] for index in order_runs(levels))


@pytest.mark.parametrize(
    ("logical", "visual"),
    [
        ("left to right", "left to right"),
        ("ABC", "CBA"),
        ("car is THE CAR in text", "car is RAC EHT in text"),
        ("ABC def GHI", "IHG def CBA"),
        ("ABC 12 DEF", "FED 12 CBA"),
        ("ABC 1,234.5 DEF", "FED 1,234.5 CBA"),
        ("% 12 %", "% 12 %"),
        ("abc DEF 12", "abc 12 FED"),
        ("ABC!", "!CBA"),
        ("abc!", "abc!"),
        ("abc (DEF)", "abc (FED)"),
        ("A~B", "B~A"),
        ("ABC 5$", "5$ CBA"),
        ("12 abc", "12 abc"),
        ("", ""),
    ],
)
def test_lines_are_ordered_as_the_unicode_algorithm_does(logical: str, visual: str):
    assert show(logical) == visual


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("ab \u05d0\u05d1\u0628\u06601,.($-\u05b8", max_size=20))
def test_no_character_is_lost(line: str):
    levels = compute_levels(line)
    assert sorted(order_runs(levels)) == list(range(len(line)))
    if not is_right_to_left(line) and "\u0660" not in line:
        assert order_runs(levels) == list(range(len(line)))
