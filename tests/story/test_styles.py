"""The nine prompt styles."""

import pytest

from storydiffusion.errors import UserError
from storydiffusion.story import NO_STYLE, STYLES, find_style


def test_there_are_nine_styles_with_distinct_names():
    assert len({style.name for style in STYLES}) == len(STYLES) == 9


def test_no_style_changes_nothing():
    assert NO_STYLE.apply("a cat") == "a cat"
    assert not NO_STYLE.negative_prompt


@pytest.mark.parametrize("style", STYLES[1:], ids=lambda style: style.name)
def test_a_style_keeps_the_prompt_and_adds_words(style):
    prompt = style.apply("a cat {on} a roof")
    assert "a cat {on} a roof" in prompt
    assert "{prompt}" not in prompt
    assert style.negative_prompt
    assert find_style(style.name.upper()) is style


def test_an_unknown_style_lists_the_known_ones():
    with pytest.raises(UserError) as refusal:
        find_style("Cubism")
    assert all(style.name in str(refusal.value) for style in STYLES)
