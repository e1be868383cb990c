"""Pictures that somebody brings along, in place of a story's panels."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from storydiffusion.errors import UserError
from storydiffusion.story.script import Panel, Story


def build_story_from_images(files: Sequence[Path]) -> Story:
    """A story without words, one panel a picture.

    Raises UserError unless there are two pictures or more, all readable and of one size.
    """
    if len(files) < 2:
        raise UserError(f"a video needs 2 pictures or more, not {len(files)}: give frames='[a.png,b.png]'")
    sizes = [read_image(file).size for file in files]
    for file, (width, height) in zip(files, sizes, strict=True):
        if (width, height) != sizes[0]:
            raise UserError(
                f"{file} is {width} × {height} pixels, but {files[0]} is {sizes[0][0]} × {sizes[0][1]}: "
                "give pictures of one size"
            )
    return Story(", ".join(file.stem for file in files), (), tuple(Panel("", "", ()) for _ in files))


def read_image(file: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The RGB picture in a file, upright; scaled and cropped at the centre to `size`, (width, height).

    Raises UserError.
    """
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # how PIL names damaged ones
        reason = (getattr(error, "strerror", None) or "it is no picture, or damaged").lower()
        raise UserError(f"cannot read the picture {file}: {reason}; give a PNG or JPEG file") from error
    if size is None or picture.size == size:
        return picture
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
