"""Takes of a panel: what they read, that all else stays, and that one can go back."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.output.manifest import Manifest, TakeRecord, read_manifest
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.pipelines.takes import collect_takes, generate_takes, get_chosen_takes, place_views, take_seed
from storydiffusion.story import load_story

STEPS = "steps=3"


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def panels(run: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run / "panels").iterdir())]


def manifest(run: Path) -> Manifest:
    return read_manifest(run / "manifest.json")


def test_takes_leave_the_story_as_it_is(run, generate_story):
    before = {file: file.read_bytes() for file in run.rglob("*.*") if file.name != "manifest.json"}
    outcome = generate_story("run_dir=run", STEPS, "retake=2", "candidates=2")
    assert outcome.code == 0
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(file.name for file in (run / "takes").iterdir()) == ["002-000.png", "002-001.png", "002-002.png"]
    assert (run / "takes" / "002-000.png").read_bytes() == panels(run)[1]
    assert len({file.read_bytes() for file in (run / "takes").iterdir()}) == 3
    assert "take 2: run/takes/002-002.png" in outcome.out
    assert "already" in generate_story("run_dir=run", STEPS).out
    assert [take.seed for take in manifest(run).takes[1:]] == [take_seed(0, 1, 1), take_seed(0, 1, 2)]


def test_a_take_is_chosen_and_gone_back_from(run, generate_story):
    before, page = panels(run), (run / "page.png").read_bytes()
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=2")
    outcome = generate_story("run_dir=run", STEPS, "retake=2", "take=2")
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    after = panels(run)
    assert after == [before[0], (run / "takes" / "002-002.png").read_bytes(), before[2]]
    assert (run / "page.png").read_bytes() != page
    assert manifest(run).complete
    assert manifest(run).panels[1].seed == take_seed(0, 1, 2)
    assert get_chosen_takes(manifest(run)) == [0, 2, 0]
    assert "already" in generate_story("run_dir=run", STEPS).out
    generate_story("run_dir=run", STEPS, "retake=2", "take=0")
    assert panels(run) == before
    assert (run / "page.png").read_bytes() == page


def test_settings_of_the_video_may_differ(run, generate_story):
    for settings in (("candidates=1",), ("take=1",)):
        assert generate_story("run_dir=run", STEPS, "retake=2", "video=off", "hold=2", *settings).code == 0
    assert manifest(run).config["hold"] == 2


def test_more_takes_are_numbered_on_and_independent_of_how_many_are_made(run, generate_story):
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=1")
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=1")
    one_by_one = [np.asarray(Image.open(run / take.file)).astype(int) for take in manifest(run).takes]
    generate_story("run_dir=run", STEPS, "overwrite=true")
    assert not list((run / "takes").iterdir())
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=2")
    together = [np.asarray(Image.open(run / take.file)).astype(int) for take in manifest(run).takes]
    assert len(one_by_one) == len(together) == 3
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(one_by_one, together, strict=True))


def test_a_caption_may_change_afterwards_and_the_take_stays(run, generate_story, story_file):
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=1")
    generate_story("run_dir=run", STEPS, "retake=2", "take=1")
    before = panels(run)
    story_file.write_text(story_file.read_text().replace("Three.", "Drei."))
    outcome = generate_story("run_dir=run", STEPS)
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    assert panels(run) == before
    assert len(manifest(run).takes) == 2
    assert manifest(run).panels[1].seed == take_seed(0, 1, 1)
    assert "Drei." in (run / "report.html").read_text()
    assert generate_story("run_dir=run", STEPS, "retake=2", "take=0").code == 0


def test_takes_of_panels_that_stay_outlive_an_edit_of_others(generate_story, story_file, tmp_path):
    run, alone = tmp_path / "alone", ["run_dir=alone", STEPS, "csa=off"]
    generate_story(*alone)
    for panel in (1, 2):
        generate_story(*alone, f"retake={panel}", "candidates=1")
        generate_story(*alone, f"retake={panel}", "take=1")
    first, second, third = panels(run)
    story_file.write_text(story_file.read_text().replace('"[Bo] in the park"', '"[Bo] on the beach"'))
    refused = generate_story(*alone)
    assert refused.code == 1
    assert "overwrite=true, which generates panel 2 and removes the takes of panel 2" in refused.err
    edited = generate_story(*alone, "overwrite=true")
    assert edited.code == 0
    assert "removing the takes of panel 2" in edited.err
    assert [a == b for a, b in zip(panels(run), (first, second, third), strict=True)] == [True, False, True]
    assert sorted(file.name for file in (run / "takes").iterdir()) == ["001-000.png", "001-001.png"]
    assert manifest(run).panels[0].seed == take_seed(0, 0, 1)
    assert get_chosen_takes(manifest(run)) == [1, 0, 0]
    assert generate_story(*alone, "retake=3", "candidates=1").code == 0  # beside a story that has them
    assert generate_story(*alone, "retake=1", "take=0").code == 0
    assert panels(run)[0] != first


def test_a_changed_prompt_of_the_panel_is_taken_against_the_others(run, generate_story, story_file):
    before = panels(run)
    story_file.write_text(story_file.read_text().replace('"[Bo] in the park"', '"[Bo] on the beach"'))
    assert generate_story("run_dir=run", STEPS).code == 1
    assert generate_story("run_dir=run", STEPS, "retake=2", "candidates=2").code == 0
    first, second = manifest(run).takes[1:]
    assert first.prompt == "a blue fox on the beach"
    assert first.seed == manifest(run).panels[1].seed != second.seed
    assert generate_story("run_dir=run", STEPS, "retake=2", "take=1").code == 0
    assert [a == b for a, b in zip(panels(run), before, strict=True)] == [True, False, True]
    assert manifest(run).panels[1].prompt == "a blue fox on the beach"
    assert "already" in generate_story("run_dir=run", STEPS).out


@pytest.mark.parametrize(("settings", "computed"), [("csa=off", 2), ("csa.anchor_panels=1", 3), ("csa.rate=0.5", 5)])
def test_only_images_that_reach_the_takes_are_computed_with_them(generate_story, tmp_path, settings, computed):
    assert generate_story("run_dir=run", STEPS, settings).code == 0
    before = panels(tmp_path / "run")
    outcome = generate_story("run_dir=run", STEPS, settings, "retake=3", "candidates=2")
    assert outcome.code == 0
    assert f"denoising {computed} panels" in outcome.err
    assert panels(tmp_path / "run") == before


def test_a_damaged_panel_is_restored_from_its_take(run, generate_story):
    generate_story("run_dir=run", STEPS, "retake=2", "candidates=1")
    generate_story("run_dir=run", STEPS, "retake=2", "take=1")
    before = panels(run)
    (run / "panels" / "002.png").write_bytes(b"")
    outcome = generate_story("run_dir=run", STEPS)
    assert outcome.code == 0
    assert "denoising" not in outcome.err
    assert panels(run) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("retake=4",), "retake=4, but the story has 3 panels"),
        (("retake=0",), "retake"),
        (("take=1",), "take=1 of which panel? add retake=PANEL"),
        (("retake=2", "take=7"), "panel 2 has no take 7: make some with candidates=N first"),
        (("retake=2", "candidates=0"), "candidates"),
        (("retake=2", "seed=3"), "retake keeps all but panel 2, but seed differs"),
        (("retake=2", "overwrite=true"), "leave out overwrite"),
        (("extend=true", "seed=3"), "another story or configuration (seed)"),
        (("extend=true", "retake=2"), "leave out one of them"),
        (("extend=true", "baseline=ip_adapter_sd15"), "leave out extend or baseline"),
        (("retake=2", "run_dir=nowhere"), "nowhere"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(run, generate_story, settings, sentence):
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    outcome = generate_story("run_dir=run", STEPS, *settings)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert {file: file.read_bytes() for file in run.rglob("*.*")} == before


@pytest.mark.parametrize("regions", ["off", "characters"])
def test_a_take_with_the_panels_own_seed_is_the_panels_first_image(
    generate_story, story_file, tmp_path, tiny_model, regions
):
    """The take reads the same features at the same step as the panel did, so equal inputs give an equal image."""
    assert generate_story("run_dir=run", STEPS, f"csa.regions={regions}").code == 0
    run, csa = tmp_path / "run", ConsistentSelfAttentionConfig(seed=0, regions=regions)
    pipe = StoryPipeline.from_pretrained(tiny_model, scheduler="ddim", guidance_start=0.0).to(torch.float64)
    found = collect_takes(manifest(run))
    again = [replace(found[panel, 0], number=1) for panel in (1,)]
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 64, "width": 64}
    image = generate_takes(pipe, load_story(story_file), found, again, csa, settings)[0]
    first = np.asarray(Image.open(run / "panels" / "002.png")).astype(int)
    assert np.abs(np.asarray(image).astype(int) - first).max() <= 1


LONGER = """  - {prompt: "[Bo] runs on the beach", caption: Four.}
  - {prompt: "[Pip] in the park", caption: Five.}
"""


def test_a_story_is_extended_and_its_panels_stay(run, generate_story, story_file):
    before, first = panels(run), manifest(run)
    story_file.write_text(f"{story_file.read_text().rstrip()}\n{LONGER}")
    refused = generate_story("run_dir=run", STEPS)
    assert refused.code == 1
    assert "panel 4 is new; panel 5 is new" in refused.err
    outcome = generate_story("run_dir=run", STEPS, "extend=true")
    assert outcome.code == 0
    assert panels(run)[:3] == before
    after = manifest(run)
    assert len(panels(run)) == len(after.panels) == 5
    assert after.complete
    assert [panel.seed for panel in after.panels[:3]] == [panel.seed for panel in first.panels]
    assert [take.reads for take in after.takes] == [(0,) * 3] * 3 + [(0,) * 5] * 2
    assert "Five." in (run / "report.html").read_text()
    for settings in ((), ("extend=true",)):
        assert "already" in generate_story("run_dir=run", STEPS, *settings).out
    (run / "panels" / "005.png").unlink()
    whole = panels(run)
    assert "denoising" not in generate_story("run_dir=run", STEPS).err
    assert panels(run)[:4] == whole
    assert generate_story("run_dir=run", STEPS, "retake=5", "candidates=1").code == 0
    assert generate_story("run_dir=run", STEPS, "retake=1", "candidates=1").code == 0
    assert manifest(run).takes[-1].reads == (0,) * 5


def test_new_panels_read_the_old_ones(run, generate_story, story_file, tmp_path):
    """Without sharing they are other images."""
    story_file.write_text(f"{story_file.read_text().rstrip()}\n{LONGER}")
    assert generate_story("run_dir=run", STEPS, "extend=true").code == 0
    assert generate_story("run_dir=alone", STEPS, "csa=off").code == 0
    assert panels(run)[3] != panels(tmp_path / "alone")[3]


def test_later_takes_read_the_chosen_takes_and_the_first_images_read_each_other(run):
    found = list(collect_takes(manifest(run)).values())
    new = replace(found[1], number=1, reads=(0, 0, 0))
    later = replace(found[0], number=1, reads=(0, 1, 0))
    views = place_views([*found, new, later])
    assert [view.images for view in views] == [(0, 1, 2)] * 3 + [(0, 3, 2), (4, 3, 2)]
    assert [view.panel for view in views] == [0, 1, 2, 1, 0]


def images(run: Path, takes: Sequence[TakeRecord]) -> list[np.ndarray]:
    return [np.asarray(Image.open(run / take.file)).astype(int) for take in takes]


@pytest.mark.parametrize("settings", [(), ("csa.anchor_panels=1", "csa.panels_at_once=1"), ("csa.start=0.5",)])
def test_with_kept_features_takes_alone_are_computed_and_equal_those_beside_the_story(
    generate_story, tmp_path, settings
):
    made = {}
    for name, gib in {"slow": 0, "fast": 1}.items():
        command = [f"run_dir={name}", STEPS, *settings, f"keep_features={gib}"]
        assert generate_story(*command).code == 0
        assert "generating 2 takes" in generate_story(*command, "retake=2", "candidates=2").err
        chosen = generate_story(*command, "retake=2", "take=1")
        assert "denoising" not in chosen.err
        outcome = generate_story(*command, "retake=3", "candidates=2")  # which reads the chosen take
        assert outcome.code == 0
        computed = 2 if "csa.anchor_panels=1" in settings else 3  # and the chosen take
        assert (f"denoising {computed} panels" in outcome.err) == (name == "fast")
        again = generate_story(*command, "retake=3", "candidates=1")
        assert ("denoising 1 panels" in again.err) == (name == "fast")
        made[name] = images(tmp_path / name, [take for take in manifest(tmp_path / name).takes if take.number])
    assert len(made["fast"]) == 5
    for fast, slow in zip(made["fast"], made["slow"], strict=True):
        assert np.abs(fast - slow).max() <= 1
    stay = manifest(tmp_path / "fast")
    kept = {file.stem for file in (tmp_path / "fast" / "features").iterdir()}
    read = [stay.panels[0], *(take for take in stay.takes if take.number == 0)]
    read += [stay.panels[1]] if "csa.anchor_panels=1" not in settings else []  # a take that the last takes read
    assert kept == {each.sha256[:16] for each in read}
    assert not (tmp_path / "slow" / "features").exists()


def test_features_are_of_the_images_there_are(generate_story, story_file, tmp_path):
    run, command = tmp_path / "run", ["run_dir=run", STEPS, "keep_features=1", "csa.anchor_panels=1"]

    def kept() -> set[str]:
        return {file.stem for file in (run / "features").iterdir()}

    generate_story(*command)
    before = kept()
    assert before == {each.sha256[:16] for each in manifest(run).panels}
    story_file.write_text(story_file.read_text().replace('"[Pip] and [Bo] in', '"[Bo] and [Pip] in'))
    assert generate_story(*command, "overwrite=true").code == 0
    assert kept() == {each.sha256[:16] for each in manifest(run).panels}
    assert len(kept() & before) == 2
    story_file.write_text(f"{story_file.read_text().rstrip()}\n{LONGER}")
    assert "of 2 panels at once" in generate_story(*command, "extend=true").err
    assert len(kept()) == 3
    assert "of 2 panels at once" in generate_story(*command, "retake=5", "candidates=2").err
    generate_story(*command, "overwrite=true", "seed=7")
    assert kept() == {each.sha256[:16] for each in manifest(run).panels}


def test_features_outlived_by_their_image_are_computed_again_under_other_settings(generate_story, tmp_path):
    """The anchor reads no other panel, so that its image stays; its features of the later steps alone do not."""
    command = ["run_dir=run", STEPS, "keep_features=1", "csa.anchor_panels=1"]
    assert generate_story(*command, "csa.start=0.5").code == 0
    first = panels(tmp_path / "run")[0]
    assert generate_story(*command, "overwrite=true").code == 0
    assert panels(tmp_path / "run")[0] == first
    outcome = generate_story(*command, "retake=3", "candidates=1")
    assert outcome.code == 0
    assert "is of other settings: computing these features again" in outcome.err
    assert "of 1 panels at once" in generate_story(*command, "retake=3", "candidates=1").err


@pytest.mark.parametrize("setting", ["model.guidance_start=0.5", "model.guidance_rescale=0.7"])
def test_takes_have_the_models_settings(generate_story, story_file, tmp_path, setting):
    """Without sharing, a take with a new seed is the panel of a story with that seed."""
    command = [STEPS, "csa=off", setting]
    assert generate_story("run_dir=run", *command).code == 0
    story_file.write_text(story_file.read_text().replace("caption: Two.", "caption: Two., seed: 7"))
    assert generate_story("run_dir=run", *command, "retake=2", "candidates=1").code == 0
    assert generate_story("run_dir=fresh", *command).code == 0
    take, panel = (Image.open(tmp_path / file) for file in ("run/takes/002-001.png", "fresh/panels/002.png"))
    assert np.abs(np.asarray(take).astype(int) - np.asarray(panel).astype(int)).max() <= 1


@pytest.mark.parametrize(("content", "problem"), [(b"{", "is damaged"), (None, "is of another image")])
def test_features_that_cannot_be_used_are_computed_again(generate_story, tmp_path, content, problem):
    run, command = tmp_path / "run", ["run_dir=run", STEPS, "keep_features=1"]
    generate_story(*command)
    one, other = (run / "features" / f"{panel.sha256[:16]}.safetensors" for panel in manifest(run).panels[:2])
    one.write_bytes(other.read_bytes() if content is None else content)
    outcome = generate_story(*command, "retake=3", "candidates=1")
    assert outcome.code == 0
    assert f"warning: {one.relative_to(tmp_path)} {problem}: computing these features again" in outcome.err
    assert "of 2 panels at once" in outcome.err
    assert "of 1 panels at once" in generate_story(*command, "retake=3", "candidates=1").err


def test_features_larger_than_allowed_are_not_kept(generate_story, tmp_path):
    outcome = generate_story("run_dir=run", STEPS, "keep_features=0.000001")
    assert outcome.code == 0
    assert "GiB, more than keep_features=1e-06: they are not kept, and retakes compute them again" in outcome.err
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.parametrize("settings", ["csa.regions=characters", "csa=off"])
def test_features_that_are_not_those_of_the_image_alone_are_not_kept(generate_story, tmp_path, settings):
    assert generate_story("run_dir=run", STEPS, settings, "keep_features=1").code == 0
    assert not (tmp_path / "run" / "features").exists()
    assert generate_story("run_dir=run", STEPS, settings, "keep_features=1", "retake=2", "candidates=1").code == 0
