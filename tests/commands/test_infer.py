import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from diffusers import DDIMScheduler
from PIL import Image

from storydiffusion.output import run_folder
from storydiffusion.output.manifest import read_manifest
from tests.conftest import ROOT, SMALL, compose_config
from tests.helpers.schedulers import is_trial


def panels(run: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run / "panels").iterdir())]


@pytest.fixture
def interrupted_at(monkeypatch):
    """Lets something happen in the scheduler's step number `step`."""

    def arrange(step: int, happens: Callable[[], None]) -> None:
        original, done = DDIMScheduler.step, []

        def failing(scheduler, output, *args, **kwargs):
            if not is_trial(output):
                done.append(1)
                if len(done) == step:
                    happens()
            return original(scheduler, output, *args, **kwargs)

        monkeypatch.setattr(DDIMScheduler, "step", failing)

    return arrange


def test_a_story_becomes_a_run_folder_and_nothing_else(generate_story, tmp_path):
    before = set(tmp_path.iterdir())
    outcome = generate_story()
    assert outcome.code == 0
    run = tmp_path / "runs" / "friends"
    assert set(tmp_path.iterdir()) - before == {tmp_path / "runs"}
    assert sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()) == [
        "manifest.json", "page.png", "panels/001.png", "panels/002.png", "panels/003.png", "report.html",
    ]  # fmt: skip
    assert "runs/friends/page.png" in outcome.out
    assert all(Image.open(file).size == (64, 64) for file in (run / "panels").iterdir())


def test_the_manifest_records_how(generate_story, tmp_path, tiny_model):
    generate_story("run_dir=run", "seed=5")
    manifest = read_manifest(tmp_path / "run" / "manifest.json")
    assert manifest.complete
    assert manifest.origin == "random"
    assert manifest.config["seed"] == 5
    assert manifest.config["csa"]["variant"] == "eq2"
    assert manifest.panels[0].prompt == "a red cat runs on the beach"
    assert len({panel.seed for panel in manifest.panels}) == 3
    assert len(manifest.weights) == 3
    for name, checksum in manifest.weights.items():
        assert checksum == hashlib.sha256((tiny_model / name).read_bytes()).hexdigest()
    for panel in manifest.panels:
        assert panel.sha256 == hashlib.sha256((tmp_path / "run" / panel.file).read_bytes()).hexdigest()
    assert {"torch", "diffusers", "device", "dtype"} <= set(manifest.versions)
    assert manifest.seconds["panels"] > 0


def test_it_says_that_weights_are_random_and_which_words_are_unknown(generate_story, tmp_path, story_file):
    story_file.write_text(story_file.read_text().replace("on the beach", "on the zebra beach"))
    outcome = generate_story("run_dir=run")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "random" in report
    assert "zebra" in report
    assert "does not know these words of the prompts: zebra" in outcome.err


def test_known_words_give_no_warning(generate_story):
    assert not [line for line in generate_story().err.splitlines() if line.startswith("warning: the model")]


def test_a_finished_story_is_not_made_again_unless_asked(generate_story, tmp_path):
    generate_story("run_dir=run")
    first = panels(tmp_path / "run")
    page = tmp_path / "run" / "page.png"
    made = page.stat().st_mtime_ns
    outcome = generate_story("run_dir=run")
    assert outcome.code == 0
    assert "already" in outcome.out
    assert page.stat().st_mtime_ns == made
    assert generate_story("run_dir=run", "overwrite=true").code == 0
    assert page.stat().st_mtime_ns > made
    assert panels(tmp_path / "run") == first


def test_damaged_results_are_named_and_made_again_bit_for_bit(generate_story, tmp_path):
    generate_story("run_dir=run")
    run = tmp_path / "run"
    before = {file: file.read_bytes() for file in run.rglob("*.*")}
    for damaged in (
        ["page.png"],
        ["report.html"],
        ["panels/002.png"],
        ["panels/001.png", "panels/003.png", "page.png"],
    ):
        for name in damaged:
            (run / name).write_bytes(before[run / name][:300])
        outcome = generate_story("run_dir=run")
        assert outcome.code == 0
        assert ("denoising" in outcome.err) == damaged[0].startswith("panels")
        assert f"{damaged[0]} has changed" in outcome.err
        assert {file: file.read_bytes() for file in before if file.name != "manifest.json"} == {
            file: content for file, content in before.items() if file.name != "manifest.json"
        }
        assert "already" in generate_story("run_dir=run").out


@pytest.mark.parametrize("change", ["seed=1", "csa=off", "noise=shared"])
def test_settings_change_the_images(generate_story, tmp_path, change):
    generate_story("run_dir=a")
    generate_story("run_dir=b", change)
    assert panels(tmp_path / "a") != panels(tmp_path / "b")


def test_negative_prompts_change_the_images_and_are_recorded(generate_story, tmp_path, story_file):
    generate_story("run_dir=plain")
    outcome = generate_story("run_dir=avoiding", "negative=a hat")
    assert "warning" not in outcome.err
    assert panels(tmp_path / "plain") != panels(tmp_path / "avoiding")
    manifest = read_manifest(tmp_path / "avoiding" / "manifest.json")
    assert {panel.negative_prompt for panel in manifest.panels} == {"a hat"}
    report = (tmp_path / "avoiding" / "report.html").read_text()
    assert report.count("without: a hat") == 3
    assert "<td>a hat</td>" in report
    refused = generate_story("run_dir=avoiding", "negative=a red hat")
    assert refused.code != 0
    story_file.write_text(story_file.read_text() + "negative: a hat\n")
    generate_story("run_dir=of_file")
    assert panels(tmp_path / "of_file") == panels(tmp_path / "avoiding")
    generate_story("run_dir=emptied", "negative=''")
    assert panels(tmp_path / "emptied") == panels(tmp_path / "plain")


def test_a_negative_prompt_without_guidance_is_named(generate_story):
    outcome = generate_story("guidance_scale=1", "negative=a hat")
    assert outcome.code == 0
    assert "warning: guidance_scale is 1.0, without guidance: negative prompts need more than 1" in outcome.err


def test_shared_noise_is_recorded_in_the_manifest(generate_story, tmp_path):
    generate_story("run_dir=run", "noise=shared")
    seeds = [panel.seed for panel in read_manifest(tmp_path / "run" / "manifest.json").panels]
    assert seeds[0] == seeds[2] != seeds[1]


def test_rate_0_is_no_sharing(generate_story, tmp_path):
    generate_story("run_dir=a", "csa=off")
    generate_story("run_dir=b", "csa.rate=0")
    assert panels(tmp_path / "a") == panels(tmp_path / "b")


def test_ctrl_c_while_images_are_written_keeps_the_last_step(generate_story, tmp_path, monkeypatch):
    generate_story("run_dir=whole")
    monkeypatch.setattr(run_folder, "comic_page", lambda *_: signal.raise_signal(signal.SIGINT))
    assert generate_story("run_dir=run").code == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    outcome = generate_story("run_dir=run")
    assert "denoising 3 panels: 6step" in outcome.err
    assert panels(tmp_path / "run") == panels(tmp_path / "whole")


def test_a_sweep_writes_into_folders_of_its_own(generate_story, tmp_path):
    outcome = generate_story("csa.rate=0,0.5", "run_dir=runs/rate-${csa.rate}", "-m")
    assert outcome.code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {"rate-0", "rate-0.5"}
    assert not (tmp_path / "multirun.yaml").exists()


def test_another_configuration_is_refused(generate_story, tmp_path):
    generate_story("run_dir=run")
    first = panels(tmp_path / "run")
    outcome = generate_story("run_dir=run", "seed=1")
    assert outcome.code == 1
    assert len(outcome.sentences) == 1
    assert "run_dir" in outcome.err
    assert panels(tmp_path / "run") == first


def test_after_ctrl_c_the_same_command_resumes_to_the_same_pixels(
    generate_story, tmp_path, interrupted_at, monkeypatch
):
    generate_story("run_dir=whole")
    interrupted_at(4, lambda: signal.raise_signal(signal.SIGINT))
    outcome = generate_story("run_dir=run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert outcome.code == 130
    assert outcome.sentences[-1].startswith("infer.py: interrupted after step 3")
    run = tmp_path / "run"
    assert not (run / "page.png").exists()
    assert not read_manifest(run / "manifest.json").complete
    outcome = generate_story("run_dir=run")
    assert outcome.code == 0
    assert "denoising 3 panels: 3step" in outcome.err  # the bar goes on from the third step
    assert panels(run) == panels(tmp_path / "whole")
    assert read_manifest(run / "manifest.json").complete


def test_after_a_crash_the_last_saved_step_is_where_it_resumes(generate_story, tmp_path, interrupted_at, monkeypatch):
    generate_story("run_dir=whole")
    monkeypatch.setattr(run_folder, "SECONDS_BETWEEN_SAVES", 0.0)

    def power_cut():
        raise RuntimeError("power cut")

    interrupted_at(5, power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        generate_story("run_dir=run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    outcome = generate_story("run_dir=run")
    assert "denoising 3 panels: 4step" in outcome.err
    assert panels(tmp_path / "run") == panels(tmp_path / "whole")


def test_a_prompt_longer_than_the_text_encoder_is_generated_whole(generate_story, tmp_path, story_file):
    """Words beyond the encoder's 16 tokens still change the picture."""
    text = story_file.read_text()
    for run, end in (("a", "a hat"), ("b", "a book")):
        long = "on the beach, the cat in the park, the girl in the blue hat, " + end
        story_file.write_text(text.replace("on the beach", long))
        assert generate_story(f"run_dir={run}", "csa=off").code == 0
    assert panels(tmp_path / "a")[0] != panels(tmp_path / "b")[0]


@pytest.mark.parametrize("variant", ["eq2", "shared_row", "algorithm1", "official", "off"])
def test_every_variant_generates_a_story(generate_story, tmp_path, variant):
    assert generate_story(f"csa={variant}", "run_dir=run").code == 0
    pictures = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "run" / "panels").iterdir())]
    assert all(picture.std() > 0 for picture in pictures)


@pytest.mark.parametrize("override", ["csa.sampler=progressive", "csa.rate={2: 0.5}", "guidance_scale=1", "width=96"])
def test_settings_that_a_user_tries(generate_story, override):
    assert generate_story(override).code == 0


@pytest.mark.parametrize("example", sorted((ROOT / "examples" / "stories").iterdir()), ids=lambda file: file.stem)
def test_every_example_is_generated(infer, tiny_model, example):
    small = ("height=64", "width=64", "steps=1")
    assert infer(f"story={example}", f"model.path={tiny_model}", *small).code == 0


def test_the_story_of_the_bare_command_exists_in_any_directory(monkeypatch, tmp_path):
    from storydiffusion.story import load_story

    monkeypatch.chdir(tmp_path)
    assert len(load_story(compose_config("infer").story).panels) == 4


def imported_by(*arguments: str) -> tuple[int, set[str]]:
    """Run infer.py in a process of its own; return its exit code and the libraries that it imports."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "infer.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.partition(".")[0] for line in lines}


def test_a_wrong_value_and_a_finished_story_are_answered_without_torch(generate_story, tiny_model, story_file):
    heavy = {"torch", "diffusers", "transformers"}
    code, libraries = imported_by("csa.rate=2")
    assert code == 1
    assert not libraries & heavy
    assert generate_story("run_dir=run").code == 0
    code, libraries = imported_by(f"story={story_file}", f"model.path={tiny_model}", *SMALL, "run_dir=run")
    assert code == 0
    assert not libraries & heavy


def test_characters_without_a_font_are_named(generate_story, tmp_path):
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # has Arabic, not Thai
    (tmp_path / "script.yaml").write_text(
        "title: قصة\ncharacters: {Ada: a red cat}\npanels:\n"
        "  - {prompt: '[Ada] runs', caption: ตอน}\n  - {prompt: '[Ada] sits', caption: Morning, says: ไป}\n"
    )
    outcome = generate_story("story=script.yaml", "run_dir=boxes")
    assert outcome.code == 0
    assert "title: ق ص ة" in outcome.err
    assert "caption 1: ต อ น" in outcome.err
    assert read_manifest(tmp_path / "boxes" / "manifest.json").config["script"]["missing_characters"] == {
        "title": "قصة",
        "caption 1": "ตอน",
        "says 2": "ไป",
    }
    outcome = generate_story("story=script.yaml", f"font={font}", "run_dir=set")
    assert "title" not in outcome.err
    assert "caption 1: ต อ น" in outcome.err
    manifest = read_manifest(tmp_path / "set" / "manifest.json")
    assert manifest.config["script"]["fonts"] == [hashlib.sha256(font.read_bytes()).hexdigest()]
    assert "Story font 1" in (tmp_path / "set" / "report.html").read_text(encoding="utf-8")


def test_a_file_that_is_no_font_is_refused(generate_story, tmp_path):
    (tmp_path / "text.ttf").write_text("no font")
    outcome = generate_story("font=text.ttf")
    assert outcome.code == 1
    assert "text.ttf" in outcome.err
    assert not (tmp_path / "runs").exists()
