"""Line breaking, by the rules of comics and East Asian typography, and drawing in more than one font."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby

from PIL import ImageDraw, ImageFont, features

from storydiffusion.output.bidirectional import compute_levels, is_right_to_left, order_runs
from storydiffusion.output.typefaces import FONTS, coverage, font_bytes

NOT_AT_START = frozenset(
    "!%),.:;?]}¢°’”‰′″℃、。々〉》」』】〕〗〙〛〜ぁぃぅぇぉっゃゅょゎゕゖ゛゜ゝゞァィゥェォッャュョヮヵヶ・ーヽヾ！％），．：；？］｝～…‥—·"
)
"""Kinsoku: must not begin a line (JIS X 4051: closing marks, small kana, sound and iteration marks)."""

NOT_AT_END = frozenset("([{‘“〈《「『【〔〖〘〚（［｛＄￥£¥$")
"""Kinsoku: must not end a line (opening marks, currency signs)."""


JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner, which shape the letters of Arabic and Indic scripts."""


class Lettering:
    """Fonts at one size (pixels per em): measures and draws text.

    `fonts` are files that come before the bundled fonts.
    """

    def __init__(self, size: int, fonts: Sequence[str] = ()) -> None:
        self.size = size
        self.user_fonts = tuple(fonts)
        self._fonts = {font: ImageFont.truetype(BytesIO(font_bytes(font)), size) for font in (*fonts, *FONTS)}

    @property
    def line_height(self) -> int:
        return round(self.size * 1.25)

    def width(self, line: str) -> float:
        """Return the width of a line in pixels."""
        return sum(self._length(*run) for run in self.runs(line))

    def draw(self, canvas: ImageDraw.ImageDraw, line: str, x: float, baseline: float, ink: str) -> None:
        """Draw a line starting at `x`; a character missing from all fonts becomes the first font's empty box."""
        for name, run, direction in self.runs(line):
            canvas.text((x, baseline), run, font=self._fonts[name], fill=ink, anchor="ls", direction=direction)
            x += self._length(name, run, direction)

    def place_runs(self, line: str, x: float) -> Iterator[tuple[str, str, float]]:
        """Yield the font, the text without outer spaces and the left edge of each run of a line that starts at `x`."""
        for name, run, direction in self.runs(line):
            bare = run.rstrip() if direction == "rtl" else run.lstrip()
            yield name, run.strip(), x + self._length(name, run, direction) - self._length(name, bare, direction)
            x += self._length(name, run, direction)

    def runs(self, line: str) -> list[tuple[str, str, str | None]]:
        """Split a line into runs of one font and direction, from left to right: font, text, direction."""
        chosen = self._choose_fonts(line)
        if not is_right_to_left(line) or not features.check("raqm"):
            return [(font, run, None) for (font,), run in _group(line, chosen)]
        runs = list(_group(line, chosen, compute_levels(line)))
        order = order_runs([level for (_, level), _ in runs])
        return [(font, run, "rtl" if level % 2 else "ltr") for (font, level), run in (runs[i] for i in order)]

    def _length(self, name: str, run: str, direction: str | None) -> float:
        return self._fonts[name].getlength(run, direction=direction)

    def _choose_fonts(self, line: str) -> list[str]:
        """Return the font of each character; marks stay with their letter, spaces with what precedes them."""
        chosen: list[str] = []
        eastern = any(map(_ideographic, line))
        for cluster in _clusters(line):
            # quotes “” and dots … are wide in Chinese and Japanese, so such a line takes them from the East Asian font
            wide = eastern and unicodedata.east_asian_width(cluster[0]) == "A"
            order = (*self.user_fonts, *(reversed(FONTS) if wide else FONTS))
            font = chosen[-1] if cluster == " " and chosen else _find_font(cluster, order)
            chosen += [font] * len(cluster)
        return chosen


def _group(line: str, *keys: Sequence) -> Iterator[tuple[tuple, str]]:
    """Split a line into runs of characters with equal keys."""
    for key, run in groupby(zip(line, *keys, strict=True), key=lambda each: each[1:]):
        yield key, "".join(each[0] for each in run)


def _clusters(line: str) -> list[str]:
    """Split a line into letters with their marks and joiners."""
    clusters: list[str] = []
    for char in line:
        if clusters and _joins(char):
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


def _joins(char: str) -> bool:
    """Return whether a character belongs to the letter before it: marks, and the joiners."""
    return unicodedata.category(char).startswith("M") or char in JOINERS


def _find_font(cluster: str, order: Iterable[str]) -> str:
    """Return the first font in `order` with all characters, else with the letter, else the one that draws a box."""
    order = tuple(order)
    for needed in (cluster.translate(dict.fromkeys(map(ord, JOINERS))), cluster[0]):
        for font in order:
            if coverage(font).issuperset(map(ord, needed)):
                return font
    return next(iter(FONTS))


def find_missing(text: str, fonts: Sequence[str] = ()) -> str:
    """Return the distinct characters of a text that neither `fonts` (files) nor the bundled fonts can set, in order.

    Letters that run from right to left also need Pillow's Raqm layout.
    """
    covered = frozenset[int]().union(*map(coverage, (*fonts, *FONTS)))
    shaped = features.check("raqm")
    characters = dict.fromkeys(char for char in printable(text) if not char.isspace() and char not in JOINERS)
    return "".join(char for char in characters if ord(char) not in covered or (is_right_to_left(char) and not shaped))


def find_missing_by_place(
    title: str, captions: Sequence[str], fonts: Sequence[str] = (), says: Sequence[str] = ()
) -> dict[str, str]:
    """Return the characters of a page that no font can set, place (`title`, `caption 1`, `says 1`, …) → characters."""
    texts = {"title": title}
    for name, each in (("caption", captions), ("says", says)):
        texts |= {f"{name} {number}": text for number, text in enumerate(each, start=1)}
    missing = {place: find_missing(text, fonts) for place, text in texts.items()}
    return {place: characters for place, characters in missing.items() if characters}


def describe_missing(missing: Mapping[str, str]) -> str:
    """Return one line of what `find_missing_by_place` found."""
    return "; ".join(f"{place}: {' '.join(characters)}" for place, characters in missing.items())


def printable(text: str) -> str:
    """Normalize text for drawing: compose characters, keep line breaks, drop control and invisible characters.

    Joiners are kept between the letters of scripts that need them.
    """
    lines = unicodedata.normalize("NFC", text).splitlines()
    visible = (_drop_invisible(" ".join(line.split())) for line in lines)
    return "\n".join(line for line in visible if line)


def _drop_invisible(line: str) -> str:
    return "".join(
        char
        for before, char in zip(" " + line, line, strict=False)
        if not _invisible(char) or (char in JOINERS and "\u0600" <= before < "\u1100" and before.isprintable())
    )


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
    """Break `text` into as many lines as `break_lines`, of about equal length, for centered lettering."""
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
        if pieces[-1] and width((pieces[-1] + char).rstrip()) > limit and not _joins(char):
            pieces.append("")
        pieces[-1] += char
    return pieces
