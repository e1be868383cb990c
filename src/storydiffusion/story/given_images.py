"""User-supplied images in place of generated panels."""

import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from storydiffusion.errors import UserError
from storydiffusion.story.script import Panel, Story

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "TGA")
"""Pillow's formats that only decode: EPS, for one, would run Ghostscript."""


def build_story_from_images(files: Sequence[Path]) -> Story:
    """Build a story without text, one panel per image.

    Raises UserError unless there are at least two images, all readable and of one size.
    """
    if len(files) < 2:
        raise UserError(f"a video needs at least 2 images, not {len(files)}: give frames='[a.png,b.png]'")
    sizes = [read_image(file).size for file in files]
    for file, (width, height) in zip(files, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise UserError(
                f"{file} is {width} × {height} pixels, but {files[0]} is {sizes[0][0]} × {sizes[0][1]}: "
                "give images of one size"
            )
    return Story(", ".join(file.stem for file in files), (), tuple(Panel("", "", ()) for _ in files))


def read_image(file: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an 8-bit RGB image, upright by its EXIF tag; scale and center-crop it to `size` (width, height) if given.

    Transparent images are composited over white; 16-bit gray is scaled to 8 bits, and floats from 0…1.

    Raises UserError, also for what has no right reading: an animation, floats outside 0…1, 90 megapixels or more.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode) and not file.is_dir():  # reading a FIFO or device may never end
            raise _UnusableImageError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _decode(file)
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise UserError(f"cannot read the image {file}: {_reason(error)}; give a PNG or JPEG file") from error
    if size is None or image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


class _UnusableImageError(Exception):
    """The message is the reason, to follow the image's name."""


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it has 90 megapixels or more"
    if isinstance(error, _UnusableImageError):
        return str(error)
    if isinstance(error, OSError) and error.strerror and not isinstance(error, UnidentifiedImageError):
        return error.strerror.lower()
    return "not an image, or damaged"


def _decode(file: Path) -> Image.Image:
    with Image.open(file, formats=FORMATS) as opened:
        count = getattr(opened, "n_frames", 1)
        if count > 1 and opened.format != "MPO":  # a phone's MPO holds its photograph first
            raise _UnusableImageError(f"it holds {count} images, an animation or pages: save the one you mean")
        image = ImageOps.exif_transpose(opened)
        is_scaled = opened.format in ("PNG", "PPM")  # Pillow may read their 16 bits as mode I
    if image.mode.startswith("I;16") or (image.mode == "I" and is_scaled):
        return _scale_to_8_bits(image, 65535)
    if image.mode == "F":
        return _scale_to_8_bits(image, 1)
    if image.mode in ("I", "LAB"):
        raise _UnusableImageError(f"its pixels are {'32-bit integers' if image.mode == 'I' else 'in CIE L*a*b*'}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image, white: int) -> Image.Image:
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not (values.min() >= 0 and values.max() <= white):  # NaN fails too
        raise _UnusableImageError(f"its values range from {values.min():g} to {values.max():g}, outside 0…{white}")
    return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)).convert("RGB")
