"""The orientation of a video: the display matrix of its container, by which phones turn portrait clips upright.

ISO/IEC 14496-12, sections 8.2.2 (mvhd) and 8.3.2 (tkhd). Decoders differ in whether they apply the matrix, so it is
read here, cleared for the decoders that would apply it, and applied once to the decoded frames.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
MATRIX_PLACES = {b"mvhd": (36, 48), b"tkhd": (40, 52)}
"""Box → offset of its matrix in the box's content, in versions 0 and 1."""


class UnknownOrientationError(ValueError):
    """The matrix turns by an angle that is not a multiple of 90°, or shears."""


@dataclass(frozen=True)
class Orientation:
    """How coded frames become upright: exchange rows and columns, then mirror left to right, then top to bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def compute_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the upright frame."""
        return (width, height) if self.transpose else (height, width)

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Return uint8 (F, H, W, 3) upright."""
        if self == Orientation():
            return frames
        if self.transpose:
            frames = frames.swapaxes(1, 2)
        return np.ascontiguousarray(frames[:, :: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1])


def read_orientation(blob: bytes) -> Orientation:
    """Return the orientation of the first video track of an MP4 or MOV file; other files are upright.

    Raises UnknownOrientationError.
    """
    for movie in _find_boxes(blob, [b"moov"]):
        outer = _read_matrix(blob, *next(_find_boxes(blob, [b"mvhd"], *movie), (0, 0)), b"mvhd")
        for track in _find_boxes(blob, [b"trak"], *movie):
            handlers = [blob[start + 8 : start + 12] for start, _ in _find_boxes(blob, [b"mdia", b"hdlr"], *track)]
            if b"vide" in handlers:
                inner = _read_matrix(blob, *next(_find_boxes(blob, [b"tkhd"], *track), (0, 0)), b"tkhd")
                return _to_orientation(inner @ outer)
    return Orientation()


def clear_matrix(blob: bytes) -> bytes:
    """Return the file with identities for its display matrices, so that no decoder turns its frames."""
    cleared = bytearray(blob)
    for path in ([b"moov", b"mvhd"], [b"moov", b"trak", b"tkhd"]):
        for start, end in _find_boxes(blob, path):
            at = start + MATRIX_PLACES[path[-1]][blob[start : start + 1] == b"\1"]
            if at + len(IDENTITY) <= end:
                cleared[at : at + len(IDENTITY)] = IDENTITY
    return bytes(cleared)


def _find_boxes(blob: bytes, path: list[bytes], start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield start and end of the content of every box at `path`."""
    end = len(blob) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", blob, start)
        header = 8
        if size == 1 and start + 16 <= end:
            header, size = 16, int.from_bytes(blob[start + 8 : start + 16], "big")
        elif size == 0:  # to the end of the file
            size = end - start
        if not header <= size <= end - start:
            return
        if kind == path[0] and len(path) == 1:
            yield start + header, start + size
        elif kind == path[0]:
            yield from _find_boxes(blob, path[1:], start + header, start + size)
        start += size


def _read_matrix(blob: bytes, start: int, end: int, kind: bytes) -> np.ndarray:
    """Return [[a, b], [c, d]] with x' = a·x + c·y and y' = b·x + d·y; the identity if there is none."""
    at = start + MATRIX_PLACES[kind][blob[start : start + 1] == b"\1"]
    if at + len(IDENTITY) > end:
        return np.eye(2)
    a, b, _, c, d = struct.unpack_from(">5i", blob, at)
    matrix = np.array([[a, b], [c, d]]) / (1 << 16)
    return matrix if matrix.any() else np.eye(2)


def _to_orientation(matrix: np.ndarray) -> Orientation:
    (a, b), (c, d) = np.where(abs(matrix) > 1e-3 * abs(matrix).max(), matrix, 0)
    if a and d and not b and not c:
        return Orientation(False, bool(a < 0), bool(d < 0))
    if b and c and not a and not d:
        return Orientation(True, bool(c < 0), bool(b < 0))
    raise UnknownOrientationError(
        f"its display matrix {matrix.round(3).tolist()} is not a rotation by a multiple of 90°"
    )
