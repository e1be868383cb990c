"""Figures of clips on cases whose answer is known by hand."""

import numpy as np
import pytest

from storydiffusion.evaluation.metrics.clips import (
    cosine,
    cross_fade,
    figure_box,
    from_first,
    from_previous,
    motion,
    overlap,
    pixel_error,
    token_distance,
)

RNG = np.random.default_rng(0)


def test_tokens_of_one_direction_have_no_distance_and_opposite_ones_the_most():
    tokens = RNG.normal(size=(5, 7))
    assert token_distance(tokens, 3 * tokens) == pytest.approx(0)
    assert token_distance(tokens, -tokens) == pytest.approx(4)
    a, b = np.eye(4)[:2], np.eye(4)[2:]
    assert token_distance(a, b) == pytest.approx(2)  # at right angles
    assert token_distance(np.stack([a[0], a[1]]), np.stack([a[0], b[1]])) == pytest.approx(1)  # one token of two


def test_cosine():
    assert cosine(np.array([3.0, 0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert cosine(np.zeros(3), np.ones(3)) == 0  # rather than not a number


def test_first_and_previous_are_means_over_frames():
    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(b - a)

    frames = np.array([0.0, 1.0, 5.0])
    assert from_first(difference, frames) == 3
    assert from_previous(difference, frames) == 2.5


def test_errors_of_pixels_and_motion():
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    assert pixel_error(black, white) == pixel_error(white, black) == 1
    assert motion(np.stack([black, white, white])) == 0.5
    assert motion(np.stack([black, black])) == 0


def test_a_cross_fade_runs_evenly_from_one_picture_to_the_other():
    start, end = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    frames = cross_fade(start, end, 5)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], start)
    np.testing.assert_array_equal(frames[4], end)
    np.testing.assert_allclose(frames[2], (start.astype(float) + end) / 2, atol=0.5)


def test_the_box_is_that_of_the_largest_region():
    plate = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    frame = plate.copy()
    assert figure_box(frame, plate) is None
    frame[5:20, 10:18] ^= 255
    frame[5:20, 10:18][np.abs(frame.astype(int) - plate).max(-1)[5:20, 10:18] <= 40] ^= 128  # visible everywhere
    frame[30:34, 2:6] ^= 128
    frame[0, 0] ^= 128  # a speck
    assert figure_box(frame, plate) == (10, 5, 18, 20)


def test_noise_below_what_is_visible_is_no_figure():
    plate = np.full((20, 20, 3), 100, np.uint8)
    assert figure_box(plate + np.uint8(30), plate) is None


def test_overlap():
    box = (0, 0, 4, 2)
    assert overlap(box, box) == 1
    assert overlap(box, (4, 0, 6, 2)) == 0
    assert overlap(box, (9, 9, 10, 10)) == 0
    assert overlap(box, (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert overlap(None, box) == overlap(box, None) == 0
    assert overlap(None, None) == 1
