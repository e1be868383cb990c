"""The bundled fonts: their character coverage and subsets to embed in a page."""

from functools import cache
from importlib.resources import files
from io import BytesIO

FONTS = {"Comic Neue": "ComicNeue-Bold.otf", "Story Kai": "StoryKai-Bold.otf"}
"""Family → file, in order of preference: each character uses the first font that has it."""


@cache
def font_bytes(family: str) -> bytes:
    """Return the font file (OpenType)."""
    return (files("storydiffusion.output") / "fonts" / FONTS[family]).read_bytes()


@cache
def coverage(family: str) -> frozenset[int]:
    """Return the code points for which the font has a glyph."""
    from fontTools.ttLib import TTFont

    with TTFont(BytesIO(font_bytes(family)), lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


def subset(family: str, text: str) -> bytes:
    """Return the font (OpenType) reduced to the characters of `text`; a few kilobytes for a story's captions."""
    from fontTools.subset import Subsetter
    from fontTools.ttLib import TTFont

    with TTFont(BytesIO(font_bytes(family)), lazy=True) as font:
        subsetter = Subsetter()
        subsetter.populate(text=text)
        subsetter.subset(font)
        small = BytesIO()
        font.save(small)
    return small.getvalue()
