"""User-supplied images."""

import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.story.given_images import build_story_from_images, read_image


@pytest.fixture
def files(tmp_path):
    made = [tmp_path / f"{name}.png" for name in "abc"]
    for number, file in enumerate(made):
        Image.new("RGBA", (60, 40), (80 * number, 10, 20, 255)).save(file)
    return made


def test_images_form_a_story_without_text(files):
    story = build_story_from_images(files)
    assert story.title == "a, b, c"
    assert [(panel.prompt, panel.caption, panel.cut) for panel in story.panels] == [("", "", False)] * 3


def test_an_image_is_read_unchanged_or_scaled_and_centre_cropped(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :10] = pixels[:, -10:] = 255  # what a square crop leaves out
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), pixels)
    square = np.asarray(read_image(tmp_path / "a.png", (20, 20)))
    assert square.shape == (20, 20, 3)
    assert square.max() < 30


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (40, 60)


def test_bad_images_are_named_in_one_sentence(files, tmp_path):
    with pytest.raises(UserError, match="at least 2 images, not 1"):
        build_story_from_images(files[:1])
    Image.new("RGB", (32, 16)).save(files[1])
    with pytest.raises(UserError, match=r"b\.png is 32 × 16 pixels, but .*a\.png is 60 × 40"):
        build_story_from_images(files)
    for data in (b"no image", b"", (tmp_path / "c.png").read_bytes()[:-40]):
        files[1].write_bytes(data)
        with pytest.raises(UserError, match=r"b\.png: not an image, or damaged"):
            build_story_from_images(files)
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a directory"):
        read_image(tmp_path)
