"""Frames of a story's video: each panel is held, then the transition leads to the next.

Only the previous panel is kept, so memory does not grow with the story.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from storydiffusion.output.enlarge import resize
from storydiffusion.output.lettering import Lettering, balance_lines, printable
from storydiffusion.output.page import INK, STRIP

READABLE_WIDTH = 512  # pixels, minimum width for readable captions
CHARACTERS_PER_LINE = 34  # approximately, as in subtitles


def story_frames(
    panels: Iterable[np.ndarray],
    transition: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    cuts: Sequence[bool],
    hold: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each frame with its panel's number, from 0; a transition is split in half between its two panels.

    Args:
        panels: uint8 (H, W, 3).
        transition: (n, start, end) → frames (F, H, W, 3) from panel n to n + 1. Its boundary frames are the panels,
            which are in the video already, so only the frames between are yielded.
        cuts: per panel, whether the video cuts to it; the first entry is ignored.
        hold: number of frames to hold each panel, at least 1.
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


def with_captions(
    frames: Iterable[tuple[int, np.ndarray]], captions: Sequence[str], fonts: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """Add each panel's caption in a band of constant height below its frames, covering no pixel.

    Small frames are enlarged for readable captions. Without captions, frames are unchanged.
    `fonts` are files that come before the bundled fonts.
    """
    bands = None
    for number, frame in frames:
        if not any(map(printable, captions)):
            yield frame
            continue
        factor = -(-READABLE_WIDTH // frame.shape[1])
        height, width = factor * frame.shape[0], factor * frame.shape[1]
        bands = bands or CaptionBands(captions, width, fonts)
        image = Image.fromarray(frame)
        enlarged = resize(image, (width, height)) if factor > 1 else image
        yield np.concatenate([np.asarray(enlarged), bands[number]])


class CaptionBands:
    """Caption bands, `width` pixels wide and as high as the longest caption needs."""

    def __init__(self, captions: Sequence[str], width: int, fonts: Sequence[str] = ()) -> None:
        self.width = width
        self.lettering = Lettering(round(2 * width / CHARACTERS_PER_LINE), fonts)
        room = width - 2 * self.lettering.size
        self.lines = [balance_lines(printable(text), self.lettering.width, room) for text in captions]
        height = max(map(len, self.lines)) * self.lettering.line_height + self.lettering.size
        self.height = height + height % 2  # H.264 needs even sides

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the band of a panel, uint8 (height, width, 3)."""
        lettering, lines = self.lettering, self.lines[number]
        band = Image.new("RGB", (self.width, self.height), STRIP)
        canvas = ImageDraw.Draw(band)
        top = (self.height - len(lines) * lettering.line_height) / 2
        for row, line in enumerate(lines):
            baseline = top + row * lettering.line_height + lettering.size * 0.95
            lettering.draw(canvas, line, (self.width - lettering.width(line)) / 2, baseline, INK)
        return np.asarray(band)
