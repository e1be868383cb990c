"""How panels are set on a page: `page.*` of a configuration, and the layouts to choose from.

A layout is one entry of LAYOUTS; docs/extending.md adds one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from storydiffusion.errors import UserError

WIDEST_PAGE, SMALLEST_PANEL = 8192, 64  # pixels


def page_columns(panels: int) -> int:
    """Return the number of columns that keeps a comic book's format and readable type."""
    return panels if panels <= 3 else 2 if panels == 4 else 3 if panels <= 12 else 4


def spread(panels: int, columns: int) -> list[int]:
    """Distribute panels over rows as evenly as possible, shorter rows (larger panels) first."""
    rows = math.ceil(panels / columns)
    few, extra = divmod(panels, rows)
    return [few] * (rows - extra) + [few + 1] * extra


def page_rows(panels: int) -> list[int]:
    """Set up to three panels in one row, more in a grid."""
    return spread(panels, page_columns(panels))


def grid_rows(panels: int) -> list[int]:
    """Set two panels or more in rows below each other, from three on at least two in a row."""
    return spread(panels, math.ceil(panels / 2) if panels <= 3 else page_columns(panels))


@dataclass(frozen=True)
class Layout:
    """An arrangement of panels.

    `rows` maps the number of panels to the numbers in each row; rows fill the width. `gutter` is the default space
    between panels, in widths of an ink line.
    """

    rows: Callable[[int], list[int]]
    gutter: int = 7


LAYOUTS: dict[str, Layout] = {
    "auto": Layout(page_rows),
    "grid": Layout(grid_rows),
    "strip": Layout(lambda panels: [panels]),
    "webtoon": Layout(lambda panels: [1] * panels, gutter=20),
}
"""Name → layout. `auto`: one row of up to three panels, else a grid; `strip`: one row; `webtoon`: one column."""


@dataclass
class PageSettings:
    """Layout and dimensions of a page in pixels; None derives one from the number of panels and their size.

    Raises:
        UserError: an unknown layout, or a dimension out of range; the message names the key.
    """

    layout: str
    width: int | None
    gutter: int | None
    margin: int | None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(f"page.layout={self.layout} is not one of {', '.join(LAYOUTS)}")
        for name, least in (("width", SMALLEST_PANEL), ("gutter", 0), ("margin", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= WIDEST_PAGE:
                raise UserError(f"page.{name}={value} is outside {least}…{WIDEST_PAGE} pixels")

    @property
    def changed(self) -> dict[str, str | int]:
        """The settings that differ from the defaults."""
        return {name: value for name, value in vars(self).items() if value != getattr(DEFAULT_PAGE, name)}


DEFAULT_PAGE = PageSettings("auto", None, None, None)
