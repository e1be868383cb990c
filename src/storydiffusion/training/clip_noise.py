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
    """`noise` standard normal (B, …), `timesteps` int64 (B,); `given`, `told` and `forced` uniform in [0, 1), (B,)."""

    noise: Tensor
    timesteps: Tensor
    given: Tensor
    told: Tensor
    forced: Tensor


GOLDEN = (5**0.5 - 1) / 2


def draw_clip_noise(seed: int, positions: range, shape: Sequence[int], timesteps: int) -> ClipNoise:
    """For the clips at `positions`, one after the other.

    Timesteps in [0, `timesteps`) follow the golden ratio's sequence from a random start: all are equally likely, and
    any few neighbours in it, so any batch or row of the log, are spread over all of them.
    """
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    generators = [torch.Generator().manual_seed(_key(seed, position)) for position in positions]
    uniform = torch.stack([torch.rand(3, generator=generator, dtype=torch.float64) for generator in generators])
    way = (start + torch.tensor([position * GOLDEN for position in positions], dtype=torch.float64)) % 1
    return ClipNoise(
        noise=torch.stack([torch.randn(*shape, generator=generator) for generator in generators]),
        timesteps=(way * timesteps).long(),
        given=uniform[:, 0],
        told=uniform[:, 1],
        forced=uniform[:, 2],
    )


def _key(seed: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
