"""Film strips: the frames of a transition side by side in one lossless PNG, for viewing and for resuming."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import write_atomically

KEY = "made-from"


def write_strip(path: str | Path, frames: np.ndarray, key: str) -> None:
    """Write frames, uint8 (F, H, W, 3), from left to right; `key` identifies their inputs and settings.

    Raises UserError where the file cannot be written.
    """
    count, height, width, _ = frames.shape
    facts = PngImagePlugin.PngInfo()
    facts.add_text(KEY, key)
    buffer = BytesIO()
    strip = Image.fromarray(np.ascontiguousarray(frames.transpose(1, 0, 2, 3)).reshape(height, count * width, 3))
    strip.save(buffer, "PNG", pnginfo=facts)
    write_atomically(path, buffer.getvalue())


def read_strip(path: str | Path, count: int, key: str) -> np.ndarray | None:
    """Read the `count` frames, uint8 (F, H, W, 3), of a strip with this `key`; return None where there is none.

    A damaged strip, or one of other settings, counts as missing and is regenerated.
    """
    try:
        with Image.open(path) as strip:
            if not isinstance(strip, PngImagePlugin.PngImageFile) or strip.text.get(KEY) != key:
                return None
            return _frames(strip, count)
    except (OSError, SyntaxError, ValueError):  # PIL's errors for missing or damaged files
        return None


def open_strip(path: str | Path, count: int) -> np.ndarray:
    """Read the `count` frames, uint8 (F, H, W, 3), of a strip, whatever its key.

    Raises UserError for a file that is missing, damaged, or not a strip of `count` frames.
    """
    try:
        with Image.open(path) as strip:
            frames = _frames(strip, count)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read the film strip {path} ({first_line(error)}): generate the video again") from error
    if frames is None:
        raise UserError(f"{path} is not a strip of {count} frames: generate the video again")
    return frames


def _frames(strip: Image.Image, count: int) -> np.ndarray | None:
    pixels = np.asarray(strip.convert("RGB"))
    if pixels.shape[1] % count:
        return None
    return pixels.reshape(len(pixels), count, -1, 3).transpose(1, 0, 2, 3)
