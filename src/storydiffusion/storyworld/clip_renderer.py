"""Draw the frames of clips: scenery that stays or passes by, objects that come and go."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.storyworld.canvas import FRAME, Canvas
from storydiffusion.storyworld.motions import ease
from storydiffusion.storyworld.objects import Prop, entering
from storydiffusion.storyworld.renderer import SUPERSAMPLE, shrink
from storydiffusion.storyworld.scenery import draw_place

SEAM = 32
"""Pixels of 128 over which one place fades into the next when the scenery passes by."""


class Setting(Protocol):
    """Where a still is: a `Truth` or a `Scene`."""

    @property
    def place(self) -> str: ...

    @property
    def layout(self) -> int: ...


class Clip(Protocol):
    """What drawing needs of a clip of either edition; see `clips.ClipTruth`."""

    @property
    def start(self) -> Setting: ...

    @property
    def end(self) -> Setting: ...

    @property
    def travels(self) -> bool: ...

    @property
    def arrives(self) -> bool: ...

    @property
    def direction(self) -> int: ...

    @property
    def objects(self) -> tuple[tuple[str, float], tuple[str, float]]: ...

    def passed(self, t: float) -> float: ...


def passed_by(t: float) -> float:
    """Return how much of the way from one place to the next has passed by at time `t`, 0 … 1."""
    return ease((t - 0.14) / 0.72)


def instants(frames: int) -> list[float]:
    """Return `frames` times from 0 to 1 inclusive; only 0 for a single frame."""
    if frames < 1:
        raise UserError(f"frames is {frames}: a clip needs at least 1")
    return [i / max(1, frames - 1) for i in range(frames)]


def render_frames(clip: Clip, frames: int, size: int, draw: Callable[[Canvas, float], None]) -> np.ndarray:
    """Render the scenery, and over it what `draw` draws at each time: RGB uint8 (frames, size, size, 3)."""
    scenery = _scenery(clip, size * SUPERSAMPLE)
    canvas = Canvas(size * SUPERSAMPLE)
    images = np.empty((frames, size, size, 3), np.uint8)
    for image, t in zip(images, instants(frames), strict=True):
        hidden = scenery.shape[1] - canvas.pixels().shape[1]
        left = round(hidden * (clip.passed(t) if clip.direction > 0 else 1 - clip.passed(t)))
        canvas.pixels()[...] = scenery[:, left : left + canvas.pixels().shape[1]]
        draw(canvas, t)
        image[...] = shrink(canvas.pixels()[..., :3])
    return images


def _scenery(clip: Clip, size: int) -> np.ndarray:
    """Draw the place, or both places side by side in the order of a run towards `direction`: (size, …, 4)."""
    first = _place(clip.start, size)
    if not clip.travels:
        return first
    second = _place(clip.end, size)
    left, right = (first, second) if clip.direction > 0 else (second, first)
    # Between them each place continues as its mirror image while it fades into the other.
    seam = size * SEAM // FRAME
    weight = np.linspace(0, 1, seam)[:, None]
    between = left[:, : -seam - 1 : -1] * (1 - weight) + right[:, seam - 1 :: -1] * weight
    return np.concatenate([left, between.round().astype(np.uint8), right], 1)


def _place(setting: Setting, size: int) -> np.ndarray:
    canvas = Canvas(size)
    draw_place(canvas, setting.place, setting.layout)
    return canvas.pixels()


def moving_props(clip: Clip, t: float) -> list[Prop]:
    """Return the objects of both stills: a shared one stays, others leave and arrive, or pass by with their place."""
    first, last = clip.objects
    if clip.travels:
        direction, width = clip.direction, FRAME + SEAM
        return [
            Prop(*first, shift=(-direction * width * clip.passed(t), 0)),
            Prop(*last, shift=(direction * width * (1 - clip.passed(t)), 0)),
        ]
    if first == last:
        return [Prop(*first)]
    if clip.arrives:
        return [entering(*last, t / 0.9)]
    return [entering(*first, 1 - t / 0.45), entering(*last, (t - 0.55) / 0.45)]
