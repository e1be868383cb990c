"""Stories from YAML: parsing, prompts and errors."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.story import (
    Character,
    Panel,
    PanelPrompt,
    Story,
    character_prompts,
    character_words,
    cut_between_characters,
    load_story,
    panel_places,
    panel_prompts,
    story_from_dict,
)
from storydiffusion.storyworld.captions import vocabulary, words

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "stories").iterdir())


def plain() -> dict[str, Any]:
    return {
        "title": "Two",
        "characters": {"Mia": "a girl with brown hair", "Tom": "a cat."},
        "panels": [
            {"prompt": "[Mia] is running in the park.", "caption": "Morning."},
            {"prompt": "[Tom] and [Mia], on the beach", "cut": True},
            {"prompt": "[NC], an empty beach", "caption": ""},
        ],
    }


def written(folder: Path, text: str | bytes, name: str = "story.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_is_read(tmp_path: Path):
    story = load_story(written(tmp_path, yaml.safe_dump({**plain(), "style": "line ART"})))
    assert story == Story(
        "Two",
        (Character("Mia", "a girl with brown hair"), Character("Tom", "a cat")),
        (
            Panel("[Mia] is running in the park.", "Morning.", ("Mia",)),
            Panel("[Tom] and [Mia], on the beach", "Tom and Mia, on the beach", ("Tom", "Mia"), cut=True),
            Panel("[NC], an empty beach", "", ()),
        ),
        "Line art",
    )


def test_speech_is_read():
    panels = [{"prompt": "[A] runs", "says": " Found\n you! "}, {"prompt": "[A] runs", "says": ""}]
    story = story_from_dict({"title": "T", "characters": {"A": "a cat"}, "panels": panels}, "here")
    assert [panel.says for panel in story.panels] == ["Found you!", ""]


@pytest.mark.parametrize(
    ("before", "after", "cut", "is_cut"),
    [
        ("[A]", "[A]", {}, False),
        ("[A]", "[B]", {}, True),
        ("[A]", "[A] and [B]", {}, False),
        ("[A] and [B]", "[B]", {}, False),
        ("[A]", "[NC] a beach", {}, True),
        ("[NC] a beach", "[NC] a hill", {}, False),
        ("[A]", "[B]", {"cut": False}, False),
        ("[A]", "[A]", {"cut": True}, True),
    ],
)
def test_cuts_between_characters(before: str, after: str, cut: dict, is_cut: bool):
    prompts = [{"prompt": "[A] and [B]"}, {"prompt": before}, {"prompt": after, **cut}]
    data = {"title": "T", "characters": {"A": "a cat", "B": "a fox"}, "panels": prompts}
    panels = cut_between_characters(story_from_dict(data, "here")).panels
    assert panels[0].cut is False
    assert panels[2].cut is is_cut


def test_prompts_replace_names_by_descriptions():
    assert panel_prompts(story_from_dict(plain(), "here")) == [
        PanelPrompt("a girl with brown hair is running in the park", ""),
        PanelPrompt("a cat and a girl with brown hair, on the beach", ""),
        PanelPrompt("an empty beach", ""),
    ]


def test_style_wraps_every_prompt():
    unstyled = panel_prompts(story_from_dict(plain(), "here"))
    styled = panel_prompts(story_from_dict({**plain(), "style": "Comic book"}, "here"))
    assert all(a.prompt in b.prompt and b.prompt != a.prompt for a, b in zip(unstyled, styled, strict=True))
    assert all(b.negative_prompt for b in styled)


def test_negative_prompts_of_style_story_and_panel_add_up():
    data = {**plain(), "style": "Line art", "negative": "blurry, text."}
    data["panels"][1]["negative"] = "a  dog"
    story = story_from_dict(data, "here")
    assert story.negative == "blurry, text"
    assert [panel.negative for panel in story.panels] == ["", "a dog", ""]
    style = panel_prompts(story_from_dict({**plain(), "style": "Line art"}, "here"))[0].negative_prompt
    of_story = f"{style}, blurry, text"
    assert [each.negative_prompt for each in panel_prompts(story)] == [of_story, f"{of_story}, a dog", of_story]
    assert {each.negative_prompt for each in character_prompts(story)} == {of_story}
    assert panel_prompts(story_from_dict({**data, "style": "(No style)"}, "here"))[0].negative_prompt == "blurry, text"
    without = {**plain(), "negative": ""}
    assert story_from_dict(without, "here") == story_from_dict(plain(), "here")


def test_panels_share_a_place_by_name_or_by_its_words():
    data = plain()
    data["panels"][0]["place"] = " the park "
    data["panels"][1]["place"] = "beach"
    story = story_from_dict(data, "here")
    assert [panel.place for panel in story.panels] == ["the park", "beach", ""]
    assert panel_places(story) == ["the park", "beach", "beach"]
    assert panel_places(story_from_dict(plain(), "here")) == ["", "", ""]
    data["panels"][2]["prompt"] = "[NC], an empty beachhouse"
    assert panel_places(story_from_dict(data, "here"))[2] == ""
    data["panels"][1]["place"] = 3
    with pytest.raises(UserError, match="here: panel 2: place must be text, not '3'"):
        story_from_dict(data, "here")


def test_the_words_of_a_character_are_those_of_its_prompts():
    data = {**plain(), "characters": {"Mia": "a girl ,  with  brown hair.", "Tom": "a cat."}}
    story = story_from_dict(data, "here")
    assert character_words(story) == {"Mia": "a girl, with brown hair", "Tom": "a cat"}
    for panel, prompt in zip(story.panels, panel_prompts(story), strict=True):
        assert all(character_words(story)[name] in prompt.prompt for name in panel.characters)


def test_braces_in_a_prompt_are_text():
    data = {**plain(), "style": "Photographic"}
    data["panels"][0]["prompt"] = r"[Mia] holds a sign {0} \1 {prompt}"
    assert r"a sign {0} \1 {prompt}" in panel_prompts(story_from_dict(data, "here"))[0].prompt


def test_the_title_defaults_to_the_file_name(tmp_path: Path):
    data = plain()
    del data["title"]
    assert load_story(written(tmp_path, yaml.safe_dump(data), "a_long-walk.yml")).title == "A long walk"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path):
    story = load_story(path)
    assert all(panel.caption for panel in story.panels)
    assert len(panel_prompts(story)) == len(story.panels) >= 4


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem != "lighthouse"], ids=lambda path: path.name)
def test_examples_for_the_miniature_use_its_vocabulary(path: Path):
    for prompt in panel_prompts(load_story(path)):
        assert set(prompt.prompt.split()) == set(words(prompt.prompt)) <= set(vocabulary())


def changed(**keys: Any) -> dict[str, Any]:
    return {**plain(), **keys}


def with_panel(**keys: Any) -> dict[str, Any]:
    return changed(panels=[*plain()["panels"], keys])


BAD = {
    "unknown key": (changed(titel="x"), ["titel", "title, characters, panels, style, negative"]),
    "negative is a list": (changed(negative=["text"]), ["negative", "['text']", "quotes"]),
    "negative without a value": (changed(negative=None), ["negative", "nothing"]),
    "negative with a name": (with_panel(prompt="[Mia]", negative="[Tom]"), ["panel 4", "negative", "[Tom]"]),
    "no panels key": ({k: v for k, v in plain().items() if k != "panels"}, ["no 'panels'"]),
    "not a mapping": (["a"], ["mapping", "['a']"]),
    "panels no list": (changed(panels="[Mia]"), ["list", "[Mia]"]),
    "0 panels": (changed(panels=[]), ["0 panels"]),
    "characters no mapping": (changed(characters=["Mia"]), ["characters", "Mia"]),
    "name is a number": (changed(characters={7: "a cat"}), ["'7'"]),
    "name NC": (changed(characters={"NC": "a cat"}), ["NC"]),
    "name with bracket": (changed(characters={"M[a": "a cat"}), ["M[a"]),
    "no description": (changed(characters={"Mia": None, "Tom": "a cat"}), ["'Mia'", "nothing"]),
    "bracket in description": (changed(characters={"Mia": "friend of [Tom]", "Tom": "a cat"}), ["'Mia'", "[Tom]"]),
    "title is a number": (changed(title=2024), ["title", "2024", "quotes"]),
    "unknown style": (changed(style="Cubism"), ["Cubism", "Isometric Rooms", "(No style)"]),
    "style is a list": (changed(style=["Comic book"]), ["style"]),
    "unknown character": (with_panel(prompt="[Mai] runs"), ["panel 4", "[Mai]", "Mia, Tom"]),
    "empty name": (with_panel(prompt="[] runs"), ["panel 4", "[]"]),
    "unused character": (changed(characters={**plain()["characters"], "Zoe": "a bear"}), ["Zoe", "no panel"]),
    "panel without a name": (with_panel(prompt="a park"), ["panel 4", "[NC]", "a park"]),
    "panel is a string": (changed(panels=["[Mia] runs"]), ["panel 1", "[Mia] runs"]),
    "panel without prompt": (with_panel(caption="x"), ["panel 4", "prompt"]),
    "panel with unknown key": (with_panel(prompt="[Mia]", text="x"), ["panel 4", "'text'"]),
    "NC and a character": (with_panel(prompt="[NC] and [Mia]"), ["panel 4", "[NC]", "[Mia]"]),
    "nothing but NC": (with_panel(prompt="[NC]."), ["panel 4", "[NC]"]),
    "lone bracket": (with_panel(prompt="[Mia] and [Tom"), ["panel 4", "bracket"]),
    "empty prompt": (with_panel(prompt=" "), ["panel 4", "prompt"]),
    "caption is a number": (with_panel(prompt="[Mia]", caption=5), ["panel 4", "caption", "'5'"]),
    "caption without a value": (with_panel(prompt="[Mia]", caption=None), ["panel 4", "caption", "nothing", "''"]),
    "name twice after a space": (changed(characters={"Mia": "a girl", "Mia ": "a cat"}), ["'Mia'", "twice"]),
    "name twice in NFD": (changed(characters={"Zo\u00eb": "a girl", "Zoe\u0308": "a cat"}), ["Zo\u00eb", "twice"]),
    "name twice, zero width": (changed(characters={"Mia": "a girl", "M\u200bia": "a cat"}), ["'Mia'", "twice"]),
    "names by case": (changed(characters={"Mia": "a girl", "MIA": "a cat"}), ["'Mia'", "'MIA'", "case"]),
    "invisible name": (changed(characters={"\u200b": "a girl"}), ["valid character name"]),
    "misspelt name": (with_panel(prompt="[tomm] runs"), ["panel 4", "[tomm]", "did you mean [Tom]?"]),
    "seed is a word": (with_panel(prompt="[Mia]", seed="x"), ["panel 4", "seed", "'x'", "leave it out"]),
    "seed is negative": (with_panel(prompt="[Mia]", seed=-1), ["panel 4", "seed", "'-1'", "4294967295"]),
    "seed is nothing": (with_panel(prompt="[Mia]", seed=None), ["panel 4", "seed", "nothing"]),
    "seed is true": (with_panel(prompt="[Mia]", seed=True), ["panel 4", "seed", "True"]),
    "says is a number": (with_panel(prompt="[Mia]", says=5), ["panel 4", "says", "'5'"]),
    "says too much": (with_panel(prompt="[Mia]", says="word " * 40), ["panel 4", "says", "199", "160", "caption"]),
    "cut is nothing": (with_panel(prompt="[Mia]", cut=None), ["panel 4", "cut", "nothing"]),
    "cut is a word": (with_panel(prompt="[Mia]", cut="maybe"), ["panel 4", "cut", "maybe"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_stories_are_refused_in_one_sentence(case: str):
    data, parts = BAD[case]
    with pytest.raises(UserError) as refusal:
        story_from_dict(data, "tale.yaml")
    message = str(refusal.value)
    assert message.startswith("tale.yaml")
    assert "\n" not in message
    assert all(part in message for part in parts), message


BAD_FILES = {
    "empty": (b" \n", ["empty"]),
    "comment only": (b"# nothing\n", ["mapping", "nothing"]),
    "unquoted bracket": (b"characters: {Mia: a girl}\npanels:\n  - prompt: [Mia] runs\n", ["line 3", "quotes"]),
    "key twice": (b"characters:\n  Mia: a\n  Mia: b\n", ["Mia", "twice", "line 3"]),
    "not UTF-8": (b"title: caf\xe9\n", ["UTF-8"]),
    "control character": (b"title: a\x01b\n", ["YAML"]),
    "impossible date": (b"title: 2024-13-45\n", ["YAML"]),
    "python tag": (b"title: !!python/object/apply:os.getcwd []\n", ["YAML", "line 1"]),
    "key is a list": (b"? [a, b]\n: c\n", ["not"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(case: str, tmp_path: Path):
    text, parts = BAD_FILES[case]
    path = written(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        load_story(path)
    message = str(refusal.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_missing_files_and_other_types_are_refused(tmp_path: Path):
    (tmp_path / "folder.yaml").mkdir()
    for name, part in (("none.yaml", "no such file"), ("folder.yaml", "directory"), ("story.json", ".yaml")):
        with pytest.raises(UserError, match=part):
            load_story(tmp_path / name)


def test_a_byte_order_mark_is_dropped(tmp_path: Path):
    assert load_story(written(tmp_path, "\ufeff" + yaml.safe_dump(plain()))).title == "Two"


def test_stories_are_read_without_heavy_imports():
    code = "import sys, storydiffusion.story; sys.exit(any(m in sys.modules for m in ('torch', 'PIL', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "written", ["Zoe\u0308", " Zo\u00eb", "Zo\u00eb\u200d", "\u200eZo\u00eb", "\ufeffZo\u00eb\ufe0f", "Z\u00ado\u00eb"]
)
def test_names_that_look_alike_are_one(written: str):
    story = story_from_dict(
        {"title": "x", "characters": {written: "a girl"}, "panels": [{"prompt": "[Zo\u00eb] runs"}]}, "here"
    )
    again = story_from_dict(
        {"title": "x", "characters": {"Zo\u00eb": "a girl"}, "panels": [{"prompt": f"[{written}] runs"}]}, "here"
    )
    for each in (story, again):
        assert [character.name for character in each.characters] == ["Zo\u00eb"]
        assert each.panels[0].characters == ("Zo\u00eb",)
        assert each.panels[0].caption == "Zo\u00eb runs"
        assert panel_prompts(each)[0].prompt == "a girl runs"


def test_names_with_spaces_are_collapsed():
    data = {"title": "x", "characters": {"Old  Tom": "a cat"}, "panels": [{"prompt": "[Old\u00a0Tom] runs"}]}
    assert story_from_dict(data, "here").panels[0].caption == "Old Tom runs"


TEXTS = st.sampled_from(["Mia", "[Mia] runs", "[NC] a park", "[", "", " ", "comic book", "\u200b", "\0", "é" * 80])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | TEXTS | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["title", "characters", "panels", "style", "prompt", "caption", "cut", "seed"])
PANELS = st.lists(st.dictionaries(KEYS, TEXTS | PLAIN, max_size=3) | PLAIN, max_size=3)
STORIES = st.fixed_dictionaries(
    {"characters": st.just({"Mia": "a girl"}) | st.dictionaries(TEXTS, TEXTS, max_size=2) | PLAIN, "panels": PANELS},
    optional={"title": TEXTS | PLAIN, "style": TEXTS | PLAIN, "strange": PLAIN},
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STORIES.map(lambda data: yaml.dump(data, allow_unicode=True).encode()) | st.binary(max_size=60))
def test_any_file_is_a_story_or_refused_in_one_sentence(data: bytes):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("story.yaml", "story.txt"):
            path = written(Path(folder), data, name)
            try:
                story = load_story(path)
            except UserError as error:
                message = str(error)
            else:
                message = str(path)
                assert len(panel_prompts(story)) == len(story.panels) >= 1
            assert str(path) in message
            assert len(message.splitlines()) == 1
