"""Square crops around a character, for encoders that take square images."""

import numpy as np

from storydiffusion.evaluation.metrics.clips import Box


def square_crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Return the square around a box, uint8 (H, W, 3) → (S, S, 3), where S is the longer side of the box.

    A square that crosses the edge is moved into the image; one that is larger than the image is cut.

    Raises:
        ValueError: the box is not inside the image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"the box {list(box)} is not inside the image of {width} × {height} pixels")
    side = max(x1 - x0, y1 - y0)
    left, top = _start(x0, x1, side, width), _start(y0, y1, side, height)
    return image[top : top + side, left : left + side]


def _start(low: int, high: int, side: int, limit: int) -> int:
    """Return where `side` pixels begin that are centered on low…high, moved to stay inside 0…limit."""
    return max(0, min((low + high - side) // 2, limit - side))
