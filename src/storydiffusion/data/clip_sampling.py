"""Choose the frames of a clip and transform them to one size. Pure functions of the random draw.

F frames, H and W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.data.video_reader import MIN_FRAMES, UnreadableVideoError
from storydiffusion.errors import UserError

LARGEST_SIDE = 4096


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut from videos: `frames` frames, `stride` apart, resized to height × width.

    flip: probability of mirroring a clip; 0 if captions distinguish left from right.
    brightness: b scales a clip's values by a factor drawn from 1 − b to 1 + b.
    caption_dropout: probability that a clip's caption is replaced by the empty one.
    The defaults are AnimateDiff's; the paper publishes none.
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
    """The random numbers of one clip, in [0, 1): always drawn, in one order, whether used or not."""

    start: float
    flip: float
    brightness: float
    caption: float


def draw_clip(random: np.random.Generator) -> ClipDraw:
    """Draw the random numbers of one clip."""
    return ClipDraw(*random.random(4).tolist())


def choose_frames(available: int, options: ClipOptions, draw: ClipDraw) -> list[int]:
    """Return the indices of the clip's frames in a video of `available` frames; every start is equally likely.

    Raises:
        UnreadableVideoError: the video has fewer frames than the clip spans.
    """
    span = (options.frames - 1) * options.stride + 1
    if available < span:
        raise UnreadableVideoError(
            f"it has {available} frames, but data.frames={options.frames} with data.stride={options.stride} spans "
            f"{span}: {_advise(available, options)}"
        )
    start = int(draw.start * (available - span + 1))
    return list(range(start, start + span, options.stride))


def _advise(available: int, options: ClipOptions) -> str:
    """Return the settings with which a clip fits into a video: the largest stride, the largest number of frames."""
    stride = (available - 1) // (options.frames - 1)
    frames = (available - 1) // options.stride + 1
    fitting = [f"data.stride={stride}"] * (stride >= 1) + [f"data.frames={frames}"] * (frames >= MIN_FRAMES)
    return f"set {' or '.join(fitting) or f'data.stride=1 and data.frames={available}'}"


def resize_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """Crop uint8 (F, 3, H, W) to the largest centered part of that aspect and resize it to (F, 3, height, width).

    Cropping first avoids resizing pixels that are then discarded. The resize is bilinear with antialiasing.
    """
    scale = max(height / frames.shape[2], width / frames.shape[3])
    part = [min(old, round(side / scale)) for side, old in zip((height, width), frames.shape[2:], strict=True)]
    top, left = ((old - kept) // 2 for old, kept in zip(frames.shape[2:], part, strict=True))
    frames = frames[:, :, top : top + part[0], left : left + part[1]]
    if part == [height, width]:
        return frames.contiguous()
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True).contiguous()


def prepare_frames(frames: Tensor, options: ClipOptions, draw: ClipDraw) -> Tensor:
    """Transform uint8 (F, 3, H, W) to (F, 3, height, width): crop, resize, mirror and brighten all frames alike."""
    frames = resize_and_crop(frames, options.height, options.width)
    if draw.flip < options.flip:
        frames = frames.flip(-1)
    if options.brightness:
        factor = 1 + options.brightness * (2 * draw.brightness - 1)
        frames = (frames.float() * factor).round().clamp(0, 255).to(torch.uint8)
    return frames


def prepare_caption(caption: str, options: ClipOptions, draw: ClipDraw) -> str:
    """Return the caption, or the empty one with probability `caption_dropout`, for classifier-free guidance."""
    return "" if draw.caption < options.caption_dropout else caption
