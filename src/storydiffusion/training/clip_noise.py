"""The random numbers of a training step, keyed by (seed, position of the clip in the training).

They are independent of restarts and of the number of processes. Positions count from 0 through all epochs.

Shapes: B clips on this process, … one clip's latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipNoise:
    """`noise` standard normal (B, …), `timesteps` int64 (B,), and four uniform draws in [0, 1), each (B,).

    The draws decide whether a clip is given its boundary frames, loses its semantic tokens, is teacher-forced, or
    loses both text and semantic tokens.
    """

    noise: Tensor
    timesteps: Tensor
    boundary: Tensor
    dropout: Tensor
    forcing: Tensor
    joint: Tensor


GOLDEN = (5**0.5 - 1) / 2


def draw_clip_noise(seed: int, positions: range, shape: Sequence[int], timesteps: int) -> ClipNoise:
    """Draw the random numbers of the clips at `positions`.

    Timesteps in [0, `timesteps`) follow the golden-ratio sequence from a random start: all are equally likely, and any
    few consecutive ones, such as a batch or a row of the log, are spread over the whole range.
    """
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    generators = [torch.Generator().manual_seed(_get_seed(seed, position)) for position in positions]
    uniform = torch.stack([torch.rand(3, generator=generator, dtype=torch.float64) for generator in generators])
    fractions = (start + torch.tensor([position * GOLDEN for position in positions], dtype=torch.float64)) % 1
    noise = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
    joint = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return ClipNoise(
        noise=noise,
        timesteps=(fractions * timesteps).long(),
        boundary=uniform[:, 0],
        dropout=uniform[:, 1],
        forcing=uniform[:, 2],
        joint=joint,
    )


def _get_seed(seed: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
