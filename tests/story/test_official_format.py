"""The official text syntax."""

from pathlib import Path

import pytest

from storydiffusion.errors import UserError
from storydiffusion.story import Story, load_story, panel_prompts, story_from_dict
from storydiffusion.story.official_format import parse_official

STORY = """
[Bob] A man, wearing a black suit.
[Alice]a woman with red hair

[Bob] at home, reading the paper # At home, Bob reads # and reads.
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
    assert [panel.caption for panel in story.panels] == ["At home, Bob reads # and reads.", "a moonlit road", ""]
    assert [prompt.prompt for prompt in panel_prompts(story)] == [
        "A man, wearing a black suit at home, reading the paper",
        "a moonlit road",
        "a woman with red hair and A man, wearing a black suit dance in the rain",
    ]


def test_same_story_in_both_syntaxes(tmp_path: Path):
    story = read(tmp_path, STORY)
    assert story == story_from_dict({"title": "A story", **parse_official(STORY, "here")}, "here")


def test_panel_of_a_story_without_characters(tmp_path: Path):
    story = read(tmp_path, "[NC] the sea\n[NC] the sky # Above.\n")
    assert not story.characters
    assert len(story.panels) == 2


BAD = {
    "unknown name in a captioned first panel": ("[Bob] a man\n[Bbo] runs # Off!\n[Bob] rests\n", ["panel 1", "[Bbo]"]),
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
