"""story.yaml and its record: read back as written, kept where the user changed it, refused where it is another's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storydiffusion.config.writer import RulesWriterConfig
from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import parse_yaml
from storydiffusion.story import Character, Panel, Story, load_story, story_from_dict
from storydiffusion.writer.story_file import format_story, write_or_read_story, write_story
from tests.writer.briefs import brief

RULES = RulesWriterConfig("rules", 6)


def test_a_written_story_is_read_back(tmp_path):
    draft = write_story(tmp_path / "story.yaml", brief(), RULES)
    assert load_story(tmp_path / "story.yaml") == draft.story
    record = json.loads((tmp_path / "story.writing.json").read_text())
    assert record["request"]["idea"] == brief().idea
    assert record["plan"]["emotion"] == "contentment"


def test_negative_prompts_are_read_back():
    panel = Panel("[A] runs", "A runs", ("A",), negative="a dog")
    story = Story("T", (Character("A", "a cat"),), (panel,), negative="blurry, text")
    assert story_from_dict(parse_yaml(format_story(story), "it"), "it") == story


@pytest.mark.parametrize("cut", [None, False, True])
def test_speech_and_cuts_are_read_back(cut):
    story = Story("T", (Character("A", "a cat"),), (Panel("[A] runs", "", ("A",), cut=cut, says="Wait!"),))
    assert story_from_dict(parse_yaml(format_story(story), "it"), "it") == story


@given(text=st.text(min_size=1).filter(lambda text: text.split() == [text]))
def test_any_text_is_read_back_or_refused(text):
    story = Story(text, (Character("A", "a cat"),), (Panel("[A] runs", text, ("A",), cut=True),), "Comic book")
    try:
        written = format_story(story)
    except UserError:
        return
    assert story_from_dict(parse_yaml(written, "it"), "it") == story


def test_the_same_request_keeps_what_the_user_changed(tmp_path):
    file = tmp_path / "story.yaml"
    write_or_read_story(file, brief(), RULES, False)
    file.write_text(file.read_text().replace("title:", "title: My own, not"))
    for overwrite in (False, True):
        story, draft = write_or_read_story(file, brief(), RULES, overwrite)
        assert draft is None
        assert story.title.startswith("My own")


def test_another_request_replaces_a_story_only_if_asked_and_never_a_changed_one(tmp_path):
    file = tmp_path / "story.yaml"
    write_or_read_story(file, brief(), RULES, False)
    with pytest.raises(UserError, match="overwrite=true"):
        write_or_read_story(file, brief(seed=1), RULES, False)
    write_or_read_story(file, brief(seed=1), RULES, True)
    changed = file.read_text() + "# mine\n"
    file.write_text(changed)
    with pytest.raises(UserError, match="changed by hand"):
        write_or_read_story(file, brief(seed=2), RULES, True)
    assert file.read_text() == changed


def test_a_story_of_other_origin_is_not_touched(tmp_path):
    file = tmp_path / "story.yaml"
    file.write_text("title: mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="another request"):
            write_or_read_story(file, brief(), RULES, overwrite)
    assert file.read_text() == "title: mine"


def test_nothing_is_written_into_the_run_folder_of_another_story(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="contains another story"):
        write_or_read_story(tmp_path / "story.yaml", brief(), RULES, False)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"replies": 1}', '{"replies": [{}]}', '{"replies": [{"step": 1}]}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "story.writing.json").write_text(text)
    with pytest.raises(UserError, match=r"story\.writing\.json is damaged"):
        write_or_read_story(tmp_path / "story.yaml", brief(), RULES, False)
    assert not (tmp_path / "story.yaml").exists()
