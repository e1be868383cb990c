"""How far things move in a clip: the mean length of the optical flow by Farnebäck's method (OpenCV's).

Unlike the difference of neighbouring frames it does not take cross-fading for motion: what fades goes nowhere.

Shapes: F frames, H × W pixels.
"""

from itertools import pairwise

import numpy as np

NAME = "Farnebäck flow"
SIDE = 256  # pixels, the shorter side of what the flow is estimated on; larger frames are reduced to it

STILL = 0.001
"""A clip of less motion hardly moves: a quarter of a pixel a frame at 256 × 256 is 0.0007."""


def motion_magnitude(frames: np.ndarray) -> float:
    """The mean length of the flow between neighbours, over all pixels and pairs; uint8 RGB (F, H, W, 3), F ≥ 2.

    As a share of the picture's diagonal a frame, so that sizes of pictures can be compared. A clip that stands still
    has less than a hundredth of STILL; motion of more than an eighth of the picture a frame is underestimated.
    """
    import cv2

    grey = [_reduced(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames]
    lengths = [np.linalg.norm(_flow(one, other), axis=-1).mean() for one, other in pairwise(grey)]
    return float(np.mean(lengths) / np.hypot(*grey[0].shape))


def _reduced(grey: np.ndarray) -> np.ndarray:
    import cv2

    factor = SIDE / min(grey.shape)
    return cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else grey


def _flow(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8 (H, W) each → float32 (H, W, 2), in pixels. Settings: OpenCV's usual ones, and four levels of a pyramid."""
    import cv2

    empty: np.ndarray = np.empty((*one.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(
        one, other, empty, pyr_scale=0.5, levels=4, winsize=15, iterations=3, poly_n=7, poly_sigma=1.5, flags=0
    )
