"""The frames of a story's video, one by one: every panel stands for a while, then the transition leads to the next.

Nothing is kept but the panel before, so memory does not grow with the story.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from storydiffusion.output.enlarge import resize
from storydiffusion.output.lettering import Lettering, balance_lines, printable
from storydiffusion.output.page import INK, STRIP

WIDTH_TO_READ = 512  # pixels, at least: captions need them
CHARACTERS_A_LINE = 34  # about so many, as in subtitles


def story_frames(
    panels: Iterable[np.ndarray],
    transition: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    cuts: Sequence[bool],
    hold: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each frame with the number of the panel that it belongs to, from 0; transitions half to either side.

    Args:
        panels: uint8 (H, W, 3).
        transition: of (n, start, end) makes the frames (F, H, W, 3) from panel n to n + 1. Its ends are the panels
            themselves, which stand in the video already: only the frames between are shown.
        cuts: for each panel whether the video cuts to it; the first one's does not matter.
        hold: frames that each panel stands, 1 or more.
    """
    before = None
    for number, panel in enumerate(panels):
        if before is not None and not cuts[number]:
            between = transition(number - 1, before, panel)[1:-1]
            for place, frame in enumerate(between):
                yield (number - 1 if 2 * place < len(between) else number), frame
        for _ in range(hold):
            yield number, panel
        before = panel


def with_captions(frames: Iterable[tuple[int, np.ndarray]], captions: Sequence[str]) -> Iterator[np.ndarray]:
    """Sets each panel's caption under its frames, in a band that is equally high throughout: no pixel is covered.

    Small frames are enlarged, so that the captions can be read. Without any caption the frames stay as they are.
    """
    bands = None
    for number, frame in frames:
        if not any(map(printable, captions)):
            yield frame
            continue
        factor = -(-WIDTH_TO_READ // frame.shape[1])
        height, width = factor * frame.shape[0], factor * frame.shape[1]
        bands = bands or CaptionBands(captions, width)
        picture = Image.fromarray(frame)
        enlarged = resize(picture, (width, height)) if factor > 1 else picture
        yield np.concatenate([np.asarray(enlarged), bands[number]])


class CaptionBands:
    """Captions on paper, `width` pixels wide and all of one height: that of the longest."""

    def __init__(self, captions: Sequence[str], width: int) -> None:
        self.width = width
        self.lettering = Lettering(round(2 * width / CHARACTERS_A_LINE))
        room = width - 2 * self.lettering.size
        self.lines = [balance_lines(printable(text), self.lettering.width, room) for text in captions]
        height = max(map(len, self.lines)) * self.lettering.line_height + self.lettering.size
        self.height = height + height % 2  # H.264 wants even sides

    def __getitem__(self, number: int) -> np.ndarray:
        """uint8 (height, width, 3)."""
        lettering, lines = self.lettering, self.lines[number]
        band = Image.new("RGB", (self.width, self.height), STRIP)
        canvas = ImageDraw.Draw(band)
        top = (self.height - len(lines) * lettering.line_height) / 2
        for row, line in enumerate(lines):
            baseline = top + row * lettering.line_height + lettering.size * 0.95
            lettering.draw(canvas, line, (self.width - lettering.width(line)) / 2, baseline, INK)
        return np.asarray(band)
