"""infer.py with benchmark=…, alone and as a sweep, on tiny parts of random weights with the trained judge."""

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

from storydiffusion.config.infer import WAYS as CHOICES
from storydiffusion.evaluation.benchmarks.transitions import WAYS, file_name
from storydiffusion.evaluation.compare import gather as gathered
from storydiffusion.evaluation.result import Result, load_result
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.storyworld.stories import get_stories
from tests.conftest import ROOT, Outcome, run_verb
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
    return [f"model.path={world_model}", *parts, *video, "model.device=cpu", "steps=2", "benchmark.batch=1"]


@pytest.fixture
def stories(infer: Callable[..., Outcome], small: list[str]) -> Callable[..., Outcome]:
    return lambda *overrides: infer("benchmark=stories", *small, "benchmark.stories=2", *overrides)


@pytest.fixture
def gather(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Calls `python -m storydiffusion.collect OVERRIDES` in this process."""

    return lambda *overrides: run_verb("compare", overrides, capsys)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Counts the scheduler's steps from now on, and interrupts the one of that number; 0 interrupts none."""
    original = DDIMScheduler.step

    def count(interrupted: int = 0) -> list[int]:
        made: list[int] = []

        def step(*args, **kwargs):
            made.append(1)
            if len(made) == interrupted:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(DDIMScheduler, "step", step)
        return made

    return count


def result(run: str | Path) -> Result:
    return load_result(Path(run) / "result.json")


def test_a_benchmark_tells_and_reads_stories_and_is_not_made_again(stories, steps):
    made = steps()
    outcome = stories("run_dir=run")
    assert outcome.code == 0, outcome.err
    assert "measured: run/result.json" in outcome.out
    assert len(made) == 4
    found = result("run")
    assert found.subjects == ["story 0", "story 1"]
    assert {"consistency", "neighbours", "kind", "named shirt", "character similarity"} < set(found.figures)
    parts = [found.values(name)["story 0"] for name in ("kind", "action", "place")]
    assert found.values("alignment")["story 0"] == pytest.approx(sum(parts) / 3)
    assert {figure.better for figure in found.figures.values()} == {"higher"}
    assert found.settings["csa.rate"] == 0.5
    assert found.settings["benchmark.checksum"] == get_stories(4)[1]
    assert "draws StoryWorld alone" in found.remarks[0]
    again = stories("run_dir=run")
    assert "measured already" in again.out
    assert stories("run_dir=run", "benchmark.stories=3", "benchmark.batch=2").code == 0
    assert len(made) == 6, "what was told is told again"
    assert result("run").subjects == ["story 0", "story 1", "story 2"]
    other = stories("run_dir=run", "seed=1")
    assert (other.code, other.err.count("\n")) == (1, 1)
    assert "measured with seed 0, not 1" in other.err
    assert stories("run_dir=run", "seed=1", "overwrite=true").code == 0
    assert result("run").settings["seed"] == 1


def test_stories_of_another_length_are_other_subjects(stories):
    assert stories("run_dir=run", "benchmark.panels=6", "csa.neighbor_window=1", "csa.rate={2: 0.5}").code == 0
    assert result("run").subjects == ["story 0 of 6 panels", "story 1 of 6 panels"]
    assert [len(one["readings"]) for one in json.loads(Path("run/records.json").read_text())["records"]] == [6, 6]
    assert stories("run_dir=run", "benchmark.panels=6", "csa.neighbor_window=1", "csa.rate={2: 0.5}").code == 0


def test_every_way_of_transitions_is_measured(infer, small):
    assert tuple(file_name(way) for way in WAYS) == CHOICES
    errors = {}
    for way in CHOICES:
        if way == "sparse_control":  # which wants weights of its own: tests/baselines/test_runs.py
            continue
        outcome = infer("benchmark=transitions", *small, f"benchmark.way={way}", "benchmark.clips=2", f"run_dir={way}")
        assert outcome.code == 0, outcome.err
        found = result(way)
        assert found.subjects == ["clip 0", "clip 1"]
        assert found.settings["benchmark.way"] == way
        errors[way] = found.figures["perceptual error"].values
    assert errors["truth"] == [0, 0]
    assert errors["predictor"] != errors["no_semantic_tokens"]
    assert found.figures["motion"].better == "truth"
    weights = {name for name in found.settings if name.startswith("model.weights.")}
    assert {"model.weights.attribute_classifier", "model.weights.predictor/model.safetensors"} < weights


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark=stories", "benchmark.stories=1"], "benchmark.stories=1"),
        (["benchmark=stories", "benchmark.panels=1"], "benchmark.panels=1"),
        (["benchmark=stories", "benchmark.batch=0"], "benchmark.batch=0"),
        (["benchmark=stories", "height=64"], "128"),
        (["benchmark=stories", "csa.neighbor_window=-1"], "csa.neighbor_window"),
        (["benchmark=stories", "frames=[a.png]"], "benchmark"),
        (["benchmark=stories", "+benchmark.way=truth"], "did you mean 'benchmark.batch'"),
        (["benchmark=transitions", "benchmark.way=morph"], "cross-fade"),
        (["benchmark=transitions", "benchmark.interpolation=/no/such"], "/no/such"),
        (["benchmark=clips"], "stories, transitions"),
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


def test_a_model_without_judge_is_refused(infer, tiny_model, tmp_path):
    outcome = infer("benchmark=stories", f"model.path={tiny_model}", "run_dir=run")
    assert outcome.code == 1
    assert "judge" in outcome.err


def test_a_stopped_sweep_goes_on_and_its_table_is_that_of_a_straight_one(stories, gather, steps, tmp_path, monkeypatch):
    """Interrupted in the second job's second story; `test_a_killed_sweep_goes_on` kills."""
    for place in ("straight", "stopped"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert stories(*SWEEP).code == 0
    assert gather(f"sweep={FOLDER}").code == 0
    table = (FOLDER / "table.md").read_text()
    assert "| 0 |" in table
    assert "| 1 |" in table
    one, other = result(FOLDER / "csa.rate=1").figures["consistency"].values
    assert one != other, "stories make no difference, so the tables could not tell"

    monkeypatch.chdir(tmp_path / "stopped")
    steps(interrupted=7)
    assert stories(*SWEEP).code == 130
    assert gathered(FOLDER).missing == {"csa.rate=1": "is missing: it began and did not finish"}
    made, kept = steps(), (FOLDER / "csa.rate=0/result.json").stat().st_mtime_ns
    assert stories(*SWEEP).code == 0
    assert len(made) == 2, "more than one story is told again"
    assert (FOLDER / "csa.rate=0/result.json").stat().st_mtime_ns == kept
    assert gather(f"sweep={FOLDER}").code == 0
    assert (FOLDER / "table.md").read_text() == table


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_table_is_that_of_a_straight_one(infer, gather, tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "infer.py"), *MINIATURE, *SWEEP]
    for place in ("straight", "killed"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert infer(*MINIATURE, *SWEEP).code == 0
    assert gather(f"sweep={FOLDER}").code == 0
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
    assert gather(f"sweep={FOLDER}").code == 0
    assert (FOLDER / "table.md").read_text() == table
