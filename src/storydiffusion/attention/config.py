"""The settings of consistent self-attention, with their checks.

This module stays free of torch: commands check a configuration before they import anything heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from storydiffusion.attention.token_samplers import TOKEN_SAMPLERS, Need, get_token_sampler
from storydiffusion.attention.variants import VARIANTS, get_variant
from storydiffusion.errors import UserError

Blocks = Literal["up", "all", "joint", "single"]
Positions = Literal["same", "beside", "reference"]
Regions = Literal["off", "characters", "characters+places"]

FIRST_STEP = 0.1
"""Fraction of the schedule before which cross-attention does not show who is where"""


@dataclass(frozen=True)
class ConsistentSelfAttentionConfig:
    """Which tokens panels share, how many, and when. The defaults are the paper's.

    Attributes:
        rate: share of another panel's tokens that is sampled, in [0, 1]; each panel gives exactly round(rate · N).
            A mapping gives a rate for each grid: its key is by how much the grid is coarser than the denoiser's input,
            a power of two; grids that it leaves out share nothing. With a VAE of factor 8, the official code's sa64
            (image size / 16) and sa32 (image size / 32) are {2: sa64, 4: sa32}.
        variant: `eq2`, every panel draws its own sample of each other panel; `shared_row`, one sample of each panel
            for all the others (one row of the official code's mask, with exact counts instead of Bernoulli draws);
            `algorithm1`, the paper's pseudo-code: windows of `tile_size` panels, stride 1, the sample drawn from all
            tokens of the window, the panel's own included, and overlapping windows averaged; `official`, `shared_row`
            with the official schedule and random bypass; `off`, plain self-attention; or any name given to
            `register_variant`.
        sampler: `uniform`, the same number of tokens from each other panel; `progressive` (with `eq2` only), tokens of
            earlier panels only, panel j giving panel i a part in proportion to decay^(i - j), at most all of its N, the
            excess going to the others; the total is that of `uniform` where the earlier panels have as many. The first
            panel then attends only to itself and sets the look that the others follow; `subject`, `background` and
            `subject+background`, equal numbers of tokens inside the masks of the story, outside them, or anywhere; or
            any name given to `register_token_sampler`.
        decay: of the progressive sampler, in (0, 1]; 1 weighs all earlier panels alike.
        tile_size: window of `algorithm1` in panels, at least 2; None, or more than there are, is the whole story.
        neighbor_window: a panel attends to panels at most this many places before or after it; None, all.
        anchor_panels: panels attend to this many first panels of the story only, as in the official code; None, all.
            With neighbor_window too, a panel attends to the panels of either. Both bound the attended tokens; for
            the memory see panels_at_once.
        blocks: `up`, the self-attentions of the decoder's blocks, as the official code; `all`, every one. A diffusion
            transformer has no decoder, and shares in all blocks with either; `joint`, those with a stream each of text
            and image, and `single`, those with one stream, are blocks of transformers only.
        positions: where a panel sees the tokens of other panels, in a diffusion transformer with rotary positions:
            `same`, at their own place; `beside`, one image width to the right; `reference`, where the model sees a
            reference image. None, the backbone's default.
        start, end: first step that shares and the step after the last, as fractions of the schedule in [0, 1].
        seed: of all random draws, together with a story's key, the step, and the grid.
        regions: which tokens of a panel share which tokens of another: `off`, all of them; `characters`, those of a
            character share its own in the panels that name it, and background keeps to itself; `characters+places`,
            background shares that of panels in the same place too. Regions come from attention to text in the steps
            before; in the first tenth of the schedule panels share as with `off`. They need the prompts' words for each
            character, and variant `eq2`, `shared_row` or `official` with sampler `uniform`.
        isolate_until: with regions, fraction of the schedule in [0, 1] up to which the characters of one panel do not
            attend to each other in it either; 0, they always do.
        panels_at_once: most panels that the denoiser computes at a time, with the same result: panels that attend to
            each other together, and after those that they attend to. `auto`, as many as fit into the free memory; None,
            all panels.

    Raises:
        UserError: for a value out of its range, or two that do not go together.
    """

    rate: float | Mapping[int, float] = 0.5
    variant: str = "eq2"
    sampler: str = "uniform"
    decay: float = 0.5
    tile_size: int | None = None
    neighbor_window: int | None = None
    anchor_panels: int | None = None
    blocks: str = "up"
    positions: str | None = None
    start: float = 0.0
    end: float = 1.0
    seed: int = 0
    regions: str = "off"
    isolate_until: float = 0.0
    panels_at_once: int | Literal["auto"] | None = None

    def __post_init__(self):
        self._check_names()
        if isinstance(self.rate, Mapping):
            for factor, rate in self.rate.items():
                if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or factor & (factor - 1):
                    raise UserError(f"rate has a grid {factor!r}: name grids by a power of two, such as 1, 2, 4.")
                _check_fraction(f"rate of grid {factor}", rate)
        else:
            _check_fraction("rate", self.rate)
        for name in ("start", "end", "decay", "isolate_until"):
            _check_fraction(name, getattr(self, name))
        if self.decay == 0:
            raise UserError("decay is 0: choose a number above 0 and at most 1.")
        if self.start >= self.end:
            raise UserError(f"start is {self.start} and end is {self.end}: choose start below end, both in [0, 1].")
        for name, least in (("tile_size", 2), ("neighbor_window", 0), ("anchor_panels", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"{name} is {value!r}: choose a whole number of panels, {least} or more.")
        self._check_panels_at_once()
        self._check_regions()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UserError(f"seed is {self.seed!r}: choose a whole number.")

    def _check_panels_at_once(self) -> None:
        value = self.panels_at_once
        if value is None:
            return
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"panels_at_once is {value!r}: choose a whole number of panels, 1 or more, or auto.")
        if self.needs:
            raise UserError(
                f"panels_at_once is {value!r}, but sampler {self.sampler} with variant {self.variant} reads the "
                f"{' and '.join(sorted(self.needs))} of all panels at once: leave out panels_at_once."
            )

    def _check_regions(self) -> None:
        """Check regions, and that they go with the other settings."""
        if self.regions not in get_args(Regions):
            raise UserError(f"regions is {self.regions!r}: choose one of {', '.join(get_args(Regions))}.")
        if self.regions == "off":
            if self.isolate_until > 0:
                raise UserError(
                    f"isolate_until is {self.isolate_until}, but regions is off: choose regions characters."
                )
            return
        if self.panels_at_once is not None:
            raise UserError(f"regions is {self.regions} and panels_at_once is {self.panels_at_once}: leave out one.")
        if self.sampler != "uniform":
            raise UserError(f"regions is {self.regions}, but sampler is {self.sampler}: choose sampler uniform.")
        if not get_variant(self.variant).takes_regions and get_variant(self.variant).shares:
            fitting = [name for name, each in VARIANTS.items() if each.takes_regions]
            raise UserError(f"regions is {self.regions}, but variant is {self.variant}: choose {_either(fitting)}.")

    def _check_names(self) -> None:
        """Check variant, sampler and blocks, and that variant, sampler and tile_size go together."""
        variant, sampler = get_variant(self.variant), get_token_sampler(self.sampler)
        if self.blocks not in get_args(Blocks):
            raise UserError(f"blocks is {self.blocks!r}: choose one of {', '.join(get_args(Blocks))}.")
        if self.positions is not None and self.positions not in get_args(Positions):
            raise UserError(f"positions is {self.positions!r}: choose one of {', '.join(get_args(Positions))}.")
        if not _fits(self.sampler, self.variant):
            fitting = [name for name in VARIANTS if _fits(self.sampler, name)]
            raise UserError(
                f"sampler {sampler.name} does not go with variant {self.variant}: choose variant {_either(fitting)}, "
                f"or sampler {_either([name for name in TOKEN_SAMPLERS if _fits(name, self.variant)])}."
            )
        if self.tile_size is not None and not variant.uses_tile_size:
            tiled = [name for name, each in VARIANTS.items() if each.uses_tile_size]
            raise UserError(f"tile_size is {self.tile_size} but variant is {self.variant}: choose {_either(tiled)}.")

    @property
    def needs_schedule(self) -> bool:
        """Whether the number of steps must be known."""
        return get_variant(self.variant).needs_schedule or self.start > 0 or self.end < 1 or self.uses_regions

    @property
    def uses_regions(self) -> bool:
        """Whether tokens are shared by region."""
        return self.regions != "off" and self.shares

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs of a layer that its draw depends on."""
        return get_token_sampler(self.sampler).needs | get_variant(self.variant).needs

    @property
    def keeps_features(self) -> bool:
        """Whether the features of an image, computed once, are those that further images of its story read."""
        return self.shares and not self.uses_regions and not self.needs

    @property
    def shares(self) -> bool:
        """Whether any token is shared at all."""
        rates = self.rate.values() if isinstance(self.rate, Mapping) else [self.rate]
        return get_variant(self.variant).shares and any(rate > 0 for rate in rates)

    def get_rate(self, factor: int) -> float:
        """Return the rate of the grid that is `factor` times coarser than the denoiser's input."""
        return self.rate.get(factor, 0.0) if isinstance(self.rate, Mapping) else self.rate

    def is_active(self, step: int, steps: int | None) -> bool:
        """Return whether step (0…steps-1) lies in [start, end); with steps None, an unknown schedule, all are."""
        return steps is None or round(self.start * steps) <= step < round(self.end * steps)

    def knows_regions(self, step: int, steps: int) -> bool:
        """Return whether tokens are shared by region at step (0…steps-1): not before regions can be seen."""
        return self.uses_regions and step >= max(1, round(FIRST_STEP * steps))


def _fits(sampler: str, variant: str) -> bool:
    """Whether a variant can use a sampler."""
    if not get_variant(variant).uses_sampler:
        return sampler == "uniform"
    return not (get_variant(variant).shared_draw and get_token_sampler(sampler).per_panel)


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _check_fraction(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}: choose a number in [0, 1].")
