"""The command that measures transitions, on tiny parts of random weights and a judge that reads size."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storydiffusion.config import load, module_command
from storydiffusion.evaluation.benchmarks.transitions import (
    ALONE,
    FADE,
    FIGURES,
    INTERPOLATION,
    OURS,
    TRUTH,
    MeasureVideoConfig,
    Readers,
    by_motion,
    figures_of,
    measure_video,
    report,
    summarize,
)
from storydiffusion.evaluation.metrics.clips import cross_fade
from storydiffusion.loaders.resolve import get_video_config, resolve_model
from storydiffusion.loaders.sources import package_path
from storydiffusion.loaders.video import load_image_encoder, load_video_model
from storydiffusion.pipelines.transition import build_sampling, sample_clips
from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
from storydiffusion.storyworld.clips import ClipTruth, caption_clip, render_clip, sample_clip
from storydiffusion.storyworld.images import HELD_OUT_SEED
from tests.conftest import Outcome, outcome_of
from tests.helpers.video_model import FRAMES
from tests.helpers.world_model import build_world_video_model

SMALL = ("model.video.steps=1", "model.device=cpu", "clips=3", "batch=2", f"model.video.frames={FRAMES}")
README = "before\n<!-- measured: transitions -->\n<!-- end -->\nafter\n"


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_video_model(tmp_path_factory.mktemp("world") / "model")


@pytest.fixture(scope="module")
def readers(world_model: Path) -> Readers:
    from storydiffusion.models.image_encoders import ClipImageEncoder

    return Readers(
        AttributeClassifier.load(world_model / "attribute_classifier"),
        ClipImageEncoder.load(world_model / "image_encoder"),
    )


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, world_model: Path
) -> Callable[..., Outcome]:
    """Calls `python -m storydiffusion.measure_video OVERRIDES` in this process, on the tiny model."""
    parts = [f"model.video.{part}={world_model}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]

    def call(*overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["measure_video.py", f"model.path={world_model}", *parts, *overrides])
        return outcome_of(lambda: module_command.run(MeasureVideoConfig, measure_video, "the help"), capsys)

    return call


def clip_of(motion: str) -> ClipTruth:
    return sample_clip(1, 0, motion)


def test_the_true_clip_has_no_error(readers):
    for motion in ("crossing", "jumping", "travelling"):
        clip = clip_of(motion)
        figures = figures_of(clip, render_clip(clip, 6), readers)
        assert set(figures) == set(FIGURES)
        for name in ("perceptual error", "pixel error", "end error"):
            assert figures[name] == 0
        assert figures["motion"] == 1
        place = figures["place error"]
        assert place is None if clip.travels else place is not None and place < 0.15  # the box is found again


def test_who_stands_still_or_is_mixed_is_in_the_wrong_place(readers):
    clip = clip_of("crossing")
    true = render_clip(clip, 6)
    still = np.stack([true[0]] * 5 + [true[5]])
    errors = {}
    for name, frames in (("true", true), ("still", still), ("fade", cross_fade(true[0], true[5], 6))):
        errors[name] = figures_of(clip, frames, readers)
        assert errors[name]["end error"] == 0
    place = {name: float(found["place error"] or 0) for name, found in errors.items()}
    assert place["true"] < place["fade"]
    assert place["true"] < place["still"]
    assert float(errors["still"]["motion"] or 0) < 0.8


def test_an_empty_scene_has_nobody_in_place(readers):
    from storydiffusion.storyworld.clips import render_plates

    clip = clip_of("waving")
    assert figures_of(clip, render_plates(clip, 5), readers)["place error"] == 1


def records(error: Callable[[int], float]) -> list[dict]:
    figures = dict.fromkeys(FIGURES, 0.5)
    return [
        {"clip": i, "motion": "jumping" if i % 2 else "travelling", "seconds": 1.0, "figures": {
            **figures, "perceptual error": error(i), "place error": error(i) if i % 2 else None}}
        for i in range(20)
    ]  # fmt: skip


def test_differences_are_paired_and_say_who_is_better():
    rng = random.Random(0)
    clips = [rng.random() for _ in range(20)]
    measured = {OURS: records(lambda i: clips[i]), FADE: records(lambda i: clips[i] + 0.1 + 0.01 * rng.random())}
    found = summarize(measured)[FADE]["perceptual error"]["predictor_less_this"]
    assert found["mean"] == pytest.approx(-0.105, abs=0.005)
    assert found["count"] == 20
    assert found["p_value"] < 1e-9
    assert summarize(measured)[FADE]["place error"]["count"] == 10
    assert summarize(measured)[OURS]["shirt"]["predictor_less_this"]["p_value"] == 1
    motions = by_motion(measured)
    assert motions["jumping"]["clips"] == 10
    assert "place error" not in motions["travelling"][OURS]
    settings = {"model": "m", "frames": 8, "steps": 2, "guidance_scale": 3.0, "machine": "M", "dtype": "float32"}
    results = {"settings": settings, "attribute_classifier": {"shirt": 0.99}, "clips": 20, "ways": summarize(measured)}
    results |= {"interpolation is trained apart": False, "motions": motions}
    text = report(results)
    assert "| jumping | 10 | " in text
    assert "| perceptual error, predictor less … | -0.10" in text
    assert "(p < 0.001)" in text
    assert "The interpolation is the predictor without its transformer" in text


def test_the_command_measures_goes_on_and_puts_the_table_into_the_readme(command, world_model, tmp_path):
    readme, out = tmp_path / "README.md", tmp_path / "out"
    readme.write_text(README)
    arguments = (f"out={out}", f"readme={readme}", f"interpolation={world_model}/released", *SMALL)
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    results, table = json.loads((out / "results.json").read_text()), (out / "table.md").read_text()
    assert list(results["ways"]) == [OURS, INTERPOLATION, ALONE, FADE, TRUTH]
    assert readme.read_text() == f"before\n<!-- measured: transitions -->\n{table.strip()}\n<!-- end -->\nafter\n"
    assert "The interpolation was trained by itself" in table
    assert results["ways"][TRUTH]["perceptual error"]["mean"] == 0
    ours, alone = (
        json.loads((out / f"{name}.json").read_text())["records"] for name in ("predictor", "no_semantic_tokens")
    )
    assert [one["clip"] for one in ours] == [0, 1, 2]
    assert ours[0]["figures"]["end error"] == alone[0]["figures"]["end error"] == 0
    assert ours[0]["figures"]["pixel error"] != alone[0]["figures"]["pixel error"], "the tokens change nothing"
    stored = {file.name: file.stat().st_mtime_ns for file in out.glob("*_*.json")}
    assert command(*arguments).code == 0
    assert stored == {file.name: file.stat().st_mtime_ns for file in out.glob("*_*.json")}, "sampled again"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["clips=1"], "2 clips or more"),
        (["batch=0"], "batch=0"),
        (["seed=-1"], "seed=-1"),
        (["model.height=256"], "128"),
        (["model.video.predictor=null"], "name the predictor"),
        (["model.path=/no/such/folder"], "/no/such/folder"),
        (["model.video.predictor=/no/such/folder"], "/no/such/folder"),
        (["interpolation=/no/such/folder"], "/no/such/folder"),
        (["readme=/no/such/README.md"], "/no/such/README.md"),
        (["clip=3"], "did you mean 'clips'"),
    ],
)
def test_bad_input_ends_in_one_sentence(command, tmp_path, overrides, said):
    outcome = command(f"out={tmp_path / 'out'}", *SMALL, *overrides)
    assert outcome.code == 1
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_interpolation_is_the_predictor_without_transformer_where_none_is_given(command, tmp_path):
    out = tmp_path / "out"
    assert command(f"out={out}", *SMALL).code == 0
    ours, without = (json.loads((out / f"{name}.json").read_text())["records"] for name in (OURS, INTERPOLATION))
    assert [one["clip"] for one in without] == [0, 1, 2]
    pairs = zip(ours, without, strict=True)  # this predictor is untrained, and its transformer the identity
    assert all(one["figures"] == other["figures"] for one, other in pairs)
    assert "is the predictor without its transformer" in (out / "table.md").read_text()


def test_a_predictor_with_layers_is_no_interpolation(command, world_model, tmp_path):
    outcome = command(f"out={tmp_path / 'out'}", f"interpolation={world_model}", *SMALL)
    assert "predictor.layers=0" in outcome.err


def test_the_shipped_video_model_comes_nearer_to_the_truth_than_a_cross_fade():
    config = load(MeasureVideoConfig, module_command._compose(MeasureVideoConfig, [])).model
    video = get_video_config(config)
    model = load_video_model(resolve_model(replace(config, dtype="float32", device="cpu")))
    shipped = package_path(config.path)
    readers = Readers(
        AttributeClassifier.load(shipped / "attribute_classifier"),
        load_image_encoder(video.image_encoder, torch.float32),
    )
    sampling = replace(build_sampling(video), steps=4)
    errors = []
    for number in range(4):
        clip = sample_clip(HELD_OUT_SEED, number)
        true = render_clip(clip, sampling.frames)
        start, end = (torch.from_numpy(true[at]).permute(2, 0, 1)[None] for at in (0, -1))
        sampled = sample_clips(model, start, end, [caption_clip(clip, number)], [number], sampling)[0].permute(
            0, 2, 3, 1
        )
        ways = sampled.numpy(), cross_fade(true[0], true[-1], sampling.frames)
        errors.append([figures_of(clip, frames, readers)["perceptual error"] for frames in ways])
    ours, faded = np.mean(errors, axis=0)
    assert ours < faded
