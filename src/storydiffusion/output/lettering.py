"""Line breaking, by the rules of comics and East Asian typography, and drawing in the bundled fonts."""

import unicodedata
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import groupby

from PIL import ImageDraw, ImageFont

from storydiffusion.output.typefaces import FONTS, coverage, font_bytes

NOT_AT_START = frozenset(
    "!%),.:;?]}¢°’”‰′″℃、。々〉》」』】〕〗〙〛〜ぁぃぅぇぉっゃゅょゎゕゖ゛゜ゝゞァィゥェォッャュョヮヵヶ・ーヽヾ！％），．：；？］｝～…‥—·"
)
"""Kinsoku: must not begin a line (JIS X 4051: closing marks, small kana, sound and iteration marks)."""

NOT_AT_END = frozenset("([{‘“〈《「『【〔〖〘〚（［｛＄￥£¥$")
"""Kinsoku: must not end a line (opening marks, currency signs)."""


class Lettering:
    """The bundled fonts at one size (pixels per em): measures and draws text."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._fonts = {family: ImageFont.truetype(BytesIO(font_bytes(family)), size) for family in FONTS}

    @property
    def line_height(self) -> int:
        return round(self.size * 1.25)

    def width(self, line: str) -> float:
        """Return the width of a line in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(line))

    def draw(self, canvas: ImageDraw.ImageDraw, line: str, x: float, baseline: float, ink: str) -> None:
        """Draw a line starting at `x`; a character missing from all fonts becomes the first font's empty box."""
        for font, run in self._runs(line):
            canvas.text((x, baseline), run, font=font, fill=ink, anchor="ls")
            x += font.getlength(run)

    def _runs(self, line: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Split a line into runs of one font each; combining marks stay with their letter."""
        chosen: list[str] = []
        eastern = any(map(_ideographic, line))
        for char in line:
            joins = chosen and (unicodedata.combining(char) or char == " ")
            # quotes “” and dots … are wide in Chinese and Japanese, so such a line takes them from the East Asian font
            order = reversed(FONTS) if eastern and unicodedata.east_asian_width(char) == "A" else FONTS
            chosen.append(chosen[-1] if joins else _find_family(char, order))
        return [
            (self._fonts[family], "".join(char for _, char in run))
            for family, run in groupby(zip(chosen, line, strict=True), key=lambda pair: pair[0])
        ]


def _find_family(char: str, order: Iterable[str]) -> str:
    """Return the first family in `order` with the character, or the preferred one, which draws a box."""
    return next((family for family in order if ord(char) in coverage(family)), next(iter(FONTS)))


def printable(text: str) -> str:
    """Normalize text for drawing: compose characters, keep line breaks, drop control and invisible characters."""
    lines = unicodedata.normalize("NFC", text).splitlines()
    visible = ("".join(c for c in " ".join(line.split()) if not _invisible(c)) for line in lines)
    return "\n".join(line for line in visible if line)


def _invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs") or "\ufe00" <= char <= "\ufe0f"


def break_lines(text: str, width: Callable[[str], float], limit: float) -> list[str]:
    """Break `text` into lines of at most `limit`, measured by `width`.

    Breaks fall at spaces and between Chinese or Japanese characters, observing kinsoku; a word longer than a line is
    broken anywhere, and a character wider than `limit` gets its own line. Line breaks in the text are kept.
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in (part for unit in _units(paragraph) for part in _fitting(unit, width, limit)):
            if line and width((line + piece).rstrip()) > limit:
                lines.append(line.rstrip())
                line = ""
            line += piece
        lines.append(line.rstrip())
    return [line for line in lines if line]


def balance_lines(text: str, width: Callable[[str], float], limit: float) -> list[str]:
    """Break `text` into as many lines as `break_lines`, of about equal length, for centred lettering."""
    lines = break_lines(text, width, limit)
    low, high = limit / 2, limit
    while high - low > 1:
        middle = (low + high) / 2
        tried = break_lines(text, width, middle)
        if len(tried) > len(lines) or any(width(line) > middle for line in tried):
            low = middle
        else:
            high, lines = middle, tried
    return lines


def _units(paragraph: str) -> list[str]:
    """Split into unbreakable units: words with their trailing space, ideographs and kana, with their punctuation."""
    units: list[str] = []
    for char in paragraph:
        before = units[-1][-1] if units else " "
        glued = before != " " and (char in NOT_AT_START or before in NOT_AT_END)
        word = before != " " and not _ideographic(char) and not _ideographic(before)
        if units and (char == " " or glued or word):
            units[-1] += char
        else:
            units.append(char)
    return units


def _ideographic(char: str) -> bool:
    """Return whether lines may break around a character: wide ones, except Hangul, which breaks at spaces."""
    return unicodedata.east_asian_width(char) in "WF" and not unicodedata.name(char, "").startswith("HANGUL")


def _fitting(unit: str, width: Callable[[str], float], limit: float) -> list[str]:
    """Return the unit if it fits on a line, else pieces that do."""
    pieces = [""]
    for char in unit:
        if pieces[-1] and width((pieces[-1] + char).rstrip()) > limit and not unicodedata.combining(char):
            pieces.append("")
        pieces[-1] += char
    return pieces
