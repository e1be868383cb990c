"""The claims about consistent self-attention in the miniature's diffusion transformer."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from storydiffusion.evaluation.compare import Comparison
from storydiffusion.experiments.judging import (
    RATES,
    STORY_METRICS,
    Claim,
    Sweep,
    Verdict,
    describe_points,
    get_difference,
    get_status,
)
from storydiffusion.experiments.region_claims import REGIONS, REGIONS_CLAIM
from storydiffusion.experiments.scene_claims import judge_keeping

LEVEL = 0.01  # of significance
SMALLEST_GAIN, LARGEST_LOSS = 0.20, 0.01  # of consistency and alignment, as shares


def judge_positions(comparison: Comparison) -> Verdict:
    """Judge positions: tokens of other panels, moved, keep a character better than at their own place."""
    same, moved = "csa.positions=same", [f"csa.positions={name}" for name in ("beside", "reference")]
    gains = {job: get_difference(comparison, "consistency", job, same) for job in moved}
    changes = {job: get_difference(comparison, "alignment", job, same) for job in moved}
    best = max(moved, key=lambda job: gains[job].mean)
    holds = gains[best].mean > 0 and gains[best].p_value < LEVEL and changes[best].mean >= -LARGEST_LOSS
    listed = "; ".join(
        f"{comparison.labels[job]} changes consistency by {describe_points(gains[job])} and alignment by "
        f"{describe_points(changes[job])}"
        for job in moved
    )
    between = get_difference(comparison, "consistency", *moved)
    return Verdict(
        get_status(holds),
        f"Against the same positions, {listed}. Beside differs from reference by {describe_points(between)} in "
        "consistency.",
    )


def judge_blocks(comparison: Comparison) -> Verdict:
    """Judge blocks: sharing in both kinds keeps a character better than sharing in either."""
    both, kinds = "csa.blocks=all", ("csa.blocks=joint", "csa.blocks=single")
    gains = {job: get_difference(comparison, "consistency", both, job) for job in kinds}
    holds = all(gain.mean > 0 and gain.p_value < LEVEL for gain in gains.values())
    listed = " and ".join(
        f"exceeds {comparison.labels[job]} blocks by {describe_points(gain)}" for job, gain in gains.items()
    )
    return Verdict(get_status(holds), f"Sharing in all blocks {listed} in consistency.")


def build_transformer_claims(judge_rate: Callable[[Comparison], Verdict]) -> tuple[Claim, ...]:
    """Return the claims in the order of RESULTS.md.

    Args:
        judge_rate: of the ablation of the sampling rate, as for the U-Net.
    """
    claim = partial(Claim, editions=(2,), denoiser="transformer")
    rates = replace(RATES, name="dit_sampling_rate")
    positions = Sweep("dit_positions", "ablation_positions", "stories", 48)
    blocks = Sweep("dit_blocks", "ablation_transformer_blocks", "stories", 48)
    keeping = partial(judge_keeping, smallest_gain=SMALLEST_GAIN)
    compared = ("consistency", "alignment")
    return (
        claim("dit_keeping", rates, keeping, compared, STORY_METRICS, jobs=("csa.rate=0", "csa.rate=0.5")),
        claim("dit_sampling_rate", rates, judge_rate, ("consistency",), STORY_METRICS),
        claim("dit_positions", positions, judge_positions, compared, STORY_METRICS),
        claim("dit_blocks", blocks, judge_blocks, compared, STORY_METRICS, baseline="csa.blocks=all"),
        replace(REGIONS_CLAIM, name="dit_regions", sweep=replace(REGIONS, name="dit_regions"), denoiser="transformer"),
    )
