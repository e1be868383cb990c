"""The comic page: a title and inked panels with their captions and speech balloons."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.output.balloons import draw_balloon
from storydiffusion.output.drawing import Box, Drawing, Element, Inset, Line, rasterize
from storydiffusion.output.enlarge import resize
from storydiffusion.output.lettering import Lettering, balance_lines, break_lines, printable
from storydiffusion.output.page_settings import DEFAULT_PAGE, LAYOUTS, SMALLEST_PANEL, PageSettings

PAPER, STRIP, INK, SHADOW = "#fbf4e4", "#fffdf6", "#2b2230", "#e6d6b4"

PAGE_WIDTHS = {1: 840, 2: 1200, 3: 1560, 4: 2000}
"""Page width in pixels by number of columns, 500 for each where there are more; larger images widen the page, up to
LARGEST_PANEL per panel."""
LARGEST_PANEL = 768
MOST_ELONGATED = 4
"""Upper bound of a panel's aspect ratio, either way; paper fills the rest."""


@dataclass(frozen=True)
class PagePanel:
    """An image of any size, its caption and what is said in it; '' for none."""

    image: Image.Image
    caption: str
    says: str = ""


@dataclass(frozen=True)
class PageLayout:
    """Dimensions of a page in pixels; those that the settings leave open are proportional to its width."""

    width: int
    columns: int
    gutters: int  # in units
    settings: PageSettings

    @classmethod
    def fit(cls, columns: int, image_width: int, settings: PageSettings) -> "PageLayout":
        """Choose the width for a number of columns and images of the given width. Raises UserError if it is narrow."""
        gutters = LAYOUTS[settings.layout].gutter
        width = settings.width or PAGE_WIDTHS.get(columns, 500 * columns)
        layout = cls(width, columns, gutters, settings)
        panel = layout.panel_width(columns)
        if panel < SMALLEST_PANEL:
            raise UserError(
                f"a page of {width} pixels leaves {max(panel, 0)} for each of {columns} panels in a row, fewer than "
                f"{SMALLEST_PANEL}: set page.width higher, page.gutter and page.margin lower, or another page.layout"
            )
        if settings.width is None:
            width = width * max(panel, min(image_width, LARGEST_PANEL)) // panel
        return cls(width, columns, gutters, settings)

    @property
    def unit(self) -> int:
        """Return the width of an ink line; all other dimensions are multiples of it."""
        return max(2, round(self.width / self.columns / 140))

    @property
    def margin(self) -> int:
        return 11 * self.unit if self.settings.margin is None else self.settings.margin

    @property
    def gutter(self) -> int:
        return self.gutters * self.unit if self.settings.gutter is None else self.settings.gutter

    @property
    def type_size(self) -> int:
        return 8 * self.unit

    def panel_width(self, in_row: int) -> int:
        return (self.width - 2 * self.margin - (in_row - 1) * self.gutter) // in_row


@dataclass(frozen=True)
class Part:
    """The title or a row of panels; its elements are placed from its own top left corner."""

    height: int
    elements: list[Element]


def comic_page(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    title: str = "",
    fonts: Sequence[str] = (),
    says: Sequence[str] = (),
    settings: PageSettings | None = None,
) -> Image.Image:
    """Draw images (any size; all get the first one's aspect ratio) and captions ('' for none) as one RGB page.

    Rows fill the width, so panels of a shorter row are larger. Small images are enlarged and stay crisp.
    Text is never cut: long captions are set smaller, then on more lines.

    Args:
        fonts: files that come before the bundled fonts.
        says: text of each image's speech balloon, '' for none; () for none at all.

    Raises:
        ValueError: no image, or numbers of images and captions that differ.
        UserError: settings that leave no room for the panels.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a page needs one caption per image, not {len(images)} images and {len(captions)} captions")
    said = says or [""] * len(images)
    panels = [PagePanel(*each) for each in zip(images, captions, said, strict=True)]
    return rasterize(compose_page(panels, title, fonts, settings or DEFAULT_PAGE))


def compose_page(panels: Sequence[PagePanel], title: str, fonts: Sequence[str], settings: PageSettings) -> Drawing:
    """Set all panels on one page, as high as it needs to be."""
    layout, parts = set_parts(panels, title, fonts, settings)
    return stack(parts, layout)


def compose_pages(
    panels: Sequence[PagePanel], title: str, fonts: Sequence[str], settings: PageSettings, shape: float
) -> list[Drawing]:
    """Set panels on as many pages as they need, all of one size.

    A row too high for a page has smaller images; one whose captions alone are too high has a higher page.

    Args:
        shape: height of a page divided by its width.
    """
    layout, parts = set_parts(panels, title, fonts, settings, shape)
    height = round(layout.width * shape)
    pages: list[list[Part]] = [[]]
    left = height - 2 * layout.margin
    for part in parts:
        if pages[-1] and part.height > left:
            pages.append([])
            left = height - 2 * layout.margin
        pages[-1].append(part)
        left -= part.height + layout.gutter
    return [stack(page, layout, height) for page in pages]


def set_parts(
    panels: Sequence[PagePanel], title: str, fonts: Sequence[str], settings: PageSettings, shape: float | None = None
) -> tuple[PageLayout, list[Part]]:
    """Set the title and the rows of panels, not placed yet; with `shape` no row is higher than a page.

    Raises:
        UserError: as `PageLayout.fit`.
    """
    rows = LAYOUTS[settings.layout].rows(len(panels))
    first = panels[0].image
    layout = PageLayout.fit(max(rows), first.width, settings)
    aspect = min(max(first.height / first.width, 1 / MOST_ELONGATED), MOST_ELONGATED)
    parts = [_title(title, layout, fonts)] if printable(title) else []
    room = None if shape is None else round(layout.width * shape) - 2 * layout.margin
    below_title = parts[0].height + layout.gutter if parts else 0
    left = list(panels)
    for in_row in rows:
        row, left = left[:in_row], left[in_row:]
        highest = room if room is None or len(parts) > 1 or not below_title else room - below_title
        parts.append(_row(row, aspect, layout, fonts, highest))
    return layout, parts


def stack(parts: Sequence[Part], layout: PageLayout, least_height: int = 0) -> Drawing:
    """Place parts below each other."""
    height = sum(part.height for part in parts) + (len(parts) - 1) * layout.gutter + 2 * layout.margin
    height = max(height, least_height)
    elements: list[Element] = [Box(0, 0, layout.width, height, PAPER)]
    y = layout.margin
    for part in parts:
        elements += [element.moved(layout.margin, y) for element in part.elements]
        y += part.height + layout.gutter
    return Drawing(layout.width, height, tuple(elements))


def _title(title: str, layout: PageLayout, fonts: Sequence[str]) -> Part:
    """Set the title, centered over a rule."""
    width = layout.panel_width(1)
    lettering = Lettering(round(layout.type_size * 1.8), fonts)
    lines = balance_lines(printable(title), lettering.width, width)
    rule = lettering.line_height // 2
    height = len(lines) * lettering.line_height + rule
    half = round(max(map(lettering.width, lines)) / 2) + 2 * layout.unit
    left, right, top = max(width // 2 - half, 0), min(width // 2 + half + 1, width), height - rule
    line = Box(left, top, right, top + layout.unit, INK)
    return Part(height, [*_centre(lines, lettering, (0, 0, width, top)), line])


def _row(
    row: Sequence[PagePanel], aspect: float, layout: PageLayout, fonts: Sequence[str], highest: int | None
) -> Part:
    """Set panels side by side, with caption strips of equal height; `highest` bounds the row."""
    width, unit = layout.panel_width(len(row)), layout.unit
    height = round(width * aspect)
    texts = [_fit(printable(panel.caption), layout, width, fonts) for panel in row]
    strips = [len(lines) * lettering.line_height + layout.type_size for lines, lettering in texts if lines]
    strip = max(strips, default=0)
    if highest is not None:
        height = min(height, max(highest - strip - 2 * unit, SMALLEST_PANEL))
    elements: list[Element] = []
    for column, (panel, (lines, lettering)) in enumerate(zip(row, texts, strict=True)):
        x = column * (width + layout.gutter)
        if lines:
            elements += _frame((x, 0, x + width, height + strip), unit)
            elements += _centre(lines, lettering, (x, height, x + width, height + strip - unit))
        elements += _frame((x, 0, x + width, height), unit, shadow=not lines)
        inside = _inside(panel.image, width - 2 * unit, height - 2 * unit)
        elements.append(Inset(inside, x + unit, unit))
        if printable(panel.says):
            place = (x + unit, unit, *inside.size)
            elements += draw_balloon(inside, panel.says, place, layout.type_size, unit, fonts, (STRIP, INK))
    return Part(height + strip + 2 * unit, elements)


def _inside(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to fit and center it on paper."""
    image = image.convert("RGB")
    scale = min(width / image.width, height / image.height)
    size = (min(width, math.ceil(scale * image.width)), min(height, math.ceil(scale * image.height)))
    inside = Image.new("RGB", (width, height), STRIP)
    inside.paste(resize(image, size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return inside


def _frame(box: tuple[int, int, int, int], unit: int, shadow: bool = True) -> Iterable[Box]:
    """Return a box with an inked edge and a flat shadow; right and bottom of `box` are exclusive."""
    left, top, right, bottom = box
    if shadow:
        yield Box(left + 2 * unit, top + 2 * unit, right + 2 * unit, bottom + 2 * unit, SHADOW)
    yield Box(left, top, right, bottom, INK)
    yield Box(left + unit, top + unit, right - unit, bottom - unit, STRIP)


def _fit(caption: str, layout: PageLayout, width: int, fonts: Sequence[str]) -> tuple[list[str], Lettering]:
    """Break a caption into up to four lines; then shrink the type down to 70 %, then use more lines."""
    room = width - 2 * layout.unit - layout.type_size
    lettering = Lettering(layout.type_size, fonts)
    while len(break_lines(caption, lettering.width, room)) > 4 and lettering.size > 0.7 * layout.type_size:
        lettering = Lettering(lettering.size - 1, fonts)
    return balance_lines(caption, lettering.width, room), lettering


def _centre(lines: list[str], lettering: Lettering, box: tuple[int, int, int, int]) -> Iterable[Line]:
    """Return lines centered in a box."""
    left, top, right, bottom = box
    first = (top + bottom - len(lines) * lettering.line_height) / 2
    for number, line in enumerate(lines):
        baseline = first + number * lettering.line_height + lettering.size * 0.95
        yield Line(line, lettering, (left + right - lettering.width(line)) / 2, baseline, INK)
