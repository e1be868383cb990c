"""Clips with a fixed first and last frame, which the paper leaves open.

Only the U-Net's input changes. `with_boundary_frames` replaces the first and the last frame by the two given latents,
to which the motion modules of every other frame attend:

- training: the clean first and last frame replace those of a clip's noised latents; the loss then covers the middle
  frames only, `noised.frames(slice(1, -1))`;
- sampling: before each call of the U-Net and once after the last step, so the clip has exactly these boundary frames.
  A video model never trained on clean frames among noisy ones gets them noised to the step's level with one fixed
  noise (as in RePaint, 2201.09865), and clean after the last step.
"""

import torch
from torch import Tensor

from storydiffusion.errors import UserError


def with_boundary_frames(latents: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return a copy of latents (B, C, F, H, W) with `start` and `end`, each (B, C, H, W), as first and last frame.

    Raises:
        UserError: boundary frames of another size than the clip's, or fewer than two frames.
    """
    frames = latents.shape[2]
    if frames < 2:
        raise UserError(f"a clip of {frames} frame has no two boundary frames: set 2 frames or more")
    expected = latents.select(2, 0).shape
    for name, frame in (("start", start), ("end", end)):
        if frame.shape != expected:
            raise UserError(
                f"the {name} frame's latents are {tuple(frame.shape)}, but the clip's are {tuple(expected)}: "
                "give start and end images of the clip's size"
            )
    first, last = [frame.unsqueeze(2).to(latents) for frame in (start, end)]
    return torch.cat([first, latents[:, :, 1:-1], last], dim=2)
