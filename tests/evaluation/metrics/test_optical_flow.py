"""Motion of textures that are shifted by hand, and what does not count as motion."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from storydiffusion.evaluation.metrics.clips import cross_fade, motion
from storydiffusion.evaluation.metrics.optical_flow import STILL, motion_magnitude
from storydiffusion.storyworld.clips import render_clip, sample_clip

SIDE = 128


def sliding(dx: int, dy: int, frames: int = 3, scale: int = 1) -> np.ndarray:
    """A window of 128 × 128 that moves over a smooth texture, `scale` times enlarged."""
    texture = gaussian_filter(np.random.default_rng(0).random((SIDE + 80, SIDE + 80)), 2)
    texture = 255 * (texture - texture.min()) / np.ptp(texture)
    windows = [texture[20 + i * dy :, 20 + i * dx :][:SIDE, :SIDE] for i in range(frames)]
    return np.stack(
        [np.repeat(w.astype(np.uint8)[..., None], 3, -1).repeat(scale, 0).repeat(scale, 1) for w in windows]
    )


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (3, 4), (8, 6)])
def test_a_texture_moves_as_far_as_it_was_shifted(dx, dy):
    expected = np.hypot(dx, dy) / np.hypot(SIDE, SIDE)
    assert motion_magnitude(sliding(dx, dy)) == pytest.approx(expected, rel=0.05)


def test_motion_does_not_depend_on_the_size_of_the_picture():
    assert motion_magnitude(sliding(3, 4, scale=4)) == pytest.approx(motion_magnitude(sliding(3, 4)), rel=0.05)


def test_who_stands_still_has_none():
    assert motion_magnitude(sliding(0, 0)) < STILL / 100


def test_a_cross_fade_changes_but_does_not_move():
    true = render_clip(sample_clip(1, 0, "crossing"), 8)
    fade = cross_fade(true[0], true[-1], 8)
    assert motion(fade) > 0.2 * motion(true)
    assert motion_magnitude(fade) < STILL < 10 * STILL < motion_magnitude(true)
