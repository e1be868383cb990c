"""`storydiffusion save-character`, and stories that use what it saves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import read_manifest
from storydiffusion.story.character_file import read_character
from storydiffusion.studio.edits import change_panel, describe_character
from storydiffusion.studio.look import Look
from storydiffusion.studio.project import parse_script
from tests.conftest import SMALL, Outcome, run_verb
from tests.studio.conftest import build_studio, finish

STEPS = ("steps=3", "video=off")
OTHER = """
title: Alone
characters: {Mo: {file: characters/pip.safetensors}, Bo: a blue fox}
panels:
  - {prompt: "[Mo] in the park"}
  - {prompt: "[Bo] on the beach"}
  - {prompt: "[Mo] runs", seed: 4}
"""


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def save(capsys) -> Callable[..., Outcome]:
    return lambda *overrides: run_verb("save-character", ("run_dir=run", *overrides), capsys)


@pytest.fixture
def other(run, save, tmp_path) -> Path:
    """A story with the character of the run."""
    assert save("name=Pip").code == 0
    file = tmp_path / "other.yaml"
    file.write_text(OTHER)
    return file


def pixels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)).astype(int) for file in sorted((folder / "panels").iterdir())]


def test_a_character_is_saved_with_card_and_portrait(run, save, tmp_path):
    outcome = save("name=Pip")
    assert outcome.code == 0
    folder = tmp_path / "characters"
    assert sorted(file.name for file in folder.iterdir()) == ["pip.md", "pip.png", "pip.safetensors"]
    assert (folder / "pip.png").read_bytes() == (run / "panels" / "001.png").read_bytes()
    card = (folder / "pip.md").read_text()
    manifest = read_manifest(run / "manifest.json")
    for text in (
        "# Pip", "A red cat.", "![Pip](pip.png)", compute_sha256(folder / "pip.safetensors"), manifest.model,
        str(manifest.panels[0].seed), *manifest.weights.values(), "| steps | 3 |", "Pip: {file: pip.safetensors}",
    ):  # fmt: skip
        assert text in card
    found = read_character(folder / "pip.safetensors")
    assert found.character.reads == (0, 2)
    assert len(found.story.images) == 3  # Bo's panel reaches Pip's by the third
    assert "characters/pip.safetensors" in outcome.out


def test_command_and_pipeline_save_the_same_file(run, save, tiny_model, story_file, tmp_path):
    from storydiffusion.pipelines.story import StoryPipeline

    save("name=Pip")
    settings = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 3.0}
    plain: dict[str, Any] = {"device": "cpu", "scheduler": "ddim", "guidance_start": 0.0}
    pipe = StoryPipeline.from_pretrained(tiny_model, config="miniature", **plain)
    file = pipe(story_file, **settings).save_character("Pip", tmp_path / "other")
    assert file.read_bytes() == (tmp_path / "characters" / "pip.safetensors").read_bytes()


def test_a_file_stays_unless_overwrite_is_passed(run, save, tmp_path):
    save("name=Pip", "out=x")
    before = {file: file.read_bytes() for file in tmp_path.glob("x.*")}
    outcome = save("name=Bo", "out=x.safetensors")
    assert outcome.code == 1
    assert "x.safetensors already exists" in outcome.err
    assert {file: file.read_bytes() for file in tmp_path.glob("x.*")} == before
    assert save("name=Bo", "out=x", "overwrite=true").code == 0
    assert read_character(tmp_path / "x.safetensors").character.name == "Bo"


def test_another_story_uses_it_resumes_and_answers(other, generate_story, tmp_path):
    settings = (f"story={other}", "run_dir=other", *STEPS)
    outcome = generate_story(*settings)
    assert outcome.code == 0
    assert "denoising 6 of 6 panels" in outcome.err
    assert len(pixels(tmp_path / "other")) == 3
    assert "saved characters" in (tmp_path / "other" / "report.html").read_text()
    assert "already" in generate_story(*settings).out
    script = read_manifest(tmp_path / "other" / "manifest.json").config["script"]
    assert script["character_files"] == {"Mo": compute_sha256(tmp_path / "characters" / "pip.safetensors")}
    (tmp_path / "moved").mkdir()
    (tmp_path / "characters" / "pip.safetensors").rename(tmp_path / "moved" / "mo.safetensors")
    other.write_text(OTHER.replace("characters/pip", "moved/mo"))
    assert "already" in generate_story(*settings).out


def test_another_file_generates_the_panels_again(other, generate_story, save, tmp_path, capsys):
    settings = (f"story={other}", "run_dir=other", *STEPS)
    generate_story(*settings)
    before = pixels(tmp_path / "other")
    save("name=Bo", "out=characters/pip", "overwrite=true")
    outcome = generate_story(*settings)
    assert outcome.code == 1
    assert "character_files.Mo" in outcome.err
    assert "generates all 3 panels" in outcome.err
    assert generate_story(*settings, "overwrite=true").code == 0
    assert not np.array_equal(before[0], pixels(tmp_path / "other")[0])


def test_a_panel_with_a_saved_character_is_retaken(other, generate_story, tmp_path):
    settings = (f"story={other}", "run_dir=other", *STEPS)
    generate_story(*settings)
    before = pixels(tmp_path / "other")
    other.write_text(OTHER.replace("seed: 4", "seed: 5"))
    assert generate_story(*settings, "retake=3", "candidates=1").code == 0
    other.write_text(OTHER)
    outcome = generate_story(*settings, "retake=3", "candidates=1")
    assert outcome.code == 0
    assert "denoising 6 of 6 panels" in outcome.err  # without Bo's panel
    assert all(np.array_equal(a, b) for a, b in zip(before, pixels(tmp_path / "other"), strict=True))
    takes = {take.number: take for take in read_manifest(tmp_path / "other" / "manifest.json").takes}
    assert takes[1].seed == 5
    take = np.asarray(Image.open(tmp_path / "other" / takes[1].file)).astype(int)
    assert generate_story(f"story={other}", "run_dir=fresh", *STEPS).code == 0
    assert not np.array_equal(take, before[2])


def test_a_chosen_take_is_saved_with_what_it_reads(run, save, generate_story, tmp_path):
    generate_story("run_dir=run", *STEPS, "retake=3", "candidates=1")
    generate_story("run_dir=run", *STEPS, "retake=3", "take=1")
    assert save("name=Bo").code == 0
    found = read_character(tmp_path / "characters" / "bo.safetensors")
    assert [(each.panel, each.images) for each in found.story.images] == [
        (0, (0, 1, 2)), (1, (0, 1, 2)), (2, (0, 1, 2)), (2, (0, 1, 3)),
    ]  # fmt: skip
    assert found.character.reads == (1, 3)


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (None, ("steps=4",), "was saved with steps=3, but this story has steps=4: set steps=3"),
        (None, ("csa=off",), "was saved with csa.variant=eq2, but this story has csa.variant=off"),
        (None, ("csa.rate=0.3",), "was saved with csa.rate=0.5, but this story has csa.rate=0.3"),
        (None, ("height=128",), "was saved with height=64"),
        (None, ("baseline=ip_adapter_sd15",), "leave out baseline, or the file of Mo"),
        (("pip.safetensors", "gone.safetensors"), (), "gone.safetensors: no such file"),
    ],
)
def test_a_story_that_does_not_fit_its_character_is_refused(
    other, generate_story, change, settings, sentence, tmp_path
):
    if change:
        other.write_text(OTHER.replace(*change))
    outcome = generate_story(f"story={other}", "run_dir=other", *STEPS, *settings)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert len(outcome.sentences) == 1
    assert not (tmp_path / "other").exists()


def test_a_file_of_another_model_is_refused_by_name(other, infer, tmp_path):
    outcome = infer(f"story={other}", "run_dir=other", "steps=3", "height=64", "width=64", "model.name=sketch")
    assert outcome.code == 1
    assert "was saved with the model miniature, not sketch: generate the story with model=miniature" in outcome.err
    outcome = infer(f"story={other}", "run_dir=other", "steps=3", "height=64", "width=64")
    assert "was saved with other weights of the model miniature: " in outcome.err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("name=Pop",), "the story has no character 'Pop': did you mean [Pip]?"),
        (("name=Zarathustra",), "the story has no character 'Zarathustra': choose one of Pip, Bo"),
        (("name=Pip", "run_dir=nowhere"), "nowhere"),
        (("name=Pip", "out=run/manifest.json/x"), "run/manifest.json"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(run, save, settings, sentence):
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    outcome = save(*settings)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert len(outcome.sentences) == 1
    assert {file: file.read_bytes() for file in run.rglob("*.*")} == before


def test_stories_without_a_character_to_save_are_refused(run, save, generate_story, other, tmp_path):
    assert generate_story(f"story={other}", "run_dir=again", *STEPS).code == 0
    assert "again has saved characters, which a character file does not hold" in save("run_dir=again", "name=Bo").err
    assert generate_story("run_dir=off", *STEPS, "csa=off").code == 0
    assert "the panels share no features" in save("run_dir=off", "name=Bo").err
    (run / "panels" / "002.png").write_bytes(b"")
    assert "panels/002.png is damaged" in save("name=Pip", "out=y").err
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["config"]["csa"]["decay"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text(
        json.dumps({**manifest, "results": {}, "panels": manifest["panels"][:1]})
    )
    (tmp_path / "old" / "panels").mkdir()
    (tmp_path / "old" / "panels" / "001.png").write_bytes((run / "panels" / "001.png").read_bytes())
    assert "records no csa.decay, as it is of another version" in save("run_dir=old", "name=Pip").err
    assert not list(tmp_path.glob("**/bo.*"))


def test_the_studio_opens_and_changes_a_story_of_saved_characters(infer, other, tiny_model, tmp_path):
    command = (f"model.path={tiny_model}", *SMALL, *STEPS, "run_dir=runs/second")
    assert infer(f"story={other}", *command).code == 0
    before = pixels(tmp_path / "runs" / "second")
    (tmp_path / "characters" / "pip.safetensors").unlink()  # the run folder has all that it needs
    studio = build_studio(tmp_path / "runs", tiny_model, "steps=3")
    project = studio.read("second")
    assert all(project.records)
    studio.edit("second", "w", lambda story: change_panel(story, 1, {"caption": "Alone in the park."}))
    script = (tmp_path / "runs" / "second" / "story.yaml").read_text()
    assert "file: characters/" in script
    assert parse_script(script, project.folder) == studio.read("second").story
    with pytest.raises(UserError, match="Mo is a saved character, described by its file"):
        studio.edit("second", "w", lambda story: describe_character(story, "Mo", "a green dog"))
    studio.generate("second", "w", Look.read(project.config))
    assert finish(studio, "second").state == "done"
    studio.retake("second", "w", 1, 1)
    assert finish(studio, "second").state == "done"
    studio.close()
    assert all(np.array_equal(a, b) for a, b in zip(pixels(project.folder), before, strict=True))
    again = infer("story=runs/second/story.yaml", *command)
    assert again.code == 0
    assert "already" in again.out
