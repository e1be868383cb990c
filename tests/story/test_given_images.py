"""User-supplied images."""

import contextlib
import os

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
    assert [(panel.prompt, panel.caption, panel.cut) for panel in story.panels] == [("", "", None)] * 3


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


GREY = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16-bit values of 0…255 exactly


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, name):
    Image.fromarray(GREY).save(tmp_path / name)
    image = np.asarray(read_image(tmp_path / name))
    assert np.array_equal(image, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, -1))


def test_big_endian_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif")
    image = Image.frombytes("I;16B", (16, 16), GREY.astype(">u2").tobytes())
    image.save(tmp_path / "b.tif")
    little, big = (np.asarray(read_image(tmp_path / name)) for name in ("a.tif", "b.tif"))
    assert np.array_equal(little, big)


def test_float_grey_is_read_from_0_to_1(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 0].ravel(), np.arange(256))
    for bad in (255.0, -0.1, np.nan):
        Image.fromarray(np.where(values == 1, bad, values).astype(np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a\.tif: its values range from .* outside 0…1"):
            read_image(tmp_path / "a.tif")


def test_32_bit_integers_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 10**6, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: its pixels are 32-bit integers"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_over_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (40, 40, 40, 255))
    image.convert("LA").convert(mode).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 40]


def test_palette_with_a_transparent_entry_is_composited_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 40, 40, 40])
    image.putpixel((1, 0), 1)
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=0)
        assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [255, 40]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_animations_and_pages_are_refused(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=rf"{name}: it holds 3 images.*save the one you mean"):
        read_image(tmp_path / name)


def test_the_photograph_of_a_multi_picture_jpeg_is_read(tmp_path):
    Image.new("RGB", (8, 8), "red").save(
        tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")]
    )
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (8, 8)


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: not a regular file"):
        read_image(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path):
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: it has 90 megapixels or more"):
        read_image(tmp_path / "a.png")


def test_formats_that_run_programs_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(UserError, match=r"a\.eps: not an image"):
        read_image(tmp_path / "a.eps")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp", "a.gif"])
def test_damaged_files_give_an_error_or_an_image(tmp_path, name):
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / name)
    data, random = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        for place in random.integers(0, len(damaged), 4):
            damaged[place] = random.integers(256)
        (tmp_path / name).write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert read_image(tmp_path / name).mode == "RGB"
