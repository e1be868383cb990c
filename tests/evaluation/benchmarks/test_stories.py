"""The benchmark `stories`: its metrics on readings whose answer is known, and its generation on a tiny model."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.benchmark import READ_SIZE
from storydiffusion.evaluation.benchmarks.stories import generate_stories
from storydiffusion.evaluation.benchmarks.story_sets import get_attribute_evidence
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.evaluation.statistics import estimate, paired_difference
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.storyworld.images import IMAGE_SIZE
from storydiffusion.storyworld.stories import FrozenStory, load_stories
from storydiffusion.storyworld.truth import ATTRIBUTES
from tests.conftest import compose_config
from tests.helpers.world_model import build_world_model

STORIES = load_stories()


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_model(tmp_path_factory.mktemp("world") / "model")


def measure(story: FrozenStory, readings: list[dict[str, str]]) -> dict[str, float | None]:
    return compute_metrics("story", get_attribute_evidence(story, readings))


def read_perfectly(story: FrozenStory) -> list[dict[str, str]]:
    """Return readings that match the prompts, and are constant where the prompts leave attributes open."""
    chosen = {name: values[-1] for name, values in ATTRIBUTES.items()}
    return [{**chosen, **panel.prompted} for panel in story.panels]


def read_randomly(story: FrozenStory, rng: random.Random) -> list[dict[str, str]]:
    return [{name: rng.choice(values) for name, values in ATTRIBUTES.items()} for _ in story.panels]


def test_perfect_images_have_full_marks():
    for story in STORIES:
        metrics = measure(story, read_perfectly(story))
        assert {value for value in metrics.values() if value is not None} == {1}, story
        assert (metrics["named_shirt"] is None) == ("shirt" not in story.panels[0].prompted)


@pytest.mark.parametrize("name", ["kind", "action", "place", "object"])
def test_one_wrong_image_of_four_costs_a_quarter(name):
    readings = read_perfectly(STORIES[0])
    readings[2][name] = "something else"
    metrics = measure(STORIES[0], readings)
    assert metrics.pop(name) == 0.75
    assert metrics.pop("alignment") == (1 if name == "object" else pytest.approx(11 / 12))
    assert {value for value in metrics.values() if value is not None} == {1}


def test_prompted_attributes_do_not_count_as_consistency():
    for story in STORIES:
        readings = read_perfectly(story)
        for name in (*story.panels[0].prompted, *story.open):
            readings[0][name] = ATTRIBUTES[name][0]
        shares = [1 if name == "hat_color" else 0.5 for name in story.open]  # 3 of 6 pairs; a bare head has no color
        assert measure(story, readings)["consistency"] == pytest.approx(sum(shares) / len(shares))


def test_random_readings_are_at_chance_and_far_below_perfect_ones():
    rng = random.Random(0)
    off = [measure(story, read_randomly(story, rng)) for story in STORIES]
    shared = [measure(story, read_perfectly(story)) for story in STORIES]

    def values(metrics: list[dict[str, float | None]], name: str) -> list[float]:
        return [value for one in metrics if (value := one[name]) is not None]

    for name in ("kind", "action", "place", "object"):
        mean = estimate(values(off, name))
        assert abs(mean.mean - 1 / len(ATTRIBUTES[name])) < 4 * mean.standard_error
    consistency = estimate(values(off, "consistency"))
    assert abs(consistency.mean - 0.23) < 0.05
    difference = paired_difference(values(shared, "consistency"), values(off, "consistency"))
    assert difference.mean == pytest.approx(1 - consistency.mean)
    assert difference.p_value < 1e-6
    assert len(values(shared, "named_shirt")) == sum("shirt" in story.panels[0].prompted for story in STORIES)


def test_stories_generated_together_are_as_generated_alone(world_model):
    from storydiffusion.loaders.text_to_image import load_story_model

    overrides = [f"model.path={world_model}", "model.steps=2", "model.device=cpu"]
    config = compose_config("model-card", *overrides).model
    model = load_story_model(resolve_model(config))

    def generate(stories: list[FrozenStory], rate: float) -> np.ndarray:
        images = generate_stories(model, config, stories, ConsistentSelfAttentionConfig(rate=rate), seed=0)
        return np.stack([np.asarray(image, float) for image in images])

    together = generate(STORIES[:2], 0.5)
    alone = np.concatenate([generate([story], 0.5) for story in STORIES[:2]])
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together - generate(STORIES[:2], 0)).max() > 1, "nothing is shared"


def test_images_that_are_not_finite_are_refused(world_model):
    from storydiffusion.loaders.text_to_image import load_story_model

    config = compose_config("model-card", f"model.path={world_model}", "model.steps=1", "model.device=cpu").model
    model = load_story_model(resolve_model(config))
    pipe: Any = model.pipe
    with torch.no_grad():
        next(pipe.vae.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the images that the VAE decoded are not finite"):
        generate_stories(model, config, STORIES[:1], ConsistentSelfAttentionConfig(), seed=0)


def test_the_classifier_reads_the_size_that_storyworld_draws():
    assert READ_SIZE == IMAGE_SIZE
