"""User-supplied images in place of generated panels."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from storydiffusion.errors import UserError
from storydiffusion.story.script import Panel, Story


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
    """Read an RGB image, upright by its EXIF tag; scale and centre-crop it to `size` (width, height) if given.

    Raises UserError.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, if damaged
        reason = (getattr(error, "strerror", None) or "not an image, or damaged").lower()
        raise UserError(f"cannot read the image {file}: {reason}; give a PNG or JPEG file") from error
    if size is None or image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
