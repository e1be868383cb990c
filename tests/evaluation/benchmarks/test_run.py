"""infer.py with benchmark=…, alone and as a sweep, on a tiny model of random weights with the trained classifier."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DDIMScheduler

from storydiffusion.config.infer import BENCHMARKS as BENCHMARK_CONFIGS
from storydiffusion.config.infer import METHODS as CHOICES
from storydiffusion.evaluation.benchmarks.methods import METHODS
from storydiffusion.evaluation.benchmarks.run import BENCHMARKS
from storydiffusion.evaluation.compare import compare_jobs
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.evaluation.result import Result, load_result
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.storyworld.stories import get_stories
from storydiffusion.storyworld.truth import ATTRIBUTES
from tests.conftest import ROOT, Outcome, run_verb
from tests.helpers.schedulers import is_trial
from tests.helpers.video_model import FRAMES
from tests.helpers.world_model import build_world_video_model

SWEEP = ("experiment=ablation_sampling_rate", "csa.rate=0,1", "-m")
MINIATURE = ("benchmark=stories", "benchmark.stories=2", "benchmark.batch=1", "steps=2", "model.device=cpu")
FOLDER = Path("runs/ablation_sampling_rate")


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_world_video_model(tmp_path_factory.mktemp("world") / "model")
    shutil.rmtree(folder / "attribute_classifier")
    shutil.copytree(
        find_model_folder("package://miniature", None) / "attribute_classifier", folder / "attribute_classifier"
    )
    return folder


@pytest.fixture(scope="module")
def small(world_model: Path) -> list[str]:
    """Overrides for two stories or clips of two steps, one at a time, of the tiny model."""
    parts = [f"model.video.{part}={world_model}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]
    video = [f"model.video.frames={FRAMES}", "model.video.steps=1"]
    images = ["model.scheduler=ddim", "model.guidance_start=0", "steps=2", "benchmark.batch=1"]
    return [f"model.path={world_model}", *parts, *video, "model.device=cpu", *images]


@pytest.fixture
def stories(infer: Callable[..., Outcome], small: list[str]) -> Callable[..., Outcome]:
    return lambda *overrides: infer("benchmark=stories", *small, "benchmark.stories=2", *overrides)


@pytest.fixture
def compare_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Call the command `compare` in this process."""

    return lambda *overrides: run_verb("compare", overrides, capsys)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Count the scheduler's steps from now on, and interrupt the one of that number; 0 interrupts none."""
    original = DDIMScheduler.step

    def count(interrupted: int = 0) -> list[int]:
        made: list[int] = []

        def step(scheduler, output, *args, **kwargs):
            if not is_trial(output):
                made.append(1)
                if len(made) == interrupted:
                    raise KeyboardInterrupt
            return original(scheduler, output, *args, **kwargs)

        monkeypatch.setattr(DDIMScheduler, "step", step)
        return made

    return count


def result(run: str | Path) -> Result:
    return load_result(Path(run) / "result.json")


def test_stories_are_generated_read_and_not_generated_again(stories, steps):
    made = steps()
    outcome = stories("run_dir=run")
    assert outcome.code == 0, outcome.err
    assert "measured: run/result.json" in outcome.out
    assert len(made) == 4
    found = result("run")
    assert found.items == ["story 0", "story 1"]
    assert {"consistency", "neighbor_consistency", "kind", "named_shirt", "character_similarity"} < set(found.metrics)
    parts = [found.values(name)["story 0"] for name in ("kind", "action", "place")]
    assert found.values("alignment")["story 0"] == pytest.approx(sum(parts) / 3)
    assert {METRICS[name].direction for name in found.metrics} == {"higher"}
    assert found.metrics["character_similarity"].network == "miniature"
    assert found.metrics["consistency"].network is None
    assert found.settings["csa.rate"] == 0.5
    assert found.settings["benchmark.checksum"] == get_stories(4)[1]
    assert "draws only StoryWorld" in found.remarks[0]
    assert "kind 99.5" in found.remarks[2]
    for record in json.loads(Path("run/records.json").read_text())["records"]:
        assert len(record["readings"]) == 4
        for reading in record["readings"]:
            assert all(reading[name] in values for name, values in ATTRIBUTES.items())
    again = stories("run_dir=run")
    assert "already measured" in again.out
    assert stories("run_dir=run", "benchmark.stories=3", "benchmark.batch=2").code == 0
    assert len(made) == 6, "finished stories are generated again"
    assert result("run").items == ["story 0", "story 1", "story 2"]
    other = stories("run_dir=run", "seed=1")
    assert (other.code, other.err.count("\n")) == (1, 1)
    assert "measured with seed 0, not 1" in other.err
    assert stories("run_dir=run", "seed=1", "overwrite=true").code == 0
    assert result("run").settings["seed"] == 1


def test_get_stories_another_length_are_other_items(stories):
    assert stories("run_dir=run", "benchmark.panels=6", "csa.neighbor_window=1", "csa.rate={2: 0.5}").code == 0
    assert result("run").items == ["story 0 of 6 panels", "story 1 of 6 panels"]
    assert [len(one["readings"]) for one in json.loads(Path("run/records.json").read_text())["records"]] == [6, 6]
    assert stories("run_dir=run", "benchmark.panels=6", "csa.neighbor_window=1", "csa.rate={2: 0.5}").code == 0


@pytest.fixture
def transitions(infer: Callable[..., Outcome], small: list[str]) -> Callable[..., Outcome]:
    return lambda method, *overrides: infer(
        "benchmark=transitions",
        *small,
        f"benchmark.method={method}",
        "benchmark.clips=2",
        f"run_dir={method}",
        *overrides,
    )


def test_the_configuration_names_the_registered_benchmarks_and_methods():
    assert tuple(METHODS) == CHOICES
    assert list(BENCHMARKS) == list(BENCHMARK_CONFIGS)


def test_every_method_of_transitions_is_measured(transitions):
    errors, pixels = {}, {}
    for method in CHOICES:
        if method == "sparse_control":  # which needs weights: tests/baselines/test_runs.py
            continue
        outcome = transitions(method)
        assert outcome.code == 0, outcome.err
        found = result(method)
        assert found.items == ["clip 0", "clip 1"]
        assert found.settings["benchmark.method"] == method
        assert len(found.groups) == 2
        assert found.metrics["boundary_frame_error"].values == [0, 0]
        errors[method] = found.metrics["perceptual_error"].values
        pixels[method] = found.metrics["pixel_error"].values
    assert errors["truth"] == [0, 0]
    assert errors["predictor"] != errors["no_semantic_tokens"]
    assert pixels["predictor"] != pixels["no_semantic_tokens"], "the tokens change nothing"
    # This predictor is untrained, and its transformer the identity.
    assert errors["predictor"] == errors["interpolation"]
    assert METRICS["pixel_change"].direction == "reference"
    weights = {name for name in found.settings if name.startswith("model.weights.")}
    assert {"model.weights.attribute_classifier", "model.weights.predictor/model.safetensors"} < weights


def test_a_trained_interpolation_is_a_release_without_layers(transitions, world_model):
    assert transitions("interpolation", f"benchmark.interpolation={world_model}/released").code == 0
    weights = {name for name in result("interpolation").settings if name.startswith("model.weights.")}
    assert "model.weights.interpolation/predictor/model.safetensors" in weights
    refused = transitions("interpolation", f"benchmark.interpolation={world_model}", "overwrite=true")
    assert "predictor.layers=0" in refused.err


def test_finished_clips_are_not_sampled_again(transitions):
    assert transitions("predictor").code == 0
    before = Path("predictor/records.json").stat().st_mtime_ns
    assert transitions("predictor").code == 0
    assert Path("predictor/records.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("method", ["predictor", "interpolation"])
def test_a_method_without_its_predictor_is_refused(transitions, method):
    assert "Name one in model.video.predictor" in transitions(method, "model.video.predictor=null").err
    assert "/no/such/folder" in transitions(method, "model.video.predictor=/no/such/folder").err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark=stories", "benchmark.stories=1"], "benchmark.stories=1"),
        (["benchmark=stories", "benchmark.stories=500"], "128"),
        (["benchmark=stories", "benchmark.panels=1"], "benchmark.panels=1"),
        (["benchmark=stories", "benchmark.batch=0"], "benchmark.batch=0"),
        (["benchmark=stories", "height=64"], "128"),
        (["benchmark=stories", "seed=-1"], "seed=-1"),
        (["benchmark=stories", "csa.rate=1.5"], "csa.rate"),
        (["benchmark=stories", "model.path=/no/such/folder"], "/no/such/folder"),
        (["benchmark=transitions", "benchmark.clips=1"], "benchmark.clips=1"),
        (["benchmark=transitions", "benchmark.batch=0"], "benchmark.batch=0"),
        (["benchmark=transitions", "height=64"], "128"),
        (["benchmark=transitions", "+benchmark.clip=3"], "did you mean 'benchmark.clips'"),
        (["benchmark=stories", "csa.neighbor_window=-1"], "csa.neighbor_window"),
        (["benchmark=stories", "frames=[a.png]"], "benchmark"),
        (["benchmark=stories", "+benchmark.batches=2"], "did you mean 'benchmark.batch'"),
        (["benchmark=transitions", "benchmark.method=morph"], "cross-fade"),
        (["benchmark=transitions", "benchmark.interpolation=/no/such"], "/no/such"),
        (["benchmark=clips"], "stories, text2image, transitions"),
        (["experiment=ablation_neighbor_window"], "csa.neighbor_window: add -m"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_ends_in_one_sentence(infer, tmp_path, overrides, said):
    outcome = infer(*overrides, f"run_dir={tmp_path}/run")
    assert outcome.code == 1
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.glob("run/*.json"))


def test_a_model_without_attribute_classifier_is_refused_before_generating(
    stories, infer, tiny_model, world_model, tmp_path
):
    outcome = infer("benchmark=stories", f"model.path={tiny_model}", "run_dir=run")
    assert outcome.code == 1
    assert "no accuracy of an attribute classifier" in outcome.err
    bare = tmp_path / "model"
    shutil.copytree(world_model, bare)
    (bare / "attribute_classifier" / "model.safetensors").unlink()
    assert "has no model.safetensors" in stories(f"model.path={bare}", "run_dir=run").err
    (bare / "training.json").unlink()
    assert "no accuracy of an attribute classifier" in stories(f"model.path={bare}", "run_dir=run").err
    assert not Path("run").exists()


def test_an_interrupted_sweep_resumes_to_the_same_table(stories, compare_sweep, steps, tmp_path, monkeypatch):
    """It is interrupted in the second job's second story; `test_a_killed_sweep_resumes_to_the_same_table` kills."""
    for place in ("uninterrupted", "interrupted"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "uninterrupted")
    assert stories(*SWEEP).code == 0
    assert compare_sweep(f"sweep={FOLDER}").code == 0
    table = (FOLDER / "table.md").read_text()
    assert "| 0 |" in table
    assert "| 1 |" in table
    one, other = result(FOLDER / "csa.rate=1").metrics["consistency"].values
    assert one != other, "stories make no difference, so the tables could not tell"

    monkeypatch.chdir(tmp_path / "interrupted")
    steps(interrupted=7)
    assert stories(*SWEEP).code == 130
    assert compare_jobs(FOLDER).missing == {"csa.rate=1": "is missing: it started but did not finish"}
    made, kept = steps(), (FOLDER / "csa.rate=0/result.json").stat().st_mtime_ns
    assert stories(*SWEEP).code == 0
    assert len(made) == 2, "more than one story is generated again"
    assert (FOLDER / "csa.rate=0/result.json").stat().st_mtime_ns == kept
    assert compare_sweep(f"sweep={FOLDER}").code == 0
    assert (FOLDER / "table.md").read_text() == table


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_table(infer, compare_sweep, tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "infer.py"), *MINIATURE, *SWEEP]
    for place in ("uninterrupted", "killed"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "uninterrupted")
    assert infer(*MINIATURE, *SWEEP).code == 0
    assert compare_sweep(f"sweep={FOLDER}").code == 0
    table = (FOLDER / "table.md").read_text()
    monkeypatch.chdir(tmp_path / "killed")
    records = FOLDER / "csa.rate=1/records.json"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while not records.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (records.parent / "result.json").exists()
    assert infer(*MINIATURE, *SWEEP).code == 0
    assert compare_sweep(f"sweep={FOLDER}").code == 0
    assert (FOLDER / "table.md").read_text() == table
