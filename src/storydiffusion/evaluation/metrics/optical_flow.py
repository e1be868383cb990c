"""Motion of a clip: the mean length of the optical flow by Farnebäck's method (OpenCV).

Unlike the pixel change of neighboring frames, optical flow does not count a cross-fade as motion.

Shapes: F frames, H × W pixels.
"""

from itertools import pairwise

import numpy as np

NAME = "Farnebäck flow"
SIDE = 256  # pixels, shorter side; larger frames are reduced to it before the flow is estimated

STILL = 0.001
"""A clip of less motion is nearly static: a quarter of a pixel per frame at 256 × 256 is 0.0007."""


def compute_motion(frames: np.ndarray) -> float:
    """Return the mean length of the flow between neighboring frames, uint8 RGB (F, H, W, 3), F ≥ 2.

    The mean is over all pixels and pairs, in image diagonals per frame, so that image sizes are comparable. A static
    clip has less than a hundredth of STILL. Motion of more than an eighth of the image per frame is underestimated.
    """
    import cv2

    grey = [_reduce(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames]
    lengths = [np.linalg.norm(_flow(one, other), axis=-1).mean() for one, other in pairwise(grey)]
    return float(np.mean(lengths) / np.hypot(*grey[0].shape))


def relative_flow(flow: float, reference_flow: float) -> float | None:
    """Return a clip's motion over that of its reference; None where the reference is nearly static."""
    return flow / reference_flow if reference_flow >= STILL else None


def _reduce(grey: np.ndarray) -> np.ndarray:
    import cv2

    factor = SIDE / min(grey.shape)
    return cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else grey


def _flow(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimate the flow between uint8 (H, W) frames → float32 (H, W, 2), in pixels.

    OpenCV's usual settings with four pyramid levels.
    """
    import cv2

    empty: np.ndarray = np.empty((*one.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(
        one, other, empty, pyr_scale=0.5, levels=4, winsize=15, iterations=3, poly_n=7, poly_sigma=1.5, flags=0
    )
