"""python infer.py with a video: of a story, and of images of the user's own; with a tiny model of random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import read_manifest
from tests.conftest import Outcome
from tests.helpers.video_model import build_tiny_video_model

FRAMES, HELD = 4, 2  # of a transition; of a panel, at 4 frames a second for half a second


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a predictor for the tiny model's cross-attention, and one for another's."""
    import torch

    from storydiffusion.models.predictor_files import save_predictor
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    folder = build_tiny_video_model(tmp_path_factory.mktemp("models") / "tiny")
    for name, width in (("predictor", 16), ("other_predictor", 24)):
        sizes = {
            "image_width": 16, "width": 8, "layers": 1, "heads": 1, "head_width": 8, "context_width": width,
            "tokens_per_frame": 2, "resampler_layers": 1, "frames": 8,
        }  # fmt: skip
        torch.manual_seed(0)
        save_predictor(SemanticMotionPredictor(**sizes), sizes, folder / name)
    return folder


@pytest.fixture
def film(infer: Callable[..., Outcome], video_model: Path) -> Callable[..., Outcome]:
    """Calls infer.py for a video in run/, with every part of the tiny model."""
    parts = [f"model.video.{part}={video_model}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]
    sampling = (f"model.video.frames={FRAMES}", "model.video.steps=2", "fps=4", "hold=0.5")
    small = ("height=64", "width=64", "steps=2", "run_dir=run", "video=on")
    return lambda *overrides: infer(f"model.path={video_model}", *parts, *sampling, *small, *overrides)


def frames_of(file: Path) -> list[np.ndarray]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def files_of(run: Path, folder: str) -> dict[str, str]:
    return {file.name: compute_sha256(file) for file in sorted((run / folder).iterdir())}


def test_a_story_becomes_a_video_too(film, tmp_path, story_file):
    film = partial(film, "cuts=script")
    outcome = film(f"story={story_file}")
    assert outcome.code == 0, outcome.err
    assert "video: run/video.mp4" in outcome.out
    run = tmp_path / "run"
    assert sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()) == [
        "manifest.json", "page.png", "panels/001.png", "panels/002.png", "panels/003.png", "report.html",
        "transitions/001-002.png", "transitions/002-003.png", "video.mp4",
    ]  # fmt: skip
    frames = frames_of(run / "video.mp4")
    assert len(frames) == 3 * HELD + 2 * (FRAMES - 2)
    assert frames[0].shape[1] == 512 < frames[0].shape[0]  # enlarged, with captions
    manifest = read_manifest(run / "manifest.json")
    assert manifest.video is not None
    assert manifest.video.sha256 == compute_sha256(run / "video.mp4")
    assert {name.partition("/")[0] for name in manifest.video.weights} == {
        "motion_adapter", "image_encoder", "predictor",
    }  # fmt: skip
    assert manifest.seconds["video"] > 0
    assert "data:video/mp4;base64," in (run / "report.html").read_text()
    assert "already" in film(f"story={story_file}").out

    before = {file: file.read_bytes() for file in run.rglob("*.*") if file.name != "manifest.json"}
    for name in ("video.mp4", "transitions/002-003.png", "panels/001.png"):
        (run / name).write_bytes(before[run / name][:-1] + b"x")
        outcome = film(f"story={story_file}")
        assert f"{name} has changed" in outcome.err
        assert {file: file.read_bytes() for file in before} == before
        assert "already" in film(f"story={story_file}").out

    panels, strips = files_of(run, "panels"), files_of(run, "transitions")
    outcome = film(f"story={story_file}", "fps=8", "captions=false")
    assert outcome.code == 0
    assert frames_of(run / "video.mp4")[0].shape == (64, 64, 3)
    assert (files_of(run, "panels"), files_of(run, "transitions")) == (panels, strips)

    story_file.write_text(story_file.read_text().replace("caption: Two.", "caption: Two., cut: true"))
    assert film(f"story={story_file}", "overwrite=true").code == 0
    assert list(files_of(run, "transitions")) == ["002-003.png"]


@pytest.fixture
def images(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    return files


def test_the_video_cuts_between_panels_of_different_characters(film, tmp_path, story_file):
    assert film(f"story={story_file}").code == 0
    run = tmp_path / "run"
    assert sorted(files_of(run, "transitions")) == ["002-003.png"]  # the first shows Pip, the second Bo, the third both
    assert len(frames_of(run / "video.mp4")) == 3 * HELD + FRAMES - 2
    story_file.write_text(story_file.read_text().replace("caption: Two.", "caption: Two., cut: false"))
    assert film(f"story={story_file}").code == 0
    assert sorted(files_of(run, "transitions")) == ["001-002.png", "002-003.png"]


def test_images_of_the_users_own_become_a_video(film, tmp_path, images):
    asked = f"frames=[{','.join(map(str, images))}]"
    outcome = film(asked)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert len(frames_of(run / "video.mp4")) == 3 * HELD + 2 * (FRAMES - 2)
    strip = np.asarray(Image.open(run / "transitions" / "001-002.png"))
    assert np.array_equal(strip[:, :64], np.asarray(Image.open(images[0])))
    assert np.array_equal(strip[:, -64:], np.asarray(Image.open(images[1])))
    assert "already" in film(asked).out
    Image.new("RGB", (64, 64)).save(images[1])
    outcome = film(asked)
    assert outcome.code == 1
    assert "another story" in outcome.err


def test_negative_prompts_reach_the_transitions_and_the_record(film, tmp_path, images):
    asked = (f"frames=[{','.join(map(str, images))}]", "model.video.guidance_scale=3")
    assert film(*asked).code == 0
    plain = files_of(tmp_path / "run", "transitions")
    outcome = film(*asked, "negative=a hat", "overwrite=true")
    assert outcome.code == 0, outcome.err
    assert "negative" not in outcome.err
    assert set(plain.values()).isdisjoint(files_of(tmp_path / "run", "transitions").values())
    manifest = read_manifest(tmp_path / "run" / "manifest.json")
    assert {panel.negative_prompt for panel in manifest.panels} == {"a hat"}
    assert manifest.config["negative"] == "a hat"
    unguided = film(asked[0], "model.video.guidance_scale=1", "negative=a hat", "overwrite=true")
    assert "warning: model.video.guidance_scale is 1.0, without guidance" in unguided.err


def test_boundary_frames_are_what_the_motion_modules_were_trained_with(film, tmp_path, images):
    asked = f"frames=[{','.join(map(str, images))}]"
    outcome = film(asked)
    assert "warning" not in outcome.err
    video = read_manifest(tmp_path / "run" / "manifest.json").video
    assert video is not None
    assert video.settings["boundary_frames"] == "noised"
    outcome = film(asked, "model.video.boundary_frames=clamped", "overwrite=true")
    assert outcome.code == 0
    assert "warning: model.video.boundary_frames=clamped gives clean boundary frames" in outcome.err


def refusal(outcome: Outcome) -> str:
    assert outcome.code == 1
    assert len(outcome.sentences) == 1
    return outcome.err


def test_images_that_make_no_video_are_refused(film, tmp_path, images):
    Image.new("RGB", (32, 64)).save(images[1])
    assert "32 × 64 pixels" in refusal(film(f"frames=[{images[0]},{images[1]}]"))
    assert "at least 2 images" in refusal(film(f"frames=[{images[0]}]"))
    assert "no such file" in refusal(film(f"frames=[{images[0]},nowhere.png]"))
    assert "video=off" in refusal(film(f"frames=[{images[0]},{images[2]}]", "video=off"))
    assert not (tmp_path / "run").exists()


def test_parts_that_are_missing_or_do_not_fit_are_named(film, tmp_path, story_file, video_model):
    story = f"story={story_file}"
    nowhere = refusal(film(story, f"model.video.predictor={tmp_path}/nowhere"))
    assert "model.video.predictor" in nowhere
    other = refusal(film(story, f"model.video.predictor={video_model}/other_predictor"))
    assert "context_width 24" in other
    (tmp_path / "empty").mkdir()
    assert "contains no *.safetensors" in refusal(film(story, f"model.video.motion_adapter={tmp_path}/empty"))
    assert "makes no video" in refusal(film(story, "model.video=null", "fps=4"))
    assert not (tmp_path / "run").exists()


def test_without_parts_for_it_a_story_is_generated_without_video_and_says_why(film, tmp_path, story_file):
    outcome = film(f"story={story_file}", "video=auto", f"model.video.motion_adapter={tmp_path}/nowhere", "fps=null")
    assert outcome.code == 0
    assert outcome.out.count("no video: model.video.motion_adapter=") == 1
    assert not (tmp_path / "run" / "video.mp4").exists()
    assert "<video" not in (tmp_path / "run" / "report.html").read_text()
    assert "already" in film(
        f"story={story_file}", "video=auto", f"model.video.motion_adapter={tmp_path}/nowhere", "fps=null"
    ).out  # fmt: skip
