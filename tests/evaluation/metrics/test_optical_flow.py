"""Motion of textures shifted by known amounts, and what does not count as motion."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from storydiffusion.evaluation.metrics.clips import cross_fade, mean_pixel_change
from storydiffusion.evaluation.metrics.optical_flow import STILL, compute_motion, relative_flow
from storydiffusion.storyworld.clips import render_clip, sample_clip

SIDE = 128


def sliding(dx: int, dy: int, frames: int = 3, scale: int = 1) -> np.ndarray:
    """Return a window of 128 × 128 that moves over a smooth texture, enlarged `scale` times."""
    texture = gaussian_filter(np.random.default_rng(0).random((SIDE + 80, SIDE + 80)), 2)
    texture = 255 * (texture - texture.min()) / np.ptp(texture)
    windows = [texture[20 + i * dy :, 20 + i * dx :][:SIDE, :SIDE] for i in range(frames)]
    return np.stack(
        [np.repeat(w.astype(np.uint8)[..., None], 3, -1).repeat(scale, 0).repeat(scale, 1) for w in windows]
    )


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (3, 4), (8, 6)])
def test_a_texture_moves_as_far_as_it_was_shifted(dx, dy):
    expected = np.hypot(dx, dy) / np.hypot(SIDE, SIDE)
    assert compute_motion(sliding(dx, dy)) == pytest.approx(expected, rel=0.05)


def test_motion_does_not_depend_on_the_size_of_the_image():
    assert compute_motion(sliding(3, 4, scale=4)) == pytest.approx(compute_motion(sliding(3, 4)), rel=0.05)


def test_a_static_clip_has_no_motion():
    assert compute_motion(sliding(0, 0)) < STILL / 100


def test_a_cross_fade_changes_but_does_not_move():
    true = render_clip(sample_clip(1, 0, "crossing"), 8)
    fade = cross_fade(true[0], true[-1], 8)
    assert mean_pixel_change(fade) > 0.2 * mean_pixel_change(true)
    assert compute_motion(fade) < STILL < 10 * STILL < compute_motion(true)


def test_relative_motion_needs_a_reference_that_moves():
    assert relative_flow(0.01, 0.02) == 0.5
    assert relative_flow(0.01, STILL / 2) is None
