"""The part of a picture that shows its character, for an encoder that reads squares."""

import numpy as np

from storydiffusion.evaluation.metrics.clips import Box


def square_crop(picture: np.ndarray, box: Box) -> np.ndarray:
    """The square about a box, uint8 (H, W, 3) → (S, S, 3), S the longer side of the box.

    At the edge the square is moved into the picture; where the picture is too small for it, the square is cut.

    Raises ValueError for a box that reaches out of the picture.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"the box {list(box)} is not inside the picture of {width} × {height} pixels")
    side = max(x1 - x0, y1 - y0)
    left, top = _start(x0, x1, side, width), _start(y0, y1, side, height)
    return picture[top : top + side, left : left + side]


def _start(low: int, high: int, side: int, limit: int) -> int:
    """Where `side` pixels begin whose middle is that of low…high, moved to stay inside 0…limit."""
    return max(0, min((low + high - side) // 2, limit - side))
