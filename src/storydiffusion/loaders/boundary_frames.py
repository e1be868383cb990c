"""How motion modules were trained, and the boundary frames that they can be sampled with.

`boundary_frames.json` in the folder of motion modules that a training exports, or a release holds, has the share of
clips whose boundary frames were clean among noisy frames. Modules without this file, such as AnimateDiff's, saw none.
"""

from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes, read_object
from storydiffusion.loaders.sources import package_path

RECORD = "boundary_frames.json"
KEY = "boundary_frame_prob"


def write_training_record(folder: Path, boundary_frame_prob: float) -> None:
    """Write how the motion modules in `folder` were trained."""
    write_atomically(folder / RECORD, json_bytes({KEY: boundary_frame_prob}))


def read_boundary_frame_prob(motion_adapter: str | None) -> float:
    """Return the share of training clips with clean boundary frames, in [0, 1]; 0 without a record.

    Raises:
        UserError: a record that cannot be read.
    """
    if motion_adapter is None or not (file := package_path(motion_adapter) / RECORD).is_file():
        return 0.0
    try:
        found: Any = read_object(file).get(KEY)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({first_line(error)}): copy it again, or remove it") from error
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise UserError(f"{file} has {KEY} {found!r}: write a number in [0, 1], or remove the file")
    return float(found)


def choose_boundary_frames(wanted: str, boundary_frame_prob: float) -> str:
    """Return `wanted`, where `auto` is `clamped` for models trained on clean boundary frames, else `noised`."""
    if wanted != "auto":
        return wanted
    return "clamped" if boundary_frame_prob > 0 else "noised"


def find_untrained(boundary_frames: str, boundary_frame_prob: float) -> str | None:
    """Return a warning if clean boundary frames are asked of a model that was trained without; else None."""
    if boundary_frames != "clamped" or boundary_frame_prob > 0:
        return None
    return (
        "boundary_frames=clamped gives clean boundary frames to motion modules that were trained without, so the "
        "frames between may not fit them: choose noised or free"
    )
