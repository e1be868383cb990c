"""The comic page: a title and inked panels with their captions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from storydiffusion.output.enlarge import resize
from storydiffusion.output.lettering import Lettering, balance_lines, break_lines, printable

PAPER, STRIP, INK, SHADOW = "#fbf4e4", "#fffdf6", "#2b2230", "#e6d6b4"

PAGE_WIDTHS = {1: 840, 2: 1200, 3: 1560, 4: 2000}
"""Page width in pixels by number of columns; larger images widen the page, up to LARGEST_PANEL per panel."""
LARGEST_PANEL = 768
MOST_ELONGATED = 4
"""Upper bound of a panel's aspect ratio, either way; paper fills the rest."""


@dataclass(frozen=True)
class PageLayout:
    """Dimensions of a page in pixels, all proportional to its width."""

    width: int
    columns: int

    @classmethod
    def fit(cls, panels: int, image_width: int) -> "PageLayout":
        """Choose columns and width for a number of panels of the given image width."""
        columns = page_columns(panels)
        width = PAGE_WIDTHS[columns]
        panel = cls(width, columns).panel_width(columns)
        return cls(width * max(panel, min(image_width, LARGEST_PANEL)) // panel, columns)

    @property
    def unit(self) -> int:
        """Return the width of an ink line; all other dimensions are multiples of it."""
        return max(2, round(self.width / self.columns / 140))

    @property
    def margin(self) -> int:
        return 11 * self.unit

    @property
    def gutter(self) -> int:
        return 7 * self.unit

    @property
    def type_size(self) -> int:
        return 8 * self.unit

    def panel_width(self, in_row: int) -> int:
        return (self.width - 2 * self.margin - (in_row - 1) * self.gutter) // in_row


def page_columns(panels: int) -> int:
    """Return the number of columns that keeps a comic book's format and readable type."""
    return panels if panels <= 3 else 2 if panels == 4 else 3 if panels <= 12 else 4


def page_rows(panels: int) -> list[int]:
    """Distribute panels over rows as evenly as possible, shorter rows (larger panels) first."""
    rows = math.ceil(panels / page_columns(panels))
    few, extra = divmod(panels, rows)
    return [few] * (rows - extra) + [few + 1] * extra


def comic_page(
    images: Sequence[Image.Image], captions: Sequence[str], title: str = "", fonts: Sequence[str] = ()
) -> Image.Image:
    """Draw images (any size; all get the first one's aspect ratio) and captions ('' for none) as one RGB page.

    Rows fill the width, so panels of a shorter row are larger. Small images are enlarged and stay crisp.
    Text is never cut: long captions are set smaller, then on more lines. `fonts` are files that come before the bundled
    fonts.

    Raises:
        ValueError: no image, or numbers of images and captions that differ.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a page needs one caption per image, not {len(images)} images and {len(captions)} captions")
    layout = PageLayout.fit(len(images), images[0].width)
    aspect = min(max(images[0].height / images[0].width, 1 / MOST_ELONGATED), MOST_ELONGATED)
    panels = list(zip(images, captions, strict=True))
    parts = [_title(title, layout, fonts)] if printable(title) else []
    for in_row in page_rows(len(panels)):
        row, panels = panels[:in_row], panels[in_row:]
        parts.append(_row(row, aspect, layout, fonts))
    height = sum(part.height for part in parts) + (len(parts) - 1) * layout.gutter + 2 * layout.margin
    page = Image.new("RGB", (layout.width, height), PAPER)
    y = layout.margin
    for part in parts:
        page.paste(part, (layout.margin, y))
        y += part.height + layout.gutter
    return page


def _title(title: str, layout: PageLayout, fonts: Sequence[str]) -> Image.Image:
    """Draw the title, centred over a rule."""
    width = layout.panel_width(1)
    lettering = Lettering(round(layout.type_size * 1.8), fonts)
    lines = balance_lines(printable(title), lettering.width, width)
    rule = lettering.line_height // 2
    image = Image.new("RGB", (width, len(lines) * lettering.line_height + rule), PAPER)
    _centre(image, lines, lettering, (0, 0, width, image.height - rule))
    half = round(max(map(lettering.width, lines)) / 2) + 2 * layout.unit
    ImageDraw.Draw(image).rectangle(
        (width // 2 - half, image.height - rule, width // 2 + half, image.height - rule + layout.unit - 1), fill=INK
    )
    return image


def _row(row: list[tuple[Image.Image, str]], aspect: float, layout: PageLayout, fonts: Sequence[str]) -> Image.Image:
    """Draw panels side by side, with caption strips of equal height."""
    width = layout.panel_width(len(row))
    height = round(width * aspect)
    texts = [_fit(printable(caption), layout, width, fonts) for _, caption in row]
    strips = [len(lines) * lettering.line_height + layout.type_size for lines, lettering in texts if lines]
    strip = max(strips, default=0)
    shadow = 2 * layout.unit
    image = Image.new("RGB", (layout.panel_width(1) + shadow, height + strip + shadow), PAPER)
    for column, ((panel, _), (lines, lettering)) in enumerate(zip(row, texts, strict=True)):
        x = column * (width + layout.gutter)
        if lines:
            _frame(image, (x, 0, x + width, height + strip), layout.unit)
            _centre(image, lines, lettering, (x, height, x + width, height + strip - layout.unit))
        _frame(image, (x, 0, x + width, height), layout.unit, shadow=not lines)
        image.paste(_inside(panel, width - 2 * layout.unit, height - 2 * layout.unit), (x + layout.unit, layout.unit))
    return image


def _inside(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to fit and centre it on paper."""
    image = image.convert("RGB")
    scale = min(width / image.width, height / image.height)
    size = (min(width, math.ceil(scale * image.width)), min(height, math.ceil(scale * image.height)))
    inside = Image.new("RGB", (width, height), STRIP)
    inside.paste(resize(image, size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return inside


def _frame(image: Image.Image, box: tuple[int, int, int, int], unit: int, shadow: bool = True) -> None:
    """Draw a box with an inked edge and a flat shadow; right and bottom of `box` are exclusive."""
    left, top, right, bottom = box
    canvas = ImageDraw.Draw(image)
    if shadow:
        canvas.rectangle((left + 2 * unit, top + 2 * unit, right + 2 * unit - 1, bottom + 2 * unit - 1), fill=SHADOW)
    canvas.rectangle((left, top, right - 1, bottom - 1), fill=INK)
    canvas.rectangle((left + unit, top + unit, right - unit - 1, bottom - unit - 1), fill=STRIP)


def _fit(caption: str, layout: PageLayout, width: int, fonts: Sequence[str]) -> tuple[list[str], Lettering]:
    """Break a caption into up to four lines; then shrink the type down to 70 %, then use more lines."""
    room = width - 2 * layout.unit - layout.type_size
    lettering = Lettering(layout.type_size, fonts)
    while len(break_lines(caption, lettering.width, room)) > 4 and lettering.size > 0.7 * layout.type_size:
        lettering = Lettering(lettering.size - 1, fonts)
    return balance_lines(caption, lettering.width, room), lettering


def _centre(image: Image.Image, lines: list[str], lettering: Lettering, box: tuple[int, int, int, int]) -> None:
    """Draw lines centred in a box."""
    left, top, right, bottom = box
    canvas = ImageDraw.Draw(image)
    first = (top + bottom - len(lines) * lettering.line_height) / 2
    for number, line in enumerate(lines):
        baseline = first + number * lettering.line_height + lettering.size * 0.95
        lettering.draw(canvas, line, (left + right - lettering.width(line)) / 2, baseline, INK)
