"""Square crops around boxes."""

import numpy as np
import pytest

from storydiffusion.evaluation.metrics.crops import square_crop

IMAGE = np.stack(np.broadcast_arrays(np.arange(30)[:, None], np.arange(40), 0), -1).astype(np.uint8)  # (row, column, 0)


@pytest.mark.parametrize(
    ("box", "top", "left", "side"),
    [
        ((10, 8, 16, 18), 8, 8, 10),  # tall: as much to either side
        ((10, 8, 20, 12), 5, 10, 10),  # wide
        ((0, 5, 2, 15), 5, 0, 10),  # moved in from the left
        ((38, 24, 40, 30), 24, 34, 6),  # and from the right
    ],
)
def test_the_square_is_around_the_box_and_inside_the_image(box, top, left, side):
    crop = square_crop(IMAGE, box)
    assert crop.shape == (side, side, 3)
    assert crop[0, 0].tolist() == [top, left, 0]


def test_a_box_wider_than_the_image_is_high_is_cut():
    assert square_crop(IMAGE, (2, 10, 38, 20)).shape == (30, 36, 3)


@pytest.mark.parametrize("box", [(0, 0, 41, 5), (0, 0, 5, 31), (5, 5, 5, 9), (-1, 0, 4, 4)])
def test_a_box_outside_is_refused(box):
    with pytest.raises(ValueError, match="not inside"):
        square_crop(IMAGE, box)
