"""A sheet of many small images, each with its caption below, to look at one by one."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from storydiffusion.output.enlarge import resize
from storydiffusion.output.lettering import Lettering, break_lines, printable

COLUMNS, SCALE, GAP, TYPE_SIZE = 8, 2, 12, 14  # the last two in pixels


def draw_sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Arrange images of one size in rows of eight, enlarged twice; a row is as high as its longest caption needs.

    Raises:
        ValueError: no image, or numbers of images and captions that differ.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a sheet needs one caption per image, not {len(images)} images and {len(captions)} captions")
    width, height = images[0].width * SCALE, images[0].height * SCALE
    lettering = Lettering(TYPE_SIZE)
    texts = [break_lines(printable(caption), lettering.width, width) for caption in captions]
    rows = [range(first, min(first + COLUMNS, len(images))) for first in range(0, len(images), COLUMNS)]
    heights = [height + GAP + max(len(texts[i]) for i in row) * lettering.line_height + GAP for row in rows]
    page = Image.new("RGB", (GAP + min(COLUMNS, len(images)) * (width + GAP), GAP + sum(heights)), "white")
    canvas = ImageDraw.Draw(page)
    top = GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (width + GAP)
            page.paste(resize(images[i].convert("RGB"), (width, height)), (left, top))
            for line, text in enumerate(texts[i], start=1):
                lettering.draw(canvas, text, left, top + height + line * lettering.line_height, "black")
        top += row_height
    return page
