"""The claims that RESULTS.md puts to the test: which sweep measures each, what is shown of it, and how it is judged.

A judgement is computed from the sweep's results and from nothing else. What the paper says is told in RESULTS.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from storydiffusion.evaluation.benchmarks.stories import TOLD
from storydiffusion.evaluation.compare import Collected

if TYPE_CHECKING:
    from storydiffusion.evaluation.statistics import PairedDifference

Status = Literal["reproduced", "not reproduced"]
Subjects = Literal["stories", "clips"]

LEVEL = 0.01  # of significance
STRICT_LEVEL = 0.001
MOST_LOST = 0.02  # of text alignment, as a share of the pictures
OF_STORIES = ("consistency", "neighbours", "alignment", *TOLD, "text-image similarity, 2.5 ×", "character similarity")
MIDDLE = ("perceptual error", "place error")
OF_CLIPS = (
    *MIDDLE, "end error", "motion", "shirt", "hat", "tone", "LPIPS-first", "LPIPS-frames", "CLIPSIM-first",
    "CLIPSIM-frames",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether what was claimed shows in the figures; and how far, and what of it cannot be judged at this scale."""

    status: Status
    sentence: str


@dataclass(frozen=True)
class Sweep:
    """A sweep of infer.py.

    Attributes:
        name: of its folder.
        experiment: in conf/experiment.
        subjects: what each job measures.
        count: how many of them.
        overrides: of the experiment.
    """

    name: str
    experiment: str
    subjects: Subjects
    count: int
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One claim and what decides it.

    Attributes:
        name: of its section in RESULTS.md and of its plot.
        sweep: what measures it.
        judge: what the sweep, which is whole, says of the claim.
        compared: figures whose differences to the baseline are shown.
        shown: all figures that are shown.
        baseline: job that the others are compared with; None: the first planned.
        jobs: those that are shown; None: all.
    """

    name: str
    sweep: Sweep
    judge: Callable[[Collected], Verdict]
    compared: tuple[str, ...]
    shown: tuple[str, ...]
    baseline: str | None = None
    jobs: tuple[str, ...] | None = None


def judge_sharing(collected: Collected) -> Verdict:
    """Table 1: attention shared at rate 0.5 makes characters alike, and pictures still show what was told."""
    off, half = "csa.rate=0", "csa.rate=0.5"
    gain = _difference(collected, "consistency", half, off)
    lost = {name: -_difference(collected, name, half, off).mean for name in TOLD}
    most = max(lost, key=lambda name: lost[name])
    holds = gain.mean > 0 and gain.p_value < STRICT_LEVEL and lost[most] <= MOST_LOST
    alignment = (
        f"{most} loses most of what was told, {100 * lost[most]:.1f} points"
        if lost[most] > 0
        else f"nothing of {', '.join(TOLD)} is lost"
    )
    return Verdict(
        _status(holds),
        f"Sharing at rate 0.5 changes consistency by {_points(gain)}; {alignment}. The order among IP-Adapter, "
        "PhotoMaker and StoryDiffusion cannot be judged here: the others exist as weights for SD1.5 and SDXL alone.",
    )


def judge_rate(collected: Collected) -> Verdict:
    """The ablation of the sampling rate: more is more consistent, and 0.5 holds what 0.3 does not."""
    means = {job: _mean(collected, "consistency", job) for job in collected.labels}
    falls = [collected.labels[job] for before, job in pairwise(means) if means[job] <= means[before]]
    step = _difference(collected, "consistency", "csa.rate=0.5", "csa.rate=0.3")
    rises = f"falls at {', '.join(falls)}" if falls else "rises from rate to rate"
    return Verdict(
        _status(not falls and step.mean > 0 and step.p_value < LEVEL),
        f"Consistency {rises}, and from 0.3 to 0.5 it changes by {_points(step)}. At which rate SDXL begins to hold a "
        "subject cannot be judged at this scale.",
    )


def judge_sampler(collected: Collected) -> Verdict:
    """The progressive sampler: nearer panels are read more, at the same number of tokens in all."""
    uniform = "csa.rate=0.25,csa.sampler=uniform"
    progressive = "csa.rate=0.3333,csa.sampler=progressive"
    near, every = (_difference(collected, name, progressive, uniform) for name in ("neighbours", "consistency"))
    holds = near.mean > 0 and near.p_value < LEVEL and not (every.mean < 0 and every.p_value < LEVEL)
    return Verdict(
        _status(holds),
        f"At an equal number of tokens in a story, progressive changes the agreement of neighbouring panels by "
        f"{_points(near)} and that of all pairs by {_points(every)}. What it does to emotion cannot be judged here, as "
        "StoryWorld has none.",
    )


def judge_variant(collected: Collected) -> Verdict:
    """Equations 2 and 3, Algorithm 1 and the official code: different forms of what is called one method."""
    off = "csa=off"
    gains = {job: _difference(collected, "consistency", job, off) for job in collected.labels if job != off}
    fail = [collected.labels[job] for job, gain in gains.items() if gain.mean <= 0 or gain.p_value >= STRICT_LEVEL]
    ordered = sorted(gains, key=lambda job: -gains[job].mean)
    told = ", ".join(f"{collected.labels[job]} {100 * gains[job].mean:+.1f}" for job in ordered)
    spread = _difference(collected, "consistency", ordered[0], ordered[-1])
    every = f"Not every form raises consistency ({', '.join(fail)})" if fail else "Every form raises consistency"
    return Verdict(
        _status(not fail),
        f"{every}, in points: {told}; between the first and the last of these lie {_points(spread)}.",
    )


def judge_neighbor_window(collected: Collected) -> Verdict:
    """Long stories: panels that read a few near ones only, as Algorithm 1's window moves along the story."""
    return _judge_reach(collected, "neighbor_window", "csa.neighbor_window", "nearest panels before and after it")


def judge_anchor_panels(collected: Collected) -> Verdict:
    """Long stories in the official code: all panels read the first four."""
    return _judge_reach(collected, "anchor_panels", "csa.anchor_panels", "first panels of the story")


def judge_predictor(collected: Collected) -> Verdict:
    """Table 2's analogue: the predictor against its baselines, by the frames between, whose truth is known."""
    ours = "benchmark.way=predictor"
    found = {
        (figure, way): _difference(collected, figure, ours, f"benchmark.way={way}")
        for way in ("cross-fade", "interpolation", "no_semantic_tokens")
        for figure in MIDDLE
    }
    better = {key: one.mean < 0 and one.p_value < LEVEL for key, one in found.items()}
    told = "; ".join(
        f"than {way.replace('_', ' ')}: " + ", ".join(f"{figure} {_plain(found[figure, way])}" for figure in MIDDLE)
        for way in dict.fromkeys(way for _, way in found)
    )
    return Verdict(
        _status(all(better.values())),
        f"The predictor's errors are smaller with p < {LEVEL} in {sum(better.values())} of {len(better)} comparisons "
        f"(differences, {told}). The order among SEINE, SparseCtrl and StoryDiffusion cannot be judged at this scale.",
    )


def judge_tokens(collected: Collected) -> Verdict:
    """Semantic tokens alone tell of the ends, as in the paper: are they read, and is predicting more than mixing?"""
    ours = "benchmark.way=predictor"
    found = {
        way: {figure: _difference(collected, figure, ours, f"benchmark.way={way}") for figure in MIDDLE}
        for way in ("no_semantic_tokens", "interpolation")
    }
    holds = [all(one.mean < 0 and one.p_value < LEVEL for one in found[way].values()) for way in found]
    told = [", ".join(f"{figure} {_plain(one)}" for figure, one in found[way].items()) for way in found]
    return Verdict(
        _status(all(holds)),
        f"Tokens against none, differences: {told[0]}; predicted against interpolated ones: {told[1]}.",
    )


RATES = Sweep("sampling_rate", "ablation_sampling_rate", "stories", 48)
SAMPLERS = Sweep("sampler", "ablation_sampler", "stories", 48)
VARIANT = Sweep("variant", "ablation_variant", "stories", 48)
WINDOWS = Sweep("neighbor_window", "ablation_neighbor_window", "stories", 6, ("csa.neighbor_window=0,1,4,31",))
BANKS = Sweep("anchor_panels", "ablation_anchor_panels", "stories", 6, ("csa.anchor_panels=0,1,4,32",))
GIVEN_ENDS = Sweep("predictor", "ablation_video", "clips", 200)
TOLD_ENDS = Sweep(
    "tokens",
    "ablation_video",
    "clips",
    100,
    ("benchmark.way=predictor,interpolation,no_semantic_tokens", "model.video.boundary_frames=free"),
)

CLAIMS = (
    Claim(
        "sharing", RATES, judge_sharing, ("consistency", "character similarity"), OF_STORIES,
        jobs=("csa.rate=0", "csa.rate=0.5"),
    ),
    Claim("sampling_rate", RATES, judge_rate, ("consistency",), OF_STORIES),
    Claim(
        "sampler", SAMPLERS, judge_sampler, ("neighbours", "consistency"), OF_STORIES,
        baseline="csa.rate=0.25,csa.sampler=uniform",
    ),
    Claim("variant", VARIANT, judge_variant, ("consistency",), OF_STORIES),
    Claim("neighbor_window", WINDOWS, judge_neighbor_window, ("consistency", "neighbours"), OF_STORIES),
    Claim("anchor_panels", BANKS, judge_anchor_panels, ("consistency", "neighbours"), OF_STORIES),
    Claim("predictor", GIVEN_ENDS, judge_predictor, MIDDLE, OF_CLIPS),
    Claim("tokens", TOLD_ENDS, judge_tokens, MIDDLE, OF_CLIPS),
)  # fmt: skip
"""in the order of RESULTS.md"""


def _judge_reach(collected: Collected, name: str, key: str, whom: str) -> Verdict:
    """Bounds on whom a panel reads, from none at all to everybody."""
    jobs = list(collected.labels)
    none, everybody = jobs[0], jobs[-1]
    gains = {job: _difference(collected, "consistency", job, none) for job in jobs[1:]}
    whole = gains[everybody].mean
    bounded = {job: gain for job, gain in gains.items() if job != everybody}
    holds = all(gain.mean > 0 and gain.p_value < LEVEL for gain in bounded.values())
    told = ", ".join(
        f"{name} {job.removeprefix(f'{key}=')} {_points(gain)}"
        + (f", {100 * gain.mean / whole:.0f}% of what all give" if whole > 0 else "")
        for job, gain in bounded.items()
    )
    return Verdict(
        _status(holds),
        f"Reading only the {whom} changes consistency by: {told}; reading all by {_points(gains[everybody])}.",
    )


def _status(holds: bool) -> Status:
    return "reproduced" if holds else "not reproduced"


def _mean(collected: Collected, figure: str, job: str) -> float:
    mean = collected.cell(figure, job).mean
    assert mean is not None, "a whole sweep has every figure"
    return mean.mean


def _difference(collected: Collected, figure: str, job: str, other: str) -> "PairedDifference":
    found = collected.difference(figure, job, other)
    assert found is not None, "a whole sweep has every figure"
    return found


def _points(difference: "PairedDifference") -> str:
    from storydiffusion.evaluation.tables import points

    return f"{points(difference)} points ({_p(difference)})"


def _plain(difference: "PairedDifference") -> str:
    return f"{difference.mean:+.3f} ± {difference.standard_error:.3f} ({_p(difference)})"


def _p(difference: "PairedDifference") -> str:
    from storydiffusion.evaluation.tables import p_value

    told = p_value(difference)
    return f"p {told}" if told.startswith("<") else f"p = {told}"
