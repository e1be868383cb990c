"""Fonts, bundled or the user's: their character coverage and subsets to embed in a page.

A font is named by its family, if it is bundled, or by its file.
"""

import struct
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.errors import UserError, first_line

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

FONTS = {"Comic Neue": "ComicNeue-Bold.otf", "Story Kai": "StoryKai-Bold.otf"}
"""Family → file, in order of preference: each character uses the first font that has it."""


@cache
def font_bytes(font: str) -> bytes:
    """Return the font file (OpenType)."""
    if font in FONTS:
        return (files("storydiffusion.output") / "fonts" / FONTS[font]).read_bytes()
    return Path(font).read_bytes()


@cache
def coverage(font: str) -> frozenset[int]:
    """Return the code points for which the font has a glyph."""
    with _open(font) as opened:
        return frozenset(opened.getBestCmap() or ())


def subset(font: str, text: str) -> bytes:
    """Return the font (OpenType) reduced to the characters of `text`; a few kilobytes for a story's captions."""
    from fontTools.subset import Subsetter

    with _open(font) as opened:
        subsetter = Subsetter()
        subsetter.populate(text=text)
        subsetter.subset(opened)
        small = BytesIO()
        opened.save(small)
    return small.getvalue()


def check_fonts(paths: Iterable[str]) -> None:
    """Raise UserError for a file that is not a scalable TrueType or OpenType font."""
    from fontTools.ttLib import TTLibError
    from PIL import ImageFont

    for path in paths:
        try:
            ImageFont.truetype(BytesIO(font_bytes(path)), 32).getlength("a")
            covered = coverage(path)
        except (OSError, TTLibError, struct.error, AssertionError, LookupError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"cannot read the font {path}: {reason.lower()}; give a .ttf or .otf file") from None
        if not covered:
            raise UserError(f"the font {path} maps no characters: give a .ttf or .otf file of a text font")


def _open(font: str) -> "TTFont":
    from fontTools.ttLib import TTFont

    # a subset keeps the font's own time of change, so that a report made again has the same bytes
    return TTFont(BytesIO(font_bytes(font)), lazy=True, fontNumber=0, recalcTimestamp=False)
