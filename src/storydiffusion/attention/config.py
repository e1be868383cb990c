"""The settings of consistent self-attention, with their checks.

This module stays free of torch: commands check a configuration before they import anything heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from storydiffusion.errors import UserError

Variant = Literal["eq2", "shared_row", "algorithm1", "official", "off"]
Sampler = Literal["uniform", "progressive"]
Blocks = Literal["up", "all"]


@dataclass(frozen=True)
class ConsistentSelfAttentionConfig:
    """What is shared, how much of it, and when. The defaults are the paper's.

    Attributes:
        rate: share of another panel's tokens that is sampled, in [0, 1]; each panel gives exactly round(rate · N).
            A mapping gives a rate for each grid: its key is by how much the grid is coarser than the U-Net's input,
            a power of two, and grids that it leaves out share nothing. With a VAE of factor 8, the official code's
            sa64 (image size / 16) and sa32 (image size / 32) are {2: sa64, 4: sa32}.
        variant: `eq2`, every panel draws a sample of its own from each other panel; `shared_row`, one sample from
            each panel, read by all the others (the official code's one row of its mask, with exact counts instead of
            Bernoulli draws); `algorithm1`, the paper's pseudo-code: windows of `tile_size` panels, stride 1, the
            sample drawn from all tokens of the window, the reader's own included, and overlapping windows averaged;
            `official`, `shared_row` with the official schedule and random bypass; `off`, plain self-attention.
        sampler: `uniform`, as many tokens from each other panel; `progressive` (with `eq2` only), tokens of earlier
            panels only, panel j giving panel i a part in proportion to decay^(i - j), at most all of its N, the
            excess going to the others; the total is that of `uniform` where the earlier panels have as many. The
            first panel reads nobody, so that it alone settles the look that the others follow.
        decay: of the progressive sampler, in (0, 1]; 1 weighs all earlier panels alike.
        tile_size: window of `algorithm1` in panels, at least 2; None, or more than there are, is the whole story.
        neighbor_window: a panel reads panels at most this many places before or after it; None, all.
        anchor_panels: panels read only this many first panels of the story, which also read each other, as in the
            official code; None, all. With a neighbor_window too, a panel reads those of either. Both bound what is read
            and nothing else: all panels of a story are still denoised in one batch, its memory is not bounded.
        blocks: `up`, the self-attentions of the U-Net's up blocks, as the official code; `all`, every one.
        start, end: first step and the step after the last that share, as fractions of the schedule in [0, 1].
        seed: of all random draws, together with a story's key, the step, and the grid.

    Raises:
        UserError: for a value out of its range, or two that do not go together.
    """

    rate: float | Mapping[int, float] = 0.5
    variant: Variant = "eq2"
    sampler: Sampler = "uniform"
    decay: float = 0.5
    tile_size: int | None = None
    neighbor_window: int | None = None
    anchor_panels: int | None = None
    blocks: Blocks = "up"
    start: float = 0.0
    end: float = 1.0
    seed: int = 0

    def __post_init__(self):
        _check_choice("variant", self.variant, get_args(Variant))
        _check_choice("sampler", self.sampler, get_args(Sampler))
        _check_choice("blocks", self.blocks, get_args(Blocks))
        if isinstance(self.rate, Mapping):
            for factor, rate in self.rate.items():
                if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or factor & (factor - 1):
                    raise UserError(f"rate has a grid {factor!r}: name grids by a power of two, such as 1, 2, 4.")
                _check_fraction(f"rate of grid {factor}", rate)
        else:
            _check_fraction("rate", self.rate)
        _check_fraction("start", self.start)
        _check_fraction("end", self.end)
        _check_fraction("decay", self.decay)
        if self.decay == 0:
            raise UserError("decay is 0: choose a number above 0 and at most 1.")
        if self.start >= self.end:
            raise UserError(f"start is {self.start} and end is {self.end}: choose start below end, both in [0, 1].")
        if self.sampler == "progressive" and self.variant != "eq2":
            raise UserError(f"sampler progressive does not go with variant {self.variant}: choose variant eq2.")
        if self.tile_size is not None:
            if self.variant != "algorithm1":
                raise UserError(f"tile_size is {self.tile_size} but variant is {self.variant}: choose algorithm1.")
            if isinstance(self.tile_size, bool) or not isinstance(self.tile_size, int) or self.tile_size < 2:
                raise UserError(f"tile_size is {self.tile_size!r}: choose a whole number of panels, 2 or more.")
        for name in ("neighbor_window", "anchor_panels"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise UserError(f"{name} is {value!r}: choose a whole number of panels, 0 (reads nobody) or more.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UserError(f"seed is {self.seed!r}: choose a whole number.")

    @property
    def needs_schedule(self) -> bool:
        """Whether it must be known how many steps there are."""
        return self.variant == "official" or self.start > 0 or self.end < 1

    @property
    def shares(self) -> bool:
        """Whether any token is shared at all."""
        rates = self.rate.values() if isinstance(self.rate, Mapping) else [self.rate]
        return self.variant != "off" and any(rate > 0 for rate in rates)

    def rate_of(self, factor: int) -> float:
        """Rate of the grid that is `factor` times coarser than the U-Net's input."""
        return self.rate.get(factor, 0.0) if isinstance(self.rate, Mapping) else self.rate

    def is_active(self, step: int, steps: int | None) -> bool:
        """Whether step (0…steps-1) lies in [start, end); `steps` None is an unknown schedule, shared throughout."""
        return steps is None or round(self.start * steps) <= step < round(self.end * steps)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")


def _check_fraction(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}: choose a number in [0, 1].")
