"""`storydiffusion write`, and `infer` with an idea, a text or an emotion."""

import json

import pytest
import yaml

from storydiffusion.output.manifest import read_manifest
from storydiffusion.story import load_story
from tests.conftest import compose_config, run_verb
from tests.helpers.chat_server import fails, says, serve

PANEL = {"place": "park", "object": "none", "characters": [{"name": "Bo", "action": "sitting"}], "caption": "Hm."}
LOOKS = {"kind": "bear", "tone": "tan", "shirt": "red", "hat": "none", "hat_color": "red", "accessory": "none"}
CHAT_STORY = json.dumps({"title": "Hm", "characters": [{"name": "Bo", **LOOKS, "hair": "none"}], "panels": [PANEL] * 3})
"""what a language model answers"""


@pytest.fixture
def write(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run_verb("write", overrides, capsys)


@pytest.fixture
def generate(infer, tiny_model):
    """Generate a written story with the tiny model, which takes free prompts."""
    small = ("height=64", "width=64", "steps=2", "video=off", "panels=3")
    return lambda *overrides: infer(f"model.path={tiny_model}", *small, *overrides)


def test_an_idea_becomes_a_story_file_that_infer_reads(write, tmp_path):
    outcome = write("idea=a lonely robot finds a friend", "emotion=sadness", "panels=6")
    assert outcome.code == 0
    story = load_story(tmp_path / "story.yaml")
    assert len(story.panels) == 6
    assert story.title in outcome.out
    assert {path.name for path in tmp_path.iterdir()} == {"story.yaml", "story.writing.json"}
    assert write("idea=a cat").code == 1
    assert load_story(tmp_path / "story.yaml") == story


def test_a_text_becomes_panels_of_its_sentences(write, tmp_path):
    (tmp_path / "tale.txt").write_text("A cat ran in the park. It found a ball. The cat jumped.")
    assert write("text=tale.txt", "out=tale.yaml").code == 0
    panels = yaml.safe_load((tmp_path / "tale.yaml").read_text())["panels"]
    assert [panel["caption"] for panel in panels] == ["A cat ran in the park.", "It found a ball.", "The cat jumped."]


def test_unknown_words_are_one_note(write):
    (note,) = write("idea=a cat and a zeppelin").sentences
    assert note.startswith("note: writer=rules has no words for these of the idea: zeppelin, so the story is about ")
    assert note.endswith("; writer=chat reads any, though the model draws StoryWorld's words alone")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "nothing to write from"),
        (["idea=?!"], "nothing to write from"),
        (["idea=a", "text=b.txt"], "exclude each other"),
        (["text=nowhere.txt"], "nowhere.txt"),
        (["idea=a cat", "emotion=joy"], "emotion=joy is not one of amusement"),
        (["idea=a cat", "panels=0"], "panels=0"),
        (["idea=a cat", "panels=2"], "panels=2"),
        (["idea=a cat", "language=xx"], "language=xx"),
        (["idea=a cat", "out=story.txt"], "out=story.txt"),
        (["idea=a cat", "writer=gpt"], "chat"),
        (["idea=a cat", "writer=chat"], "writer.base_url"),
        (["idea=a cat", "writer=chat", "writer.base_url=nowhere", "writer.model=m"], "writer.base_url=nowhere"),
        (["idea=a cat", "writer=chat", "writer.api_key=x"], "writer.api_key"),
    ],
)
def test_bad_settings_are_one_sentence_and_write_nothing(write, tmp_path, overrides, said):
    outcome = write(*overrides)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1
    assert said in outcome.sentences[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["idea=a cat", "story=a.yaml"], "leave out them or story"),
        (["emotion=awe", "frames=[a.png,b.png]"], "leave out them or frames"),
        (["text=a.txt", "benchmark=stories"], "leave out them or benchmark"),
        (["idea=a cat", "text=a.txt"], "exclude each other"),
        (["panels=4"], "panels=4 is for a story to write"),
        (["language=de"], "language=de is for a story to write"),
    ],
)
def test_a_story_has_one_source(infer, overrides, said):
    outcome = infer(*overrides)
    assert outcome.code == 1
    assert said in outcome.sentences[0]


def test_infer_writes_the_story_first_and_generates_what_the_user_changed_in_it(generate, tmp_path):
    assert generate("idea=a cat finds a ball").code == 0
    run = tmp_path / "runs" / "a-cat-finds-a-ball"
    assert read_manifest(run / "manifest.json").complete
    assert generate("idea=a cat finds a ball").out.count("already exists") == 1
    file = run / "story.yaml"
    data = yaml.safe_load(file.read_text())
    data["title"] = "Mine"
    file.write_text(yaml.safe_dump(data))
    assert generate("idea=a cat finds a ball").code == 0
    assert read_manifest(run / "manifest.json").title == "Mine"
    data["panels"][0]["prompt"] = "[NC] a beach with a ball"
    file.write_text(yaml.safe_dump(data))
    outcome = generate("idea=a cat finds a ball")
    assert outcome.code == 1
    assert "overwrite=true" in outcome.err
    assert generate("idea=a cat finds a ball", "overwrite=true").code == 0
    assert read_manifest(run / "manifest.json").panels[0].prompt.startswith("a beach with a ball")


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["idea=Ein Bär, am Strand!"], "ein-bär-am-strand"),
        ([f"idea={'cat ' * 40}"], "-".join(["cat"] * 10)),
        (["text=tales/fox.txt"], "fox"),
        (["emotion=awe"], "awe"),
        ([], "mia"),
    ],
)
def test_run_folders_are_named_after_what_is_written(overrides, folder):
    assert compose_config("infer", *overrides).run_dir == f"runs/{folder}"


def test_the_command_writes_the_same_story_from_kept_replies_without_the_server(write, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra `writer` is not installed")
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(says(CHAT_STORY)) as server:
        settings = ("idea=a bear", "panels=3", "writer=chat", f"writer.base_url={server.url}", "writer.model=tiny")
        assert write(*settings).code == 0
    written = (tmp_path / "story.yaml").read_bytes()
    (tmp_path / "story.yaml").unlink()
    assert write(*settings).code == 0  # nobody listens there any more
    assert (tmp_path / "story.yaml").read_bytes() == written
    assert write(*settings, "overwrite=true").code == 0
    assert (tmp_path / "story.yaml").read_bytes() == written
    other = write(*settings, "overwrite=true", "seed=1", "writer.retries=0")
    assert (other.code, "cannot be reached" in other.err) == (1, True)
    assert (tmp_path / "story.yaml").read_bytes() == written


def test_a_language_model_writes_through_the_command_and_its_failure_is_one_sentence(write, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the extra `writer` is not installed")
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WRITER_KEY", "sk-secret-123")
    with serve(fails(400), says(CHAT_STORY), fails(401)) as server:
        settings = (f"writer.base_url={server.url}", "writer.model=tiny", "writer.api_key_env=WRITER_KEY")
        assert write("idea=a bear", "panels=3", "writer=chat", *settings).code == 0
        failed = write("idea=a cat", "panels=3", "writer=chat", "out=b.yaml", "writer.retries=0", *settings)
    assert load_story(tmp_path / "story.yaml").panels[0].prompt == "[Bo] is sitting in the park"
    assert (failed.code, len(failed.sentences)) == (1, 1)
    assert "WRITER_KEY" in failed.err
    assert {path.name for path in tmp_path.iterdir()} == {"story.yaml", "story.writing.json"}
    assert "sk-secret" not in (tmp_path / "story.writing.json").read_text() + failed.err
