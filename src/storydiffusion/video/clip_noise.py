"""What chance decides in a training step, keyed by (seed, position of the clip among all that are seen).

So neither a restart nor the number of processes changes what a clip meets. Positions count from 0 through all epochs.

Shapes: B clips on this process, … one clip's latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipNoise:
    """`noise` standard normal (B, …), `timesteps` int64 (B,); `given` and `told` uniform in [0, 1), (B,)."""

    noise: Tensor
    timesteps: Tensor
    given: Tensor
    told: Tensor


def draw_clip_noise(seed: int, positions: range, batch: int, shape: Sequence[int], timesteps: int) -> ClipNoise:
    """For the clips at `positions`, one after the other in batches of `batch` clips of all processes together.

    Timesteps in [0, `timesteps`) are spread over the batch, one from each of `batch` equal parts: all are equally
    likely, and batches differ less from each other.
    """
    generators = [torch.Generator().manual_seed(_key(seed, position)) for position in positions]
    uniform = torch.stack([torch.rand(3, generator=generator, dtype=torch.float64) for generator in generators])
    slots = torch.tensor([position % batch for position in positions], dtype=torch.float64)
    return ClipNoise(
        noise=torch.stack([torch.randn(*shape, generator=generator) for generator in generators]),
        timesteps=((slots + uniform[:, 0]) / batch * timesteps).long(),
        given=uniform[:, 1],
        told=uniform[:, 2],
    )


def _key(seed: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
