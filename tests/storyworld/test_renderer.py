from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from storydiffusion.storyworld.poses import STILL_PHASE, pose
from storydiffusion.storyworld.renderer import character_box, character_mask, render
from storydiffusion.storyworld.truth import ATTRIBUTES, MAX_SHIFT, Truth, sample_truth


def changed_pixels(a: Truth, b: Truth) -> int:
    """Count pixels that differ by more than 24 of 255 in some channel."""
    difference = np.abs(render(a).astype(int) - render(b).astype(int)).max(-1)
    return int((difference > 24).sum())


@pytest.mark.parametrize("size", [64, 128, 256])
def test_images_have_the_requested_size_and_repeat(size):
    for index in range(10):
        truth = sample_truth(21, index)
        image = render(truth, size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, render(truth, size))
        assert character_mask(truth, size).shape == (size, size)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_change_is_visible(name):
    for index in range(4):
        base = {"kind": ("girl", "boy")[index % 2], "hat": "cap", "x": 6.0}
        views = [sample_truth(22, index, **{**base, name: value}) for value in ATTRIBUTES[name]]
        for i, a in enumerate(views):
            for b in views[i + 1 :]:
                assert changed_pixels(a, b) >= 24, (name, getattr(a, name), getattr(b, name))


def test_view_and_layout_are_visible():
    truth = sample_truth(23, 0, action="waving", place="city", x=0.0)
    assert changed_pixels(truth, replace(truth, facing=-truth.facing)) > 100
    assert changed_pixels(truth, replace(truth, x=8.0)) > 1000
    assert changed_pixels(truth, replace(truth, layout=truth.layout + 1)) > 100


def test_the_whole_character_stays_inside_the_frame():
    for index in range(300):
        side = (-1, 1)[index % 2]
        x0, y0, x1, y1 = character_box(sample_truth(24, index, x=side * MAX_SHIFT, phase=index % 10 / 9))
        assert min(x0, y0) >= 2
        assert max(x1, y1) <= 126


@pytest.mark.parametrize("kind", ATTRIBUTES["kind"])
@pytest.mark.parametrize("hat", ATTRIBUTES["hat"])
def test_the_highest_jump_stays_inside_the_frame(kind, hat):
    assert character_box(sample_truth(25, 0, kind=kind, hat=hat, action="jumping"))[1] >= 2


def test_the_box_is_tight():
    for index in range(30):
        truth = sample_truth(26, index)
        mask = character_mask(truth)
        x0, y0, x1, y1 = character_box(truth)
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        for edge in (mask[y0, x0:x1], mask[y1 - 1, x0:x1], mask[y0:y1, x0], mask[y0:y1, x1 - 1]):
            assert edge.any()


def test_mask_covers_exactly_the_character():
    """Another background changes nothing inside the mask; another shirt changes nothing outside."""
    for index in range(20):
        truth = sample_truth(27, index, place="park", shirt="red", object="none")
        mask = character_mask(truth)
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= grown[:, :-1].copy()
        grown[:, :-1] |= grown[:, 1:].copy()
        shirts = (render(truth) != render(replace(truth, shirt="blue"))).any(-1)
        assert shirts.any()
        assert not (shirts & ~grown).any()
        places = (render(truth) != render(replace(truth, place="forest"))).any(-1)
        assert places[~grown].mean() > 0.9
        assert places[mask].mean() < 0.1


def test_objects_do_not_hide_the_character():
    for index in range(40):
        bare = sample_truth(28, index, object="none")
        mask = character_mask(bare)
        for name in ATTRIBUTES["object"][1:]:
            shown = (render(bare) != render(replace(bare, object=name))).any(-1)
            assert (shown & ~mask).sum() > 100
            assert (shown & mask).sum() <= 0.02 * mask.sum()


@pytest.mark.parametrize("action", ATTRIBUTES["action"])
@pytest.mark.parametrize("facing", [-1, 1])
def test_poses_are_continuous_in_phase(action, facing):
    def joints(phase: float) -> np.ndarray:
        body = pose(action, phase, facing)
        points = np.array([*body.legs, *body.arms], float)
        heights = [0.0, -body.hip]
        return np.concatenate([(points + heights).ravel(), body.head, [body.lean, body.joy, *body.foot, body.gaze]])

    track = [joints(i / 240) for i in range(241)]
    assert max(np.abs(b - a).max() for a, b in pairwise(track)) < 1.0
    assert np.ptp(track, axis=0).max() > 1.0
    if action != "sitting":
        assert np.allclose(track[0], track[-1], atol=1e-9)


def test_actions_differ_in_silhouette():
    for kind in ATTRIBUTES["kind"]:
        bare = sample_truth(29, 0, kind=kind, hat="none", accessory="none", x=0.0)
        masks = [character_mask(replace(bare, action=a, phase=STILL_PHASE[a])) for a in ATTRIBUTES["action"]]
        for i, a in enumerate(masks):
            for b in masks[i + 1 :]:
                assert (a ^ b).sum() > 0.02 * a.sum()
