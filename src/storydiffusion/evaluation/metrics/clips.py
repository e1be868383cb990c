"""Metrics of clips: change over time (table 2 of arXiv 2405.01434) and errors against a reference clip.

The paper compares frames pairwise: `first` is frames 2…F with frame 1, `frames` is each frame with the next. It names
no network. Any image encoder serves here, and values of different encoders are not comparable.

Shapes: F frames, H × W pixels, M tokens per frame, D channels.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from storydiffusion.evaluation.metrics.embeddings import cosines, unit

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels; x1 and y1 are the first column and row outside the box"""
Distance = Callable[[np.ndarray, np.ndarray], float]

VISIBLE = 40
"""Smallest difference from the background, of 255 in the farthest channel, that counts as foreground"""


def token_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return LPIPS (1801.03924) without learned weights: squared distance of unit tokens (M, D), mean over tokens.

    In [0, 4]; 0 where all tokens have the same direction.
    """
    return float(np.square(unit(a) - unit(b)).sum(-1).mean())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two embeddings (D,), in [−1, 1]."""
    return float(cosines(a, b))


def from_first(compare: Distance, features: np.ndarray) -> float:
    """Return the mean of `compare` over frames 2…F, each with frame 1; features (F, …), F ≥ 2."""
    return float(np.mean([compare(features[0], later) for later in features[1:]]))


def from_previous(compare: Distance, features: np.ndarray) -> float:
    """Return the mean of `compare` over neighboring frames; features (F, …), F ≥ 2."""
    return float(np.mean([compare(one, other) for one, other in pairwise(features)]))


def perceptual_error(distance: Distance, features: np.ndarray, reference_features: np.ndarray) -> float | None:
    """Return the mean `distance` of the frames between the boundary frames to the reference's; None without such."""
    if len(features) <= 2:
        return None
    pairs = zip(features[1:-1], reference_features[1:-1], strict=True)
    return float(np.mean([distance(one, other) for one, other in pairs]))


def boundary_perceptual_error(distance: Distance, features: np.ndarray, boundary_features: np.ndarray) -> float:
    """Return the mean `distance` of the first and last frame to the given ones, whose features are (2, …)."""
    return float(np.mean([distance(features[at], boundary_features[at]) for at in (0, -1)]))


def place_error(boxes: Sequence[Box | None], reference_boxes: Sequence[Box | None]) -> float:
    """Return 1 − intersection over union of the character's box with the reference's, mean over frames, in [0, 1]."""
    return float(np.mean([1 - overlap(one, other) for one, other in zip(boxes, reference_boxes, strict=True)]))


def mean_absolute_difference(frames: np.ndarray, others: np.ndarray) -> float:
    """Return the mean absolute difference of uint8 images of one shape, in [0, 1]."""
    return float(np.abs(frames.astype(np.int16) - others).mean() / 255)


def pixel_error(frames: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the mean absolute difference of the frames between the boundary frames to the reference's, in [0, 1].

    A blur minimizes it, so no claim is judged by it. None without frames between.
    """
    return mean_absolute_difference(frames[1:-1], reference[1:-1]) if len(frames) > 2 else None


def boundary_frame_error(frames: np.ndarray, boundary_frames: np.ndarray) -> float:
    """Return the mean absolute difference of the first and last frame to the given ones (2, H, W, 3), in [0, 1]."""
    return mean_absolute_difference(frames[[0, -1]], boundary_frames)


def mean_pixel_change(frames: np.ndarray) -> float:
    """Return the mean absolute difference of neighboring frames, uint8 (F, H, W, 3), in [0, 1].

    A cut or a fade counts like motion; a static clip has 0.
    """
    return mean_absolute_difference(frames[1:], frames[:-1])


def pixel_change(frames: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the pixel change of a clip over that of its reference; None where the reference is static."""
    expected = mean_pixel_change(reference)
    return mean_pixel_change(frames) / expected if expected > 0 else None


def find_foreground_box(frame: np.ndarray, plate: np.ndarray, left: int = 0, right: int | None = None) -> Box | None:
    """Return the box around the largest connected region in which a frame visibly differs from the empty scene.

    Args:
        frame, plate: uint8 (H, W, 3), with and without the character.
        left, right: the columns to search; None: to the end.

    Returns:
        None where no region differs.
    """
    from scipy import ndimage

    differs = np.abs(frame.astype(np.int16) - plate).max(-1)[:, left:right] > VISIBLE
    regions: np.ndarray = np.empty(differs.shape, np.int32)
    if not ndimage.label(ndimage.binary_opening(differs), output=regions):  # opening removes specks and thin edges
        return None
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    rows, columns = np.nonzero(regions == largest)
    return left + int(columns.min()), int(rows.min()), left + int(columns.max()) + 1, int(rows.max()) + 1


def overlap(a: Box | None, b: Box | None) -> float:
    """Return the intersection over union of two boxes, in [0, 1]; 0 where one is missing, 1 where both are."""
    if a is None or b is None:
        return float(a is b)
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(0, width) * max(0, height)
    return common / (_area(a) + _area(b) - common)


def cross_fade(start: np.ndarray, end: np.ndarray, frames: int) -> np.ndarray:
    """Return `frames` linear mixtures from one image to the other: uint8 (H, W, 3) each → (F, H, W, 3)."""
    weights = np.linspace(0, 1, frames).reshape(-1, 1, 1, 1)
    return (start * (1 - weights) + end * weights).round().astype(np.uint8)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
