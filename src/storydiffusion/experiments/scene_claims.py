"""The claims about images of StoryWorld's second edition: what prompts name is drawn, and sharing keeps the rest."""

from functools import partial

from storydiffusion.evaluation.compare import Comparison
from storydiffusion.evaluation.metrics.registry import METRICS
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
from storydiffusion.storyworld.scene import MOODS

LEVEL = 0.001  # of significance
SMALLEST_GAIN, LARGEST_LOSS = 0.30, 0.01  # of consistency and alignment at rate 0.5, as shares
TARGETS = {
    "kind": 0.99, "action": 0.98, "place": 0.99, "named_shirt": 0.95, "named_hat": 0.93, "side": 0.95,
    "pair_kinds_and_sides": 0.90, "pair_looks": 0.85, "empty": 0.98,
}  # fmt: skip
"""Metric → smallest share of images."""
LARGEST_SCORE_LOSS = 0.02  # of CLIPScore
EMOTION_METRICS = ("emo_score", "emo_a", "emo_score_2", "text_image_similarity", "clip_score", "character_similarity")
EMOTION_JOBS = tuple(
    f"benchmark.prompts={prompts},csa.rate={rate},csa.sampler={sampler}"
    for prompts, rate, sampler in (
        ("neutral", "0.25", "uniform"), ("emotion", "0.25", "uniform"), ("emotion", "0.3333", "progressive"),
    )
)  # fmt: skip
"""neither; emotion prompts alone; with the progressive sampler, at the rate that reads as many tokens"""
SMALLEST_MOOD, SMALLEST_OF_ONE_MOOD = 0.85, 0.5
MOOD_METRICS = tuple(f"mood_{mood}" for mood in MOODS)
OTHER_IMAGE_METRICS = (
    "object", "named_attire", "named_pattern", "named_hat_color", "named_no_hat", "named_bottom", "named_accessory",
    "characters", "pair_kinds", "pair_sides",
)  # fmt: skip


def judge_prompts(comparison: Comparison) -> Verdict:
    """Judge the accuracy of single images: every metric of TARGETS reaches its target."""
    (job,) = comparison.results
    means = {name: get_mean(comparison, name, job) for name in TARGETS}
    missed = [
        f"{METRICS[name].label} {100 * mean:.1f} instead of {100 * TARGETS[name]:.0f}%"
        for name, mean in means.items()
        if mean < TARGETS[name]
    ]
    reached = f"{len(TARGETS) - len(missed)} of {len(TARGETS)} targets are reached"
    return Verdict(get_status(not missed), f"{reached}; missed: {', '.join(missed)}." if missed else f"{reached}.")


def judge_moods(comparison: Comparison) -> Verdict:
    """Judge whether moods that prompts name are the moods that are read: on average, and each more often than not."""
    (job,) = comparison.results
    mean, each = get_mean(comparison, "mood", job), {name: get_mean(comparison, name, job) for name in MOOD_METRICS}
    weakest = min(each, key=lambda name: each[name])
    return Verdict(
        get_status(mean >= SMALLEST_MOOD and each[weakest] > SMALLEST_OF_ONE_MOOD),
        f"Of named moods, {100 * mean:.1f}% are read; the least often is {weakest.removeprefix('mood_')}, with "
        f"{100 * each[weakest]:.1f}%.",
    )


def judge_keeping(comparison: Comparison, smallest_gain: float = SMALLEST_GAIN) -> Verdict:
    """Judge sharing at rate 0.5: consistency rises by `smallest_gain`, and alignment falls by at most LARGEST_LOSS."""
    off, half = "csa.rate=0", "csa.rate=0.5"
    gain, change = (get_difference(comparison, name, half, off) for name in ("consistency", "alignment"))
    holds = gain.mean >= smallest_gain and gain.p_value < LEVEL and change.mean >= -LARGEST_LOSS
    return Verdict(
        get_status(holds),
        f"Sharing at rate 0.5 changes consistency by {describe_points(gain)} and alignment by "
        f"{describe_points(change)}.",
    )


def judge_emotion(comparison: Comparison) -> Verdict:
    """Judge prompts made from an emotion with the progressive sampler, against neither: Emo-Score and similarity.

    Both samplers read the same total of tokens.
    """
    neither, prompts, both = EMOTION_JOBS
    emotion, score = (get_difference(comparison, name, both, neither) for name in ("emo_score", "clip_score"))
    by_prompts, by_sampler = (
        get_difference(comparison, "emo_score", *pair) for pair in ((prompts, neither), (both, prompts))
    )
    return Verdict(
        get_status(emotion.mean > 0 and emotion.p_value < LEVEL and score.mean >= -LARGEST_SCORE_LOSS),
        "Emotion prompts and the progressive sampler together change Emo-Score by "
        f"{describe_difference(emotion)} and CLIPScore by {describe_difference(score)}; the prompts alone change "
        f"Emo-Score by {describe_difference(by_prompts)}, and the sampler, where prompts name the emotion, by "
        f"{describe_difference(by_sampler)}.",
    )


IMAGES = Sweep("text2image", "measure_text2image", "images", 600)
JOBS = ("csa.rate=0,0.5",)
TWO_CHARACTERS = Sweep("two_characters", RATES.experiment, "stories", 32, (*JOBS, "benchmark.characters=2"))
EMOTIONS = Sweep("emotion", "ablation_emotion", "stories", 64)
TEN_PANELS = Sweep("ten_panels", RATES.experiment, "stories", 48, (*JOBS, "benchmark.panels=10", "benchmark.batch=2"))

_SecondEditionClaim = partial(Claim, editions=(2,))
_KEEPING = ("consistency", "alignment")
_KEPT_METRICS = (*STORY_METRICS, "named_attire", "mood")

SCENE_CLAIMS: tuple[Claim, ...] = (
    _SecondEditionClaim("prompts", IMAGES, judge_prompts, (), (*TARGETS, *OTHER_IMAGE_METRICS)),
    _SecondEditionClaim("moods", IMAGES, judge_moods, (), ("mood", *MOOD_METRICS)),
    _SecondEditionClaim(
        "keeping_one", RATES, judge_keeping, _KEEPING, _KEPT_METRICS, jobs=("csa.rate=0", "csa.rate=0.5")
    ),
    _SecondEditionClaim(
        "keeping_two", TWO_CHARACTERS, judge_keeping, _KEEPING, (*_KEPT_METRICS, "pair_kinds_and_sides", "pair_looks")
    ),
    _SecondEditionClaim("keeping_ten_panels", TEN_PANELS, judge_keeping, _KEEPING, _KEPT_METRICS),
    _SecondEditionClaim(
        "emotion",
        EMOTIONS,
        judge_emotion,
        ("emo_score", "clip_score"),
        EMOTION_METRICS,
        baseline=EMOTION_JOBS[0],
    ),
)
"""In the order of RESULTS.md"""
