"""How a clip runs in time, and how near it comes to a true one: table 2 of arXiv 2405.01434, and errors where truth is.

The paper's figures compare frames two and two: `-first`, frames 2…F with frame 1; `-frames`, each frame with the next.
It names no network; features of any image encoder serve here, so figures of different encoders are not comparable.

Shapes: F frames, H × W pixels, M tokens of a frame, D channels.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from storydiffusion.evaluation.metrics.embeddings import cosines, unit

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels; x1 and y1 are the first column and row outside"""

VISIBLE = 40
"""How far a pixel is from the background, of 255 in its farthest channel, where something stands before it"""


def token_distance(a: np.ndarray, b: np.ndarray) -> float:
    """As LPIPS (1801.03924) without learnt weights: tokens (M, D) to length 1, squared distance, mean over tokens.

    In [0, 4]; 0 for the same direction of every token.
    """
    return float(np.square(unit(a) - unit(b)).sum(-1).mean())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two embeddings (D,), in [−1, 1]."""
    return float(cosines(a, b))


def from_first(compare: Callable[[np.ndarray, np.ndarray], float], features: np.ndarray) -> float:
    """The mean of `compare` over frames 2…F, each with frame 1; features (F, …), F ≥ 2."""
    return float(np.mean([compare(features[0], later) for later in features[1:]]))


def from_previous(compare: Callable[[np.ndarray, np.ndarray], float], features: np.ndarray) -> float:
    """The mean of `compare` over neighbouring frames; features (F, …), F ≥ 2."""
    return float(np.mean([compare(one, other) for one, other in pairwise(features)]))


def pixel_error(frames: np.ndarray, true: np.ndarray) -> float:
    """The mean absolute difference of uint8 pictures of one shape, in [0, 1]. A blur wins it: it does not judge."""
    return float(np.abs(frames.astype(np.int16) - true).mean() / 255)


def motion(frames: np.ndarray) -> float:
    """How much changes from frame to frame: the mean absolute difference of neighbours, uint8 (F, H, W, 3), in [0, 1].

    Cutting counts as much as moving; a clip that stands still has none.
    """
    return pixel_error(frames[1:], frames[:-1])


def figure_box(frame: np.ndarray, plate: np.ndarray) -> Box | None:
    """The box about the largest connected region in which a frame differs visibly from the empty scene.

    Args:
        frame, plate: uint8 (H, W, 3), with and without the figure.

    Returns:
        None where nothing stands there.
    """
    from scipy import ndimage

    differs = np.abs(frame.astype(np.int16) - plate).max(-1) > VISIBLE
    regions: np.ndarray = np.empty(differs.shape, np.int32)
    if not ndimage.label(ndimage.binary_opening(differs), output=regions):  # specks and thin edges are no figure
        return None
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = np.nonzero(regions == largest)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def overlap(a: Box | None, b: Box | None) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where one is missing, 1 where both are."""
    if a is None or b is None:
        return float(a is b)
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(0, width) * max(0, height)
    return common / (_area(a) + _area(b) - common)


def cross_fade(start: np.ndarray, end: np.ndarray, frames: int) -> np.ndarray:
    """The baseline that mixes the pictures: uint8 (H, W, 3) each → (F, H, W, 3) from the one to the other."""
    weights = np.linspace(0, 1, frames).reshape(-1, 1, 1, 1)
    return (start * (1 - weights) + end * weights).round().astype(np.uint8)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
