"""Which frames of a video make a clip, and how they become pictures of one size. Pure functions of what is drawn.

F frames, H and W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError

LARGEST_SIDE = 4096


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut from videos: `frames` of them, each `stride` after the last, as height × width pictures.

    flip: probability of mirroring a clip; 0 where captions tell left from right.
    brightness: b scales a clip's values by a factor drawn from 1 − b to 1 + b.
    caption_dropout: probability that a clip's caption is replaced by the empty one.
    The defaults are AnimateDiff's, for the paper publishes none.
    """

    frames: int = 16
    stride: int = 4
    height: int = 256
    width: int = 256
    flip: float = 0.0
    brightness: float = 0.0
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, low in (("frames", 1), ("stride", 1), ("height", 8), ("width", 8)):
            if not low <= getattr(self, name) <= LARGEST_SIDE:
                raise UserError(f"{name}={getattr(self, name)} is outside {low}…{LARGEST_SIDE}")
        for name in ("flip", "brightness", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:  # NaN fails too
                raise UserError(f"{name}={getattr(self, name)} is outside 0…1")


@dataclass(frozen=True)
class ClipDraw:
    """All that chance decides about one clip: numbers in [0, 1), drawn always and in one order, used or not."""

    start: float
    flip: float
    brightness: float
    caption: float


def draw_clip(random: np.random.Generator) -> ClipDraw:
    return ClipDraw(*random.random(4).tolist())


def choose_frames(available: int, options: ClipOptions, draw: ClipDraw) -> list[int]:
    """Numbers of the clip's frames in a video of `available`; every possible start is equally likely.

    Raises:
        UnreadableVideoError: for a video with fewer frames than the clip spans.
    """
    span = (options.frames - 1) * options.stride + 1
    if available < span:
        raise UnreadableVideoError(
            f"it has {available} frames, but {options.frames} of stride {options.stride} span {span}: "
            "ask for fewer or for a smaller stride"
        )
    start = int(draw.start * (available - span + 1))
    return list(range(start, start + span, options.stride))


def resize_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 (F, 3, H, W) → (F, 3, height, width): the largest middle part of that shape, scaled with antialiasing.

    Cut first, so that nothing is scaled that is then cut away.
    """
    scale = max(height / frames.shape[2], width / frames.shape[3])
    part = [min(old, round(side / scale)) for side, old in zip((height, width), frames.shape[2:], strict=True)]
    top, left = ((old - kept) // 2 for old, kept in zip(frames.shape[2:], part, strict=True))
    frames = frames[:, :, top : top + part[0], left : left + part[1]]
    if part == [height, width]:
        return frames.contiguous()
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True).contiguous()


def prepare_frames(frames: Tensor, options: ClipOptions, draw: ClipDraw) -> Tensor:
    """uint8 (F, 3, H, W) → (F, 3, height, width): resized and cropped, then mirrored and brightened alike."""
    frames = resize_and_crop(frames, options.height, options.width)
    if draw.flip < options.flip:
        frames = frames.flip(-1)
    if options.brightness:
        factor = 1 + options.brightness * (2 * draw.brightness - 1)
        frames = (frames.float() * factor).round().clamp(0, 255).to(torch.uint8)
    return frames


def prepare_caption(caption: str, options: ClipOptions, draw: ClipDraw) -> str:
    """The caption, or now and then the empty one, for classifier-free guidance."""
    return "" if draw.caption < options.caption_dropout else caption
