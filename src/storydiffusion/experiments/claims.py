"""The claims that RESULTS.md tests: the sweep that measures each, the metrics shown, and the rule that judges it.

A verdict is computed from the sweep's results only. RESULTS.md quotes what the paper says.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

from storydiffusion.evaluation.compare import Comparison
from storydiffusion.evaluation.metrics.registry import METRICS, PROMPTED_ATTRIBUTES
from storydiffusion.experiments.judging import (
    RATES,
    STORY_METRICS,
    Claim,
    Sweep,
    Verdict,
    describe_difference,
    describe_points,
    get_difference,
    get_mean,
    get_status,
)
from storydiffusion.experiments.region_claims import REGION_CLAIMS
from storydiffusion.experiments.scene_claims import SCENE_CLAIMS
from storydiffusion.experiments.transformer_claims import build_transformer_claims

if TYPE_CHECKING:
    from storydiffusion.evaluation.statistics import PairedDifference

LEVEL = 0.01  # of significance
STRICT_LEVEL = 0.001
LARGEST_LOSS = 0.02  # of alignment, as a share of the images
DECIDING_ERRORS = ("perceptual_error", "place_error")
LOOKS_AND_SCENE = tuple(
    f"frame_{name}"
    for name in (
        "hair", "pattern", "bottom", "hat_color", "accessory", "looks", "action", "place", "object",
    )
)  # fmt: skip
CONTENT = ("frame_kind", "tone", "shirt", "hat")  # the attributes of a character that are the largest to see
CLIP_METRICS = (
    *DECIDING_ERRORS, "boundary_frame_error", "pixel_change", *CONTENT, "frame_looks", "middle_action", "lpips_first",
    "lpips_frames", "clipsim_first", "clipsim_frames",
)  # fmt: skip
LEAST_CARRIED = 0.9  # share of frames whose attributes tokens carry
MOST_EARLY = 0.05  # share of the second scene's attributes in the second frame
LEAST_JUMPING = 0.8  # share of jumps whose central frame shows them


def judge_sharing(comparison: Comparison) -> Verdict:
    """Judge table 1: sharing at rate 0.5 raises consistency, and images still show the prompted attributes."""
    off, half = "csa.rate=0", "csa.rate=0.5"
    gain = get_difference(comparison, "consistency", half, off)
    lost = {name: -get_difference(comparison, name, half, off).mean for name in PROMPTED_ATTRIBUTES}
    most = max(lost, key=lambda name: lost[name])
    holds = gain.mean > 0 and gain.p_value < STRICT_LEVEL and lost[most] <= LARGEST_LOSS
    alignment = (
        f"the largest loss of alignment is {100 * lost[most]:.1f} points, of {most}"
        if lost[most] > 0
        else f"no alignment is lost in {', '.join(PROMPTED_ATTRIBUTES)}"
    )
    return Verdict(
        get_status(holds),
        f"Sharing at rate 0.5 changes consistency by {describe_points(gain)}; {alignment}. The order among IP-Adapter, "
        "PhotoMaker and StoryDiffusion cannot be judged here: the baselines exist only as weights for SD1.5 and SDXL.",
    )


def judge_rate(comparison: Comparison) -> Verdict:
    """Judge the ablation of the sampling rate: consistency rises with the rate, and clearly from 0.3 to 0.5."""
    means = {job: get_mean(comparison, "consistency", job) for job in comparison.labels}
    falls = [comparison.labels[job] for before, job in pairwise(means) if means[job] <= means[before]]
    step = get_difference(comparison, "consistency", "csa.rate=0.5", "csa.rate=0.3")
    rises = f"falls at {', '.join(falls)}" if falls else "rises from rate to rate"
    return Verdict(
        get_status(not falls and step.mean > 0 and step.p_value < LEVEL),
        f"Consistency {rises}, and changes by {describe_points(step)} from 0.3 to 0.5. "
        "The rate at which SDXL begins to keep a subject cannot be judged at this scale.",
    )


def judge_sampler(comparison: Comparison) -> Verdict:
    """Judge the progressive sampler: it samples more tokens of nearer panels, at the same total number of tokens."""
    uniform = "csa.rate=0.25,csa.sampler=uniform"
    progressive = "csa.rate=0.3333,csa.sampler=progressive"
    names = ("neighbor_consistency", "consistency")
    near, every = (get_difference(comparison, name, progressive, uniform) for name in names)
    holds = near.mean > 0 and near.p_value < LEVEL and not (every.mean < 0 and every.p_value < LEVEL)
    return Verdict(
        get_status(holds),
        "At an equal number of tokens per story, the progressive sampler changes neighbor consistency by "
        f"{describe_points(near)} and the consistency of all pairs by {describe_points(every)}. Its effect on emotion "
        "cannot be judged here.",
    )


def judge_variant(comparison: Comparison) -> Verdict:
    """Judge the variants: equations 2 and 3, Algorithm 1 and the official code differ in what they share."""
    off = "csa=off"
    gains = {job: get_difference(comparison, "consistency", job, off) for job in comparison.labels if job != off}
    fail = [comparison.labels[job] for job, gain in gains.items() if gain.mean <= 0 or gain.p_value >= STRICT_LEVEL]
    ordered = sorted(gains, key=lambda job: -gains[job].mean)
    listed = ", ".join(f"{comparison.labels[job]} {100 * gains[job].mean:+.1f}" for job in ordered)
    spread = get_difference(comparison, "consistency", ordered[0], ordered[-1])
    every = f"Not every variant raises consistency ({', '.join(fail)})" if fail else "Every variant raises consistency"
    return Verdict(
        get_status(not fail),
        f"{every}, in points: {listed}; the first exceeds the last by {describe_points(spread)}.",
    )


def judge_neighbor_window(comparison: Comparison) -> Verdict:
    """Judge long stories whose panels read only a few nearest ones, as with Algorithm 1's sliding window."""
    return _judge_reach(comparison, "neighbor_window", "csa.neighbor_window", "nearest panels on both sides")


def judge_anchor_panels(comparison: Comparison) -> Verdict:
    """Judge long stories whose panels read the first ones; four in the official code."""
    return _judge_reach(comparison, "anchor_panels", "csa.anchor_panels", "first panels of the story")


def judge_predictor(comparison: Comparison) -> Verdict:
    """Judge the analogue of table 2: the predictor against its baselines, by errors of the frames between."""
    ours = "benchmark.method=predictor"
    found = {
        (metric, method): get_difference(comparison, metric, ours, f"benchmark.method={method}")
        for method in ("cross-fade", "interpolation", "no_semantic_tokens")
        for metric in DECIDING_ERRORS
    }
    better = {key: one.mean < 0 and one.p_value < LEVEL for key, one in found.items()}
    listed = "; ".join(
        f"to {method.replace('_', ' ')}: "
        + ", ".join(
            f"{METRICS[metric].label} {describe_difference(found[metric, method])}" for metric in DECIDING_ERRORS
        )
        for method in dict.fromkeys(method for _, method in found)
    )
    return Verdict(
        get_status(all(better.values())),
        f"The predictor's errors are smaller with p < {LEVEL} in {sum(better.values())} of {len(better)} comparisons "
        f"(differences {listed}). The order among SEINE, SparseCtrl and StoryDiffusion cannot be judged at this scale.",
    )


def judge_tokens(comparison: Comparison) -> Verdict:
    """Judge the paper's form, conditioned on semantic tokens only: tokens help, and predicted ones more.

    Predicted tokens also show the action of the true frames more often than interpolated ones, and keep the looks.
    """
    ours = "benchmark.method=predictor"

    def compare(metric: str, method: str) -> "PairedDifference":
        return get_difference(comparison, metric, ours, f"benchmark.method={method}")

    found = {
        method: {metric: compare(metric, method) for metric in DECIDING_ERRORS}
        for method in ("no_semantic_tokens", "interpolation")
    }
    action, looks = (compare(metric, "interpolation") for metric in ("middle_action", "frame_looks"))
    nearer = all(one.mean < 0 and one.p_value < LEVEL for errors in found.values() for one in errors.values())
    moves = action.mean > 0 and action.p_value < LEVEL
    keeps = not (looks.mean < 0 and looks.p_value < LEVEL)
    listed = [
        ", ".join(f"{METRICS[metric].label} {describe_difference(one)}" for metric, one in found[method].items())
        for method in found
    ]
    return Verdict(
        get_status(nearer and moves and keeps),
        f"Differences of predicted tokens to no tokens: {listed[0]}; to interpolated tokens: {listed[1]}, action in "
        f"the middle {describe_points(action)}, looks and mood {describe_points(looks)}.",
    )


def judge_token_content(comparison: Comparison) -> Verdict:
    """Judge what tokens carry: from the true frames' own, frames show the character, and the ends the given images."""
    true, none = "benchmark.method=true_tokens", "benchmark.method=no_semantic_tokens"
    names = (*CONTENT, "boundary_attributes")
    shares = {name: get_mean(comparison, name, true) for name in names}
    ends = get_difference(comparison, "boundary_perceptual_error", true, none)
    holds = min(shares.values()) >= LEAST_CARRIED and ends.mean < 0 and ends.p_value < LEVEL
    listed = ", ".join(f"{METRICS[name].label} {100 * share:.1f}%" for name, share in shares.items())
    return Verdict(
        get_status(holds),
        f"With the tokens of the true frames, attributes are right in: {listed}, where at least "
        f"{100 * LEAST_CARRIED:.0f}% each are required. The perceptual error of the boundary frames differs from that "
        f"without tokens by {describe_difference(ends)}.",
    )


def judge_scene_changes(comparison: Comparison) -> Verdict:
    """Judge transitions between unrelated images: the second frame does not show the last one yet."""
    early = get_mean(comparison, "early_end", "benchmark.method=predictor")
    return Verdict(
        get_status(early <= MOST_EARLY),
        f"The second frame shows {100 * early:.1f}% of the attributes in which the last image differs from the first; "
        f"at most {100 * MOST_EARLY:.0f}% are required.",
    )


def judge_jumps(comparison: Comparison) -> Verdict:
    """Judge jumps: their central frame is read as a jump."""
    shares = {job: get_mean(comparison, "central_action", job) for job in comparison.labels}
    ours = shares["benchmark.method=predictor"]
    listed = ", ".join(f"{comparison.labels[job]} {100 * share:.1f}%" for job, share in shares.items())
    return Verdict(
        get_status(ours >= LEAST_JUMPING),
        f"The central frame of a jump is read as jumping in: {listed}; at least {100 * LEAST_JUMPING:.0f}% are "
        "required.",
    )


def _methods(*names: str) -> tuple[str, ...]:
    return tuple(f"benchmark.method={name}" for name in names)


SAMPLERS = Sweep("sampler", "ablation_sampler", "stories", 48)
VARIANT = Sweep("variant", "ablation_variant", "stories", 48)
NEIGHBOR_WINDOWS = Sweep("neighbor_window", "ablation_neighbor_window", "stories", 6, ("csa.neighbor_window=0,1,4,31",))
ANCHOR_PANELS = Sweep("anchor_panels", "ablation_anchor_panels", "stories", 6, ("csa.anchor_panels=0,1,4,32",))
CLAMPED = Sweep("predictor", "ablation_video", "clips", 200)
FREE = Sweep(
    "tokens",
    "ablation_video",
    "clips",
    200,
    (
        "benchmark.method=predictor,true_tokens,interpolation,no_semantic_tokens,truth",
        "model.video.boundary_frames=free",
    ),
)
SCENE_CHANGES = Sweep(
    "scene_changes",
    "ablation_video",
    "clips",
    200,
    ("benchmark.motion=scene_change", "benchmark.method=predictor,no_semantic_tokens,cross-fade"),
)
JUMPS = Sweep(
    "jumps",
    "ablation_video",
    "clips",
    200,
    ("benchmark.motion=jumping", "benchmark.method=predictor,interpolation,no_semantic_tokens,truth"),
)

CLAIMS = (
    Claim(
        "sharing", RATES, judge_sharing, ("consistency", "character_similarity"), STORY_METRICS,
        jobs=("csa.rate=0", "csa.rate=0.5"),
    ),
    Claim("sampling_rate", RATES, judge_rate, ("consistency",), STORY_METRICS),
    Claim(
        "sampler", SAMPLERS, judge_sampler, ("neighbor_consistency", "consistency"), STORY_METRICS,
        baseline="csa.rate=0.25,csa.sampler=uniform",
    ),
    Claim("variant", VARIANT, judge_variant, ("consistency",), STORY_METRICS),
    Claim(
        "neighbor_window", NEIGHBOR_WINDOWS, judge_neighbor_window, ("consistency", "neighbor_consistency"),
        STORY_METRICS,
    ),
    Claim("anchor_panels", ANCHOR_PANELS, judge_anchor_panels, ("consistency", "neighbor_consistency"), STORY_METRICS),
    Claim(
        "predictor", CLAMPED, judge_predictor, (*DECIDING_ERRORS, *CONTENT, "frame_looks", "middle_action"),
        (*CLIP_METRICS, "pixel_error"),
    ),
    Claim(
        "tokens", FREE, judge_tokens, (*DECIDING_ERRORS, *CONTENT, "frame_looks", "middle_action"), CLIP_METRICS,
        jobs=_methods("predictor", "interpolation", "no_semantic_tokens"),
    ),
    Claim(
        "token_content", FREE, judge_token_content, ("boundary_perceptual_error", "boundary_attributes"),
        (*CONTENT, *LOOKS_AND_SCENE, "boundary_attributes", "boundary_perceptual_error", *DECIDING_ERRORS),
        baseline="benchmark.method=no_semantic_tokens",
        jobs=_methods("true_tokens", "predictor", "no_semantic_tokens", "truth"),
    ),
    Claim(
        "scene_changes", SCENE_CHANGES, judge_scene_changes, ("early_end",),
        ("early_end", "boundary_frame_error", "lpips_first", "lpips_frames"),
    ),
    Claim(
        "jumps", JUMPS, judge_jumps, (*DECIDING_ERRORS, "central_action"),
        (*DECIDING_ERRORS, "central_action", "middle_action", *CONTENT),
    ),
    *SCENE_CLAIMS,
    *REGION_CLAIMS,
    *build_transformer_claims(judge_rate),
)  # fmt: skip
"""In the order of RESULTS.md"""


def _judge_reach(comparison: Comparison, name: str, key: str, read: str) -> Verdict:
    """Judge bounds on the panels that a panel reads, from none to all."""
    jobs = list(comparison.labels)
    none, every = jobs[0], jobs[-1]
    gains = {job: get_difference(comparison, "consistency", job, none) for job in jobs[1:]}
    whole = gains[every].mean
    bounded = {job: gain for job, gain in gains.items() if job != every}
    holds = all(gain.mean > 0 and gain.p_value < LEVEL for gain in bounded.values())
    listed = ", ".join(
        f"{name} {job.removeprefix(f'{key}=')} {describe_points(gain)}"
        + (f", {100 * gain.mean / whole:.0f}% of the gain from all" if whole > 0 else "")
        for job, gain in bounded.items()
    )
    return Verdict(
        get_status(holds),
        f"Reading only the {read} changes consistency by: {listed}; reading all by {describe_points(gains[every])}.",
    )
