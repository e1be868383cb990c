"""Clips whose first and last frame are given exactly, which the paper leaves open.

The U-Net stays as it is; only its input changes. `with_boundary_frames` puts the two given latents in place of the
first and the last frame, where the motion modules read them from every other frame:

- training: in the noised latents of a clip, its own clean ends; the loss is then taken over the middle frames only,
  `noised.frames(slice(1, -1))`;
- sampling: before each call of the U-Net and once after the last step, so that the clip ends on exactly these latents.
  A video model that has never seen clean frames beside noisy ones wants them noised to the step's own level with one
  fixed noise (as in RePaint, 2201.09865), and clean after the last step.
"""

import torch
from torch import Tensor

from storydiffusion.errors import UserError


def with_boundary_frames(latents: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Latents (B, C, F, H, W) with `start` and `end`, each (B, C, H, W), as first and last frame; a new tensor.

    Raises:
        UserError: end frames of another size than the clip's, or fewer than two frames.
    """
    frames = latents.shape[2]
    if frames < 2:
        raise UserError(f"a clip of {frames} frame has no two end frames: ask for 2 frames or more")
    expected = latents.select(2, 0).shape
    for name, frame in (("start", start), ("end", end)):
        if frame.shape != expected:
            raise UserError(
                f"the {name} frame's latents are {tuple(frame.shape)}, but the clip's are {tuple(expected)}: "
                "give start and end images of the clip's size"
            )
    ends = [frame.unsqueeze(2).to(latents) for frame in (start, end)]
    return torch.cat([ends[0], latents[:, :, 1:-1], ends[1]], dim=2)
