"""The metrics of the benchmark `transitions`, on true and spoiled clips and on the shipped model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.benchmark import find_edition
from storydiffusion.evaluation.benchmarks.held_out import SCENE_CHANGE, HeldOutClip, sample_held_out
from storydiffusion.evaluation.benchmarks.transitions import Readers, load_readers, measure_item
from storydiffusion.evaluation.metrics.clips import cross_fade
from storydiffusion.evaluation.metrics.registry import FRAME_ATTRIBUTES
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.video import load_video_model
from storydiffusion.models.image_encoders import ImageEncoder
from storydiffusion.pipelines.transition_sampling import build_sampling, sample_clips
from storydiffusion.storyworld.attribute_classifier import CLASSIFIERS, AttributeClassifier
from storydiffusion.storyworld.edition import EDITIONS, get_edition
from storydiffusion.storyworld.scene_clips import sample_scene_clip
from tests.conftest import compose_config, shipped_edition
from tests.helpers.world_model import build_world_video_model


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


def get_clip(motion: str, edition: int = 1, seed: int = 1) -> HeldOutClip:
    world = get_edition(edition)
    return HeldOutClip(world, 0, world.sample_clip(seed, 0, motion))


def get_pair() -> HeldOutClip:
    """A clip of the second edition with two characters."""
    clips = (sample_scene_clip(1, index) for index in range(50))
    return HeldOutClip(get_edition(2), 0, next(clip for clip in clips if len(clip.motions) == 2))


@pytest.fixture(scope="module")
def second_readers(readers: Readers) -> Readers:
    """A classifier of the second edition that reads at random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Readers(CLASSIFIERS[2]((4, 4, 32)).eval(), readers.encoder)


def test_the_true_clip_has_no_error(readers):
    for motion in ("crossing", "jumping", "travelling"):
        clip = get_clip(motion)
        metrics = measure_item(clip, clip.render(6), readers)
        assert set(FRAME_ATTRIBUTES) < set(metrics)
        for name in ("perceptual_error", "pixel_error", "boundary_frame_error", "boundary_perceptual_error"):
            assert metrics[name] == 0
        assert metrics["pixel_change"] == 1
        assert metrics["middle_action"] == metrics["frame_action"] == metrics["frame_place"] == 1
        assert ("place_error" in metrics) != clip.clip.travels
        assert float(metrics.get("place_error") or 0) < 0.15  # the box is found again


def test_the_true_clip_of_the_second_edition_has_no_error(second_readers):
    for clip in (get_pair(), get_clip("crossing", 2), get_clip("turning", 2)):
        metrics = measure_item(clip, clip.render(6), second_readers)
        for name in ("perceptual_error", "pixel_error", "boundary_frame_error", "boundary_perceptual_error"):
            assert metrics[name] == 0
        assert metrics["frame_place"] == metrics["frame_object"] == metrics["frame_characters"] == 1
        assert 0 <= float(metrics["place_error"] or 0) < 0.2
        assert "early_end" not in metrics


def test_each_of_two_characters_has_its_place(second_readers):
    clip = get_pair()
    true = clip.render(6)
    plates = clip.world.render_plates(clip.clip, 6, 128)
    for gone in (slice(0, 64), slice(64, 128)):
        frames = true.copy()
        frames[1:-1, :, gone] = plates[1:-1, :, gone]
        error = float(measure_item(clip, frames, second_readers)["place_error"] or 0)
        assert 0.4 < error < 0.7  # that of one of both is 1


def test_attributes_are_those_of_the_clip_and_actions_those_read_on_true_frames(monkeypatch):
    """Of a classifier that reads the truth, except for the action of the middle frames of what was generated."""
    clip = get_clip("jumping", 2)
    true = clip.render(8)
    generated = true.copy()
    generated[:, 0, 0] ^= 1

    def read(classifier, frames):
        readings = [clip.get_labels(i / 7) for i in range(8)]
        if not np.array_equal(frames, true):
            readings[3] = readings[3] | {"action_1": "standing", "hat_1": "a wrong one"}
        return readings

    monkeypatch.setattr("storydiffusion.evaluation.benchmarks.transitions.read_frames", read)
    readers = Readers(CLASSIFIERS[2]((4,)).eval(), Still())
    metrics = measure_item(clip, generated, readers)
    assert metrics["frame_kind"] == metrics["frame_mood"] == metrics["boundary_attributes"] == 1
    assert metrics["hat"] == metrics["frame_action"] == pytest.approx(5 / 6)
    assert metrics["middle_action"] == 3 / 4
    assert metrics["central_action"] == 1
    assert clip.get_labels(4 / 7)["action_1"] == "jumping"


class Still(ImageEncoder):
    """An encoder for which all images are alike."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 8, {"hidden": 3, "pooled": 3}, (0.5,) * 3, (0.5,) * 3)

    def hidden(self, pixels):
        return torch.ones(len(pixels), 4, 3)

    def pooled(self, pixels):
        return torch.ones(len(pixels), 3)


@pytest.mark.parametrize("edition", EDITIONS)
def test_scene_changes_have_two_stills_and_no_truth_between(edition, readers, second_readers):
    first, second = sample_held_out(get_edition(edition), SCENE_CHANGE, 2)
    assert not first.has_truth
    assert first.group == SCENE_CHANGE
    start, end = first.render(8)
    assert not np.array_equal(start, end)
    assert first.clip.start not in (second.clip.start, second.clip.end)
    chosen = readers if edition == 1 else second_readers
    early = {}
    for name, shown in (("start", start), ("end", end)):
        metrics = measure_item(first, np.stack([start, shown, shown, end]), chosen)
        assert "perceptual_error" not in metrics
        assert metrics["boundary_frame_error"] == 0
        early[name] = metrics["early_end"]
    assert 0 <= float(early["start"] or 0) <= 1


@pytest.mark.parametrize("edition", EDITIONS)
def test_a_motion_is_that_of_all_clips_and_an_unknown_one_is_refused(edition):
    world = get_edition(edition)
    assert {clip.group for clip in sample_held_out(world, "jumping", 5)} == {"jumping"}
    assert len({clip.group for clip in sample_held_out(world, None, 20)}) > 3
    with pytest.raises(UserError, match=r"benchmark.motion is 'flying': choose one of .*scene_change"):
        sample_held_out(world, "flying", 2)


def test_the_folder_names_the_edition_and_the_classifier_must_read_it(tmp_path, world_model):
    assert find_edition(world_model).number == 1
    classifier = tmp_path / "attribute_classifier" / "config.json"
    classifier.parent.mkdir()
    (tmp_path / "storydiffusion.json").write_text('{"kind": "miniature", "edition": 2}')
    classifier.write_text('{"edition": 2}')
    assert find_edition(tmp_path).number == 2
    classifier.write_text('{"edition": 1}')
    with pytest.raises(UserError, match="draws StoryWorld's edition 2, but its attribute classifier reads edition 1"):
        find_edition(tmp_path)


def test_static_and_mixed_characters_are_in_the_wrong_place(readers):
    clip = get_clip("crossing")
    true = clip.render(6)
    still = np.stack([true[0]] * 5 + [true[5]])
    errors = {}
    for name, frames in (("true", true), ("still", still), ("fade", cross_fade(true[0], true[5], 6))):
        errors[name] = measure_item(clip, frames, readers)
        assert errors[name]["boundary_frame_error"] == 0
    place = {name: float(found["place_error"] or 0) for name, found in errors.items()}
    assert place["true"] < place["fade"]
    assert place["true"] < place["still"]
    assert float(errors["still"]["pixel_change"] or 0) < 0.8


@pytest.mark.parametrize("edition", EDITIONS)
def test_an_empty_scene_has_the_largest_place_error(edition, readers, second_readers):
    clip = get_clip("waving", edition)
    plates = clip.world.render_plates(clip.clip, 5, 128)
    assert measure_item(clip, plates, readers if edition == 1 else second_readers)["place_error"] == 1


def test_the_shipped_video_model_is_closer_to_the_truth_than_a_cross_fade():
    config = compose_config("model-card").model
    resolved = resolve_model(replace(config, dtype="float32", device="cpu"))
    model, readers = load_video_model(resolved), load_readers(resolved)
    sampling = replace(build_sampling(resolved.video), steps=4)
    errors = []
    for clip in sample_held_out(shipped_edition(), None, 4):
        true = clip.render(sampling.frames)
        start, end = (torch.from_numpy(true[at]).permute(2, 0, 1)[None] for at in (0, -1))
        sampled = sample_clips(model, start, end, [clip.prompt], [clip.index], sampling)[0].permute(0, 2, 3, 1)
        compared = sampled.numpy(), cross_fade(true[0], true[-1], sampling.frames)
        errors.append([measure_item(clip, frames, readers)["perceptual_error"] for frames in compared])
    ours, faded = np.mean(errors, axis=0)
    assert ours < faded
