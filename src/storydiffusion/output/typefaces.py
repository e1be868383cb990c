"""The shipped fonts: which characters each has, and small copies of them to embed in a page."""

from functools import cache
from importlib.resources import files
from io import BytesIO

FONTS = {"Comic Neue": "ComicNeue-Bold.otf", "Story Kai": "StoryKai-Bold.otf"}
"""File by family, in order of preference: each character is set in the first font that has it."""


@cache
def font_bytes(family: str) -> bytes:
    """The font file (OpenType)."""
    return (files("storydiffusion.output") / "fonts" / FONTS[family]).read_bytes()


@cache
def coverage(family: str) -> frozenset[int]:
    """The code points that the font has a glyph for."""
    from fontTools.ttLib import TTFont

    with TTFont(BytesIO(font_bytes(family)), lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


def subset(family: str, text: str) -> bytes:
    """The font with the characters of `text` only (OpenType), a few kilobytes for a story's captions."""
    from fontTools.subset import Subsetter
    from fontTools.ttLib import TTFont

    with TTFont(BytesIO(font_bytes(family)), lazy=True) as font:
        subsetter = Subsetter()
        subsetter.populate(text=text)
        subsetter.subset(font)
        small = BytesIO()
        font.save(small)
    return small.getvalue()
