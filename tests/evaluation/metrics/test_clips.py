"""Metrics of clips on cases whose answer is known by hand."""

import numpy as np
import pytest

from storydiffusion.evaluation.metrics.clips import (
    boundary_frame_error,
    boundary_perceptual_error,
    cosine,
    cross_fade,
    find_foreground_box,
    from_first,
    from_previous,
    mean_absolute_difference,
    mean_pixel_change,
    overlap,
    perceptual_error,
    pixel_change,
    pixel_error,
    place_error,
    token_distance,
)

RNG = np.random.default_rng(0)


def test_token_distance_is_0_for_equal_directions_and_largest_for_opposite_ones():
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


def test_differences_and_changes_of_pixels():
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    assert mean_absolute_difference(black, white) == mean_absolute_difference(white, black) == 1
    once, static = np.stack([black, white, white]), np.stack([black, black, black])
    assert mean_pixel_change(once) == 0.5
    assert mean_pixel_change(static) == 0
    assert pixel_change(once, once) == 1
    assert pixel_change(static, once) == 0
    assert pixel_change(once, static) is None, "a static reference has no change to compare with"


def test_errors_are_over_the_frames_between_and_boundary_error_over_the_others():
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    frames, reference = np.stack([black, white, white]), np.stack([black, black, black])
    assert pixel_error(frames, reference) == 1
    assert boundary_frame_error(frames, reference[[0, -1]]) == 0.5
    assert perceptual_error(lambda a, b: float(np.abs(a - b).max()), np.array([0.0, 3, 9]), np.zeros(3)) == 3
    assert pixel_error(frames[:2], reference[:2]) is None
    assert perceptual_error(token_distance, np.zeros((2, 1, 1)), np.zeros((2, 1, 1))) is None


def test_place_error_is_the_mean_of_what_boxes_do_not_share():
    box = (0, 0, 4, 2)
    assert place_error([box, None], [box, box]) == 0.5


def test_a_cross_fade_mixes_linearly_from_one_image_to_the_other():
    start, end = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    frames = cross_fade(start, end, 5)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], start)
    np.testing.assert_array_equal(frames[4], end)
    np.testing.assert_allclose(frames[2], (start.astype(float) + end) / 2, atol=0.5)


def test_the_box_is_that_of_the_largest_region():
    plate = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    frame = plate.copy()
    assert find_foreground_box(frame, plate) is None
    frame[5:20, 10:18] ^= 255
    frame[5:20, 10:18][np.abs(frame.astype(int) - plate).max(-1)[5:20, 10:18] <= 40] ^= 128  # visible everywhere
    frame[30:34, 2:6] ^= 128
    frame[0, 0] ^= 128  # a speck
    assert find_foreground_box(frame, plate) == (10, 5, 18, 20)
    assert find_foreground_box(frame, plate, 0, 8) == (2, 30, 6, 34)
    assert find_foreground_box(frame, plate, 8) == (10, 5, 18, 20)
    assert find_foreground_box(frame, plate, 20, 30) is None


def test_noise_below_the_visible_is_not_foreground():
    plate = np.full((20, 20, 3), 100, np.uint8)
    assert find_foreground_box(plate + np.uint8(30), plate) is None


def test_boundary_perceptual_error_is_that_of_first_and_last_frame():
    def distance(a, b):
        return float(np.abs(a - b).sum())

    features = np.array([[1.0], [50.0], [50.0], [3.0]])
    assert boundary_perceptual_error(distance, features, np.array([[0.0], [5.0]])) == 1.5
    assert boundary_perceptual_error(distance, features, features[[0, -1]]) == 0


def test_overlap():
    box = (0, 0, 4, 2)
    assert overlap(box, box) == 1
    assert overlap(box, (4, 0, 6, 2)) == 0
    assert overlap(box, (9, 9, 10, 10)) == 0
    assert overlap(box, (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert overlap(None, box) == overlap(box, None) == 0
    assert overlap(None, None) == 1
