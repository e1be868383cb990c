"""Every judgement in both directions, on sweeps written by hand whose differences are known."""

from collections.abc import Mapping

import pytest

from storydiffusion.evaluation.benchmarks.stories import TOLD
from storydiffusion.evaluation.compare import Collected
from storydiffusion.evaluation.result import Better, Figure, Result
from storydiffusion.experiments.claims import CLAIMS, MIDDLE, Claim, Verdict
from tests.conftest import ROOT

SUBJECTS = [f"story {number}" for number in range(8)]
NOISE = [0.00, 0.01, -0.01, 0.02, -0.02, 0.01, 0.00, -0.01]

Means = Mapping[str, Mapping[str, float]]
"""Job → figure → mean"""


def claim(name: str) -> Claim:
    return next(one for one in CLAIMS if one.name == name)


def judged(name: str, means: Means) -> Verdict:
    """The verdict where figures have these means, and differences between jobs spread a little."""

    def values(job: int, mean: float) -> list[float | None]:
        return [mean + noise * (1 + job) for noise in NOISE]

    results = {
        job: Result(
            SUBJECTS, {figure: Figure(values(number, mean), "higher") for figure, mean in figures.items()}, {}, []
        )
        for number, (job, figures) in enumerate(means.items())
    }
    labels = {job: job.rpartition("=")[2] for job in means}
    better: dict[str, Better] = dict.fromkeys(next(iter(means.values())), "higher")
    return claim(name).judge(Collected("sweep", ("key",), next(iter(means)), results, labels, better))


def stories(consistency: float, aligned: float = 0.9, neighbours: float = 0.0) -> dict[str, float]:
    return {"consistency": consistency, "neighbours": neighbours, **dict.fromkeys(TOLD, aligned)}


def clips(perceptual: float, place: float) -> dict[str, float]:
    return dict(zip(MIDDLE, (perceptual, place), strict=True))


def rates(*consistency: float, aligned: float = 0.9) -> Means:
    told = zip(("0", "0.1", "0.3", "0.5", "0.7", "1"), consistency, strict=True)
    return {f"csa.rate={rate}": stories(mean, aligned if rate != "0" else 0.9) for rate, mean in told}


def reach(key: str, *consistency: float) -> Means:
    return {f"csa.{key}={count}": stories(mean) for count, mean in zip((0, 1, 4, 32), consistency, strict=True)}


def ways(**errors: tuple[float, float]) -> Means:
    return {f"benchmark.way={way.replace('cross_fade', 'cross-fade')}": clips(*both) for way, both in errors.items()}


RISING = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
UNIFORM, PROGRESSIVE = (
    f"csa.rate={rate},csa.sampler={sampler}" for rate, sampler in (("0.25", "uniform"), ("0.3333", "progressive"))
)


@pytest.mark.parametrize(
    ("name", "means", "holds"),
    [
        ("sharing", rates(*RISING), True),
        ("sharing", rates(*RISING, aligned=0.885), True),
        ("sharing", rates(*RISING, aligned=0.875), False),
        ("sharing", rates(*[0.3] * 6), False),
        ("sharing", rates(*RISING[::-1]), False),
        ("sampling_rate", rates(*RISING), True),
        ("sampling_rate", rates(0.3, 0.4, 0.5, 0.6, 0.7, 0.69), False),
        ("sampling_rate", rates(0.3, 0.4, 0.5, 0.501, 0.7, 0.8), False),
        ("sampler", {UNIFORM: stories(0.5, neighbours=0.5), PROGRESSIVE: stories(0.5, neighbours=0.7)}, True),
        ("sampler", {UNIFORM: stories(0.5, neighbours=0.5), PROGRESSIVE: stories(0.3, neighbours=0.7)}, False),
        ("sampler", {UNIFORM: stories(0.5, neighbours=0.5), PROGRESSIVE: stories(0.5, neighbours=0.5)}, False),
        ("variant", {f"csa={s}": stories(c) for s, c in (("off", 0.3), ("eq2", 0.6), ("b", 0.5))}, True),
        ("variant", {f"csa={s}": stories(c) for s, c in (("off", 0.3), ("eq2", 0.6), ("b", 0.3))}, False),
        ("neighbor_window", reach("neighbor_window", 0.3, 0.4, 0.5, 0.6), True),
        ("neighbor_window", reach("neighbor_window", 0.3, 0.3, 0.5, 0.6), False),
        ("anchor_panels", reach("anchor_panels", 0.3, 0.4, 0.5, 0.6), True),
        ("anchor_panels", reach("anchor_panels", 0.3, 0.4, 0.2, 0.6), False),
        ("anchor_panels", reach("anchor_panels", 0.3, 0.3, 0.3, 0.3), False),
        (
            "predictor",
            ways(predictor=(0.1, 0.1), interpolation=(0.2, 0.2), no_semantic_tokens=(0.3, 0.3), cross_fade=(0.4, 0.4)),
            True,
        ),
        (
            "predictor",
            ways(predictor=(0.1, 0.1), interpolation=(0.2, 0.1), no_semantic_tokens=(0.3, 0.3), cross_fade=(0.4, 0.4)),
            False,
        ),
        ("tokens", ways(predictor=(0.1, 0.1), interpolation=(0.2, 0.2), no_semantic_tokens=(0.3, 0.3)), True),
        ("tokens", ways(predictor=(0.1, 0.1), interpolation=(0.05, 0.2), no_semantic_tokens=(0.3, 0.3)), False),
    ],
)
def test_a_claim_is_reproduced_where_it_shows_and_not_elsewhere(name, means, holds):
    verdict = judged(name, means)
    assert verdict.status == ("reproduced" if holds else "not reproduced")


def test_sentences_tell_the_figures():
    assert "consistency by +30.0 ± " in judged("sharing", rates(*RISING)).sentence
    assert "falls at 1," in judged("sampling_rate", rates(0.3, 0.4, 0.5, 0.6, 0.7, 0.69)).sentence
    near = "neighbor_window"
    assert "neighbor_window 1 +10.0 ± " in judged(near, reach(near, 0.3, 0.4, 0.5, 0.6)).sentence
    assert "33% of what all give" in judged(near, reach(near, 0.3, 0.4, 0.5, 0.6)).sentence
    assert "of what all give" not in judged(near, reach(near, 0.3, 0.4, 0.5, 0.2)).sentence  # they give nothing
    found = ways(predictor=(0.1, 0.1), interpolation=(0.2, 0.1), no_semantic_tokens=(0.3, 0.3), cross_fade=(0.4, 0.4))
    assert "in 5 of 6 comparisons" in judged("predictor", found).sentence


def test_every_claim_has_its_section_and_its_experiment():
    document = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for one in CLAIMS:
        assert f"\n## {one.name}\n" in document
        assert f"<!-- measured: {one.name} -->" in document
        assert (ROOT / "conf" / "experiment" / f"{one.sweep.experiment}.yaml").exists()
