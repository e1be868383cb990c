"""Film strips: writing and reading."""

import numpy as np
import pytest
from PIL import Image

from storydiffusion.output.film_strip import read_strip, write_strip

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    write_strip(tmp_path / "transitions" / "001-002.png", FRAMES, "key")
    return tmp_path / "transitions" / "001-002.png"


def test_frames_are_lossless(file):
    found = read_strip(file, 3, "key")
    assert found is not None
    assert np.array_equal(found, FRAMES)


def test_it_shows_the_frames_from_left_to_right(file):
    strip = np.asarray(Image.open(file))
    assert strip.shape == (4, 18, 3)
    assert np.array_equal(strip[:, 6:12], FRAMES[1])


def test_a_strip_with_another_key_is_none(file, tmp_path):
    assert read_strip(file, 3, "other key") is None
    assert read_strip(file, 4, "key") is None
    assert read_strip(tmp_path / "none.png", 3, "key") is None
    Image.fromarray(FRAMES[0]).save(file)  # no key
    assert read_strip(file, 1, "key") is None


@pytest.mark.parametrize("length", [0, 10, 60, -60])
def test_a_damaged_strip_is_none(file, length):
    file.write_bytes(file.read_bytes()[:length])
    assert read_strip(file, 3, "key") is None
