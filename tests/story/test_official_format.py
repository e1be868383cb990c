"""The official text syntax."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.story import Story, load_story, panel_prompts, story_from_dict
from storydiffusion.story.official_format import parse_official

STORY = """
[Bob] A man, wearing a black suit.
[Alice]a woman with red hair

[Bob] at home, reading the paper # again # At home, Bob reads.
[NC] a moonlit road
[Alice] and [Bob] dance in the rain #
"""


def read(folder: Path, text: str) -> Story:
    path = folder / "a_story.txt"
    path.write_text(text, encoding="utf-8")
    return load_story(path)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_part_is_read(tmp_path: Path, newline: str):
    story = read(tmp_path, STORY.replace("\n", newline))
    assert story.title == "A story"
    assert [(c.name, c.description) for c in story.characters] == [
        ("Bob", "A man, wearing a black suit"),
        ("Alice", "a woman with red hair"),
    ]
    assert [panel.characters for panel in story.panels] == [("Bob",), (), ("Alice", "Bob")]
    assert [panel.caption for panel in story.panels] == ["At home, Bob reads.", "a moonlit road", ""]
    assert [prompt.prompt for prompt in panel_prompts(story)] == [
        "A man, wearing a black suit at home, reading the paper # again",
        "a moonlit road",
        "a woman with red hair and A man, wearing a black suit dance in the rain",
    ]


@pytest.mark.parametrize("first", ["# A day in the park", "\n\n#A day in the park", "##  A day in the park \n"])
def test_the_first_line_may_be_a_title(tmp_path: Path, first: str):
    path = tmp_path / "story.txt"
    path.write_text(f"{first}\n{STORY}", encoding="utf-8")
    (tmp_path / "a_story.txt").write_text(STORY, encoding="utf-8")
    assert load_story(path) == replace(load_story(tmp_path / "a_story.txt"), title="A day in the park")


@pytest.mark.parametrize(
    "text", ["#\n[A] a cat\n[A] runs", "[A] a cat\n# Title\n[A] runs", "# One\n# Two\n[A] a cat\n[A] runs"]
)
def test_a_title_without_words_or_on_another_line_is_refused(text: str):
    with pytest.raises(UserError, match=r"here: line \d"):
        parse_official(text, "here")


def test_same_story_in_both_syntaxes(tmp_path: Path):
    story = read(tmp_path, STORY)
    assert story == story_from_dict({"title": "A story", **parse_official(STORY, "here").data}, "here")


def test_panel_of_a_story_without_characters(tmp_path: Path):
    story = read(tmp_path, "[NC] the sea\n[NC] the sky # Above.\n")
    assert not story.characters
    assert len(story.panels) == 2


BAD = {
    "misspelt name in a captioned first panel": ("[Bob] a man\n[Bbo] runs # Off!\n[Bob] rests\n", ["line 2", "[Bob]"]),
    "misspelt name in the first panel": ("[Mia] a girl\n[Mai] runs\n[Mia] sits\n", ["line 2", "'Mai'", "[Mia]"]),
    "misspelt name in all panels": ("[Mia] a girl\n[Mai] runs\n[Miaa] sits\n", ["line 2", "[Mai]", "[Mia]"]),
    "name in another case": ("[Mia] a girl\n[mia] runs\n[MIA] sits\n", ["line 2", "[mia]", "[Mia]"]),
    "letter of another alphabet": ("[Mia] a girl\n[Mia] runs\n[Mi\u0430] sits\n", ["line 3", "CYRILLIC", "[Mia]"]),
    "misspelt NC": ("[Mia] a girl\n[Mia] runs\n[nc] a beach\n", ["line 3", "[NC]"]),
    "name with #": ("[Agent #7] a man\n[Agent #7] runs\n", ["line 1", "Agent #7", "#"]),
    "unknown name later": ("[Bob] a man\n[Bob] runs\n[Tim] rests\n", ["panel 2", "[Tim]", "Bob"]),
    "unused": ("[Bob] a man\n[Tim] a boy\n[Bob] runs\n", ["Tim", "no panel"]),
    "caption without prompt": ("[Bob] a man\n[Bob] runs\n# Ran.\n", ["line 3", "# Ran."]),
    "no name": ("[Bob] a man\n[Bob] runs\nthe sea\n", ["panel 2", "[NC]"]),
    "characters only": ("[Bob] a man\n", ["0 panels"]),
    "no description": ("[Bob]\n[Bob] runs\n", ["Bob", "description"]),
    "empty name": ("[] a man\n[Bob] runs\n", ["''"]),
    "blank": ("\n \n", ["empty"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_refused_in_one_sentence(case: str, tmp_path: Path):
    text, parts = BAD[case]
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    message = str(refusal.value)
    assert "a_story.txt" in message
    assert "\n" not in message
    assert all(part in message for part in parts), message


OFFICIAL_PROMPTS = [
    # description, panel → prompt of the official demo up to white space and the last full stop, caption
    ("[Ada]a girl", "[Ada]runs", "a girl runs", "Ada runs"),
    ("[Ada]a girl", "[Ada]  sits,[Ada]reads", "a girl sits, a girl reads", "Ada sits, Ada reads"),
    ("[Ada] a girl #hero", "[Ada] runs#Off!", "a girl runs", "Off!"),
    ("[Ada] a girl #1 # hero", "[Ada] is #1 # She won. # Hooray!", "a girl #1 is #1 # She won", "Hooray!"),
    ("[Ada] a girl", "at home,[Ada]reads", "at home, a girl reads", "at home, Ada reads"),
    ("[Ada] a girl", "[Ada]'s garden, near[Ada]", "a girl's garden, near a girl", "Ada's garden, near Ada"),
    ("[Ada] a girl", "[Ada] runs #", "a girl runs", ""),
    ("[Ada] a girl", "[Ada] calls # [Ada] calls.", "a girl calls", "[Ada] calls."),
]


@pytest.mark.parametrize(("description", "panel", "prompt", "caption"), OFFICIAL_PROMPTS)
def test_prompts_and_captions_are_the_official_ones(
    description: str, panel: str, prompt: str, caption: str, tmp_path: Path
):
    story = read(tmp_path, f"{description}\n[Ada]\u200b waits there with [Ada]\n{panel}\n[NC]a tiger\n")
    assert [each.prompt for each in panel_prompts(story)][1:] == [prompt, "a tiger"]
    assert [each.caption for each in story.panels][1:] == [caption, "a tiger"]


LINES = st.lists(
    st.lists(st.sampled_from(["[", "]", "#", " ", "Mia", "mia", "[Mia]", "[NC]", "é", "\u200b", "\x00", "\u2028", "."]))
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LINES)
def test_any_text_is_a_story_or_refused(lines: list[list[str]]):
    text = "\n".join("".join(line) for line in lines)
    with suppress(UserError):
        parsed = parse_official(text, "here")
        story = story_from_dict({"title": "x", **parsed.data}, "here", parsed.lines)
        assert len(panel_prompts(story)) == len(story.panels) >= 1
