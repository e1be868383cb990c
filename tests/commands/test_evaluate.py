"""The command `evaluate`: run folders, images, videos; and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storydiffusion.evaluation.networks import MINIATURE, load_image_text_encoder
from storydiffusion.evaluation.result import Result, load_result
from storydiffusion.files.atomic import write_image
from storydiffusion.output.video_file import write_video
from storydiffusion.storyworld.clips import render_clip, sample_clip
from storydiffusion.storyworld.renderer import render
from storydiffusion.storyworld.truth import sample_truth
from tests.conftest import Outcome, run_verb
from tests.helpers.world_model import build_mood_model, build_world_model

ENCODER = f"encoder={MINIATURE}"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Outcome]:
    """Call the command in this process, without weights of LPIPS."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    return lambda *overrides: run_verb("evaluate", ["device=cpu", *overrides], capsys)


def measured(folder: Path) -> Result:
    return load_result(folder / "result.json")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of StoryWorld: the same twice, and another."""
    folder = tmp_path / "images"
    for name, index in (("1", 0), ("2", 0), ("3", 7)):
        write_image(folder / f"{name}.png", Image.fromarray(render(sample_truth(3, index), 128)))
    return folder


def test_a_run_end_to_end(command, infer, tiny_video_model, story_file, tmp_path):
    parts = [f"model.video.{part}={tiny_video_model}/{part}" for part in ("motion_adapter", "image_encoder")]
    sampling = (
        "model.video.predictor=null",
        "model.video.frames=4",
        "model.video.steps=1",
        "steps=1",
        "video=on",
        "cuts=script",
    )
    small = ("height=64", "width=64", f"story={story_file}", "run_dir=run", f"model.path={tiny_video_model}")
    assert infer(*parts, *sampling, *small, "cuts=script").code == 0
    outcome = command("run=run", ENCODER)
    assert outcome.code == 0, outcome.err
    out = tmp_path / "run" / "evaluation"
    assert sorted(file.name for file in out.iterdir()) == [
        "metrics.png", "motion.png", "result.json", "similarity.png", "table.md",
    ]  # fmt: skip
    assert all(Image.open(file).size[0] > 200 for file in out.glob("*.png"))
    assert (out / "table.md").read_text() in outcome.out
    found, story = measured(out), "Two friends (seed 0)"
    assert found.values("text_image_similarity").keys() == {f"{story} 00{i}" for i in (1, 2, 3)}
    assert found.values("character_similarity").keys() == {story}
    clips = {f"{story} 001-002", f"{story} 002-003"}
    for name in ("motion", "lpips_first", "lpips_frames", "clipsim_first", "clipsim_frames"):
        assert found.values(name).keys() == clips
    assert found.values("boundary_frame_error") == dict.fromkeys(clips, 0)
    assert len(found.metrics) == 9
    networks = {name: values.network for name, values in found.metrics.items()}
    assert networks["motion"] == "Farnebäck flow"
    assert networks["lpips_first"] == "tokens of miniature"
    assert networks["clipsim_first"] == networks["character_similarity"] == "miniature"
    assert networks["boundary_frame_error"] is None
    assert found.settings["inputs"][story]["origin"] == "random"
    said = " ".join(found.remarks)
    for part in ("StoryWorld only", "not LPIPS proper", "standard error", "declares a winner"):
        assert part in said


def test_images_with_captions_and_boxes(command, images, tmp_path):
    (tmp_path / "captions").write_text("a girl\n\na zeppelin " + "in the park " * 30)
    (tmp_path / "boxes.json").write_text('{"1.png": [0, 0, 60, 90], "3.png": [10, 0, 60, 90]}')
    arguments = (f"captions={tmp_path / 'captions'}", f"boxes={tmp_path / 'boxes.json'}", f"out={tmp_path / 'out'}")
    outcome = command(f"images={images}", *arguments, ENCODER)
    assert outcome.code == 0, outcome.err
    found, encoder = measured(tmp_path / "out"), load_image_text_encoder(MINIATURE, torch.device("cpu"))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    shown = [np.asarray(Image.open(images / f"{i}.png")) for i in (1, 2, 3)]
    one, other = encoder.embed_image(shown[0]), encoder.embed_image(shown[2])
    raw = found.values("text_image_similarity")
    assert raw.keys() == {"1.png", "3.png"}
    assert raw["1.png"] == pytest.approx(cosine(one, encoder.embed_texts(["a girl"])[0]), abs=1e-5)
    scaled = found.values("clip_score")
    assert scaled == {name: pytest.approx(2.5 * max(0, value)) for name, value in raw.items()}
    whole = (1 + 2 * cosine(one, other)) / 3  # two are the same
    assert found.values("character_similarity") == {"images": pytest.approx(whole, abs=1e-5)}
    crops = [encoder.embed_image(image[:90, :90]) for image in (shown[0], shown[2])]  # both at the left edge
    assert found.values("character_crop_similarity") == {"images": pytest.approx(cosine(crops[0], crops[1]), abs=1e-5)}
    said = " ".join(found.remarks)
    assert "1 of 2 texts are longer" in said
    assert "words of the texts: zeppelin." in said
    assert not (tmp_path / "out" / "motion.png").exists()


def test_emotions_by_a_probe_are_named_after_it(command, images, tmp_path):
    encoder = load_image_text_encoder(MINIATURE, torch.device("cpu"))
    bias = np.log([1, 9, 1, 1, 1, 1, 1, 1])
    np.savez(tmp_path / "probe.npz", weight=np.zeros((8, encoder.width)), bias=bias)
    arguments = ("emotion=awe", f"emotion_probe={tmp_path / 'probe.npz'}", f"out={tmp_path / 'out'}")
    assert command(f"images={images}", *arguments, ENCODER).code == 0
    found = measured(tmp_path / "out")
    assert list(found.values("emo_score").values()) == pytest.approx([9 / 16] * 3)
    assert list(found.values("emo_a").values()) == [1] * 3
    assert list(found.values("emo_score_2").values()) == pytest.approx([12 / 16] * 3)
    assert found.metrics["emo_a"].network == "probe on miniature"
    assert "whose accuracy is not known" in " ".join(found.remarks)
    assert len(found.settings["weights"]["emotion_probe"]) == 64


def test_a_probe_of_raw_embeddings_is_named_so_and_reads_other_values(command, images, tmp_path):
    encoder = load_image_text_encoder(MINIATURE, torch.device("cpu"))
    weight = np.random.default_rng(0).normal(size=(8, encoder.width))
    np.savez(tmp_path / "probe.npz", weight=weight, bias=np.zeros(8))
    arguments = (f"images={images}", "emotion=awe", f"emotion_probe={tmp_path / 'probe.npz'}", ENCODER)
    assert command(*arguments, f"out={tmp_path / 'unit'}").code == 0
    assert command(*arguments, f"out={tmp_path / 'raw'}", "emotion_normalize=false").code == 0
    unit, raw = measured(tmp_path / "unit"), measured(tmp_path / "raw")
    assert raw.metrics["emo_a"].network == "probe on miniature, not normalized"
    assert list(unit.values("emo_score").values()) != pytest.approx(list(raw.values("emo_score").values()))


def test_the_probe_in_a_model_folder_reads_its_encoder_and_names_its_accuracy(command, images, tmp_path):
    model = build_mood_model(tmp_path / "model")
    outcome = command(f"images={images}", "emotion=awe", f"encoder={model}/image_encoder", f"out={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.err
    found = measured(tmp_path / "out")
    assert str(found.metrics["emo_score"].network).startswith("probe on the tokens of ")
    assert "accuracy on held-out images is, in %: one character 75.0" in " ".join(found.remarks)
    assert "one character 75.0" in (tmp_path / "out" / "table.md").read_text()
    assert len(found.settings["weights"]["emotion_probe"]) == 64


def test_a_probe_of_another_encoder_is_refused(command, images, tmp_path):
    np.savez(tmp_path / "probe.npz", weight=np.zeros((8, 5)), bias=np.zeros(8))
    outcome = command(f"images={images}", "emotion=awe", f"emotion_probe={tmp_path / 'probe.npz'}", ENCODER)
    assert outcome.code == 1
    assert "reads 5 channels" in outcome.err


def mean(found: Result, name: str) -> float:
    return float(np.mean(list(found.values(name).values())))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """true/ and still/ of two clips of 10 frames, nearly without loss."""
    for number, motion in enumerate(("crossing", "running")):
        true = render_clip(sample_clip(1, number, motion), 10)
        versions = {"true": true, "still": np.stack([true[0]] * 10)}
        for name, frames in versions.items():
            write_video(tmp_path / name / f"{motion}.mp4", frames, fps=8, crf=1)
    return tmp_path


class MeanOverPixels(torch.nn.Module):
    """A stand-in for I3D's weights: the mean of each channel and frame."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return video.mean(dim=[3, 4]).flatten(1)


def test_a_static_video_wins_lpips_and_clipsim_but_not_the_report(command, videos):
    torch.jit.script(MeanOverPixels()).save(str(videos / "i3d.pt"))
    found = {}
    for name in ("true", "still"):
        outcome = command(
            f"videos={videos / name}", f"reference={videos / 'true'}", f"i3d={videos / 'i3d.pt'}", ENCODER
        )
        assert outcome.code == 0, outcome.err
        found[name] = measured(videos / name / "evaluation")
    true, still = found["true"], found["still"]
    for name, best in (("lpips_first", 0), ("clipsim_frames", 1)):
        assert mean(still, name) == pytest.approx(best, abs=0.01)
        assert abs(mean(still, name) - best) < abs(mean(true, name) - best)
    motion = "relative_motion"
    assert mean(true, motion) == 1
    assert mean(still, motion) < 0.01
    assert mean(true, "pixel_change") == 1
    assert mean(still, "pixel_change") < 0.1
    assert mean(still, "pixel_error") > 0.01
    error = "perceptual_error"
    assert mean(true, error) == 0
    assert mean(still, error) > 0.1
    assert mean(true, "boundary_frame_error") == 0
    assert mean(still, "boundary_frame_error") > 0.01
    assert true.values("fvd") == {"all clips": pytest.approx(0, abs=1e-6)}
    assert still.values("fvd")["all clips"] > 1e-4
    assert "2 of 2 clips are nearly static" in " ".join(still.remarks)
    assert "nearly" not in " ".join(true.remarks)


def test_clips_that_differ_from_their_references_in_length_are_refused(command, videos):
    write_video(videos / "true" / "running.mp4", render_clip(sample_clip(1, 1, "running"), 12), fps=8)
    arguments = (f"videos={videos / 'still'}", f"reference={videos / 'true'}", ENCODER)
    outcome = command(*arguments)
    assert outcome.code == 1
    assert "running has 10 frames" in outcome.err
    assert not (videos / "still" / "evaluation").exists()
    assert command(*arguments, "frames=5").code == 0
    assert measured(videos / "still" / "evaluation").settings["frames"] == 5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "nothing to evaluate"),
        (["run=a", "images=b"], "run and images"),
        (["images=a", "reference=b"], "reference=b goes with videos=FOLDER"),
        (["videos=a", "captions=b"], "captions=b goes with images=FOLDER"),
        (["videos=a", "emotion=awe"], "emotion=awe goes with images=FOLDER"),
        (["videos=a", "frames=1"], "2 or more"),
        (["videos=a", "i3d=b"], "reference=FOLDER"),
        (["images=a", "emotion=joy"], "emotion=joy is not one of amusement"),
        (["images=a", "emotion_probe=b"], "emotion=NAME"),
        (["images=a", "emotion=awe", "emotion_normalize=false"], "emotion_probe=FILE"),
        (["images=a", "lpips=vgg19"], "lpips=vgg19 is not one of"),
        (["images=a", "device=tpu"], "device=tpu is not one of"),
        (["images=/no/such/folder"], "/no/such/folder"),
        (["run=/no/such/folder"], "/no/such/folder"),
        (["image=a"], "did you mean 'images'"),
    ],
)
def test_bad_input_ends_in_one_sentence(command, overrides, said):
    outcome = command(*overrides)
    assert outcome.code == 1
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_encoder_without_words_for_emotions_is_refused(command, images, tmp_path):
    encoder = build_world_model(tmp_path / "model") / "image_encoder"
    outcome = command(f"images={images}", "emotion=awe", f"encoder={encoder}")
    assert outcome.code == 1
    assert "does not know the word" in outcome.err
    assert not (images / "evaluation").exists()


def test_a_single_image_without_a_text_is_refused(command, images):
    for name in ("2.png", "3.png"):
        (images / name).unlink()
    outcome = command(f"images={images}", ENCODER)
    assert outcome.code == 1
    assert "nothing to measure" in outcome.err


def test_a_box_outside_its_image_is_refused(command, images, tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps({"2.png": [0, 0, 129, 9]}))
    outcome = command(f"images={images}", f"boxes={tmp_path / 'boxes.json'}", ENCODER)
    assert outcome.code == 1
    assert "2.png: the box [0, 0, 129, 9] is not inside the image of 128 × 128" in outcome.err
