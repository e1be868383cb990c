"""The sheet of captioned images: every image in its place, captions below it."""

import numpy as np
import pytest
from PIL import Image

from storydiffusion.output.captioned_sheet import COLUMNS, GAP, SCALE, draw_sheet

SIDE = 64


def plain(shade: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (shade, 0, 0))


def test_images_are_in_rows_of_eight_with_their_captions_below():
    captions = [f"{n}. a cat" for n in range(10)]
    page = np.asarray(draw_sheet([plain(10 * n) for n in range(10)], captions))
    step = SIDE * SCALE + GAP
    assert page.shape[1] == GAP + COLUMNS * step
    tops = []
    for n in range(10):
        left = GAP + n % COLUMNS * step
        column = (page[:, left + SIDE] == (10 * n, 0, 0)).all(axis=-1)
        tops.append(int(np.flatnonzero(column)[0]) if n else GAP)
        block = page[tops[-1] : tops[-1] + SIDE * SCALE, left : left + SIDE * SCALE]
        assert (block == (10 * n, 0, 0)).all()
        below = page[tops[-1] + SIDE * SCALE : tops[-1] + SIDE * SCALE + 30, left : left + SIDE * SCALE]
        assert below.min() < 100, "a caption is missing"
    assert tops[:COLUMNS] == [GAP] * COLUMNS
    assert tops[8] == tops[9] > GAP + SIDE * SCALE


def test_a_long_caption_makes_its_row_higher_and_leaves_the_width():
    short, long = (draw_sheet([plain(0)], [caption]) for caption in ("a cat", "a cat in the park " * 9))
    assert short.width == long.width == GAP + SIDE * SCALE + GAP
    assert long.height > short.height + 100


def test_images_and_captions_must_be_as_many():
    for images, captions in (([], []), ([plain(0)], [])):
        with pytest.raises(ValueError, match="one caption per image"):
            draw_sheet(images, captions)
