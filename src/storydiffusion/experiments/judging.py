"""What a claim of RESULTS.md is, and what the rules that judge claims share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from storydiffusion.errors import UserError
from storydiffusion.evaluation.compare import Comparison
from storydiffusion.evaluation.metrics.registry import METRICS, PROMPTED_ATTRIBUTES

if TYPE_CHECKING:
    from storydiffusion.evaluation.statistics import PairedDifference

Status = Literal["reproduced", "not reproduced"]
Items = Literal["stories", "clips", "images"]

STORY_METRICS = (
    "consistency", "neighbor_consistency", "alignment", *PROMPTED_ATTRIBUTES, "clip_score", "character_similarity",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether a claim shows in the metrics, by how much, and which part of it cannot be judged at this scale."""

    status: Status
    sentence: str


@dataclass(frozen=True)
class Sweep:
    """A sweep of infer.py.

    Attributes:
        name: the name of its folder.
        experiment: the file in conf/experiment.
        items: what each job measures.
        count: the number of items.
        overrides: overrides of the experiment.
    """

    name: str
    experiment: str
    items: Items
    count: int
    overrides: tuple[str, ...] = ()


RATES = Sweep("sampling_rate", "ablation_sampling_rate", "stories", 48)
"""That over sampling rates, which several claims share"""


@dataclass(frozen=True)
class Claim:
    """One claim and the rule that judges it.

    Attributes:
        name: the name of its section in RESULTS.md and of its plot.
        sweep: the sweep that measures it.
        judge: a complete sweep → verdict.
        compared: metrics whose differences to the baseline are shown.
        shown: all metrics that are shown.
        baseline: the job that the others are compared with; None: the first planned.
        jobs: the jobs that are shown; None: all.
        editions: those of StoryWorld whose models the claim is about.
        denoiser: that of these models, `unet` or `transformer`.
    """

    name: str
    sweep: Sweep
    judge: Callable[[Comparison], Verdict]
    compared: tuple[str, ...]
    shown: tuple[str, ...]
    baseline: str | None = None
    jobs: tuple[str, ...] | None = None
    editions: tuple[int, ...] = (1, 2)
    denoiser: str = "unet"


def get_status(holds: bool) -> Status:
    """Return the status of a claim that holds or not."""
    return "reproduced" if holds else "not reproduced"


def get_mean(comparison: Comparison, metric: str, job: str) -> float:
    """Return the mean of a metric of one job.

    Raises:
        UserError: fewer than two values, as where few prompts name a thing.
    """
    mean = comparison.get_cell(metric, job).mean
    if mean is None:
        raise UserError(f"{comparison.name} has too few values of {METRICS[metric].label}. Measure more items")
    return mean.mean


def get_difference(comparison: Comparison, metric: str, job: str, other: str) -> "PairedDifference":
    """Return a metric of one job minus that of another, paired by items.

    Raises:
        UserError: fewer than two pairs, as where few clips have both characters.
    """
    found = comparison.get_difference(metric, job, other)
    if found is None:
        raise UserError(f"{comparison.name} has too few values of {METRICS[metric].label}. Measure more items")
    return found


def describe_points(difference: "PairedDifference") -> str:
    """Return a difference of shares in points, with its p."""
    from storydiffusion.evaluation.tables import format_points

    return f"{format_points(difference)} points ({_describe_p(difference)})"


def describe_difference(difference: "PairedDifference") -> str:
    """Return a difference in the metric's own unit, with its p."""
    from storydiffusion.evaluation.tables import format_difference

    return f"{format_difference(difference)} ({_describe_p(difference)})"


def _describe_p(difference: "PairedDifference") -> str:
    from storydiffusion.evaluation.tables import format_p

    p = format_p(difference)
    return f"p {p}" if p.startswith("<") else f"p = {p}"
