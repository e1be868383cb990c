"""Benchmark `stories`: character consistency and text alignment on StoryWorld's frozen stories.

Story n is generated with seed + n, whatever the batch and the settings of consistent self-attention, so that two runs
can be compared story by story. The attribute classifier reads every image; the miniature's image-text encoder embeds
it. A hat's color counts in those pairs of images where both show a hat. An image metric of a story is the mean over its
images. Stories of the second edition have one character or two; panels share attention where they show one in common.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storydiffusion.baselines.loading import compute_baseline_checksums
from storydiffusion.baselines.portraits import build_benchmark_conditions
from storydiffusion.config import InferConfig, ModelConfig
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.benchmark import (
    Benchmark,
    describe_accuracy,
    find_edition,
    find_encoder,
    get_checksums,
    read_accuracy,
    read_images,
)
from storydiffusion.evaluation.benchmarks.region_truth import read_regions
from storydiffusion.evaluation.benchmarks.story_sets import StorySet, get_story_set, is_frozen
from storydiffusion.evaluation.benchmarks.subject_masks import record_subjects
from storydiffusion.evaluation.metrics.embeddings import find_character_pairs
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.evaluation.networks import load_image_text_encoder
from storydiffusion.loaders.checksums import compute_part_checksums
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.storyworld.descriptions import Span, find_descriptions
from storydiffusion.storyworld.scene_stories import BenchmarkStory

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.evaluation.networks import ImageTextEncoder
    from storydiffusion.pipelines.conditioning import Conditions

Shown = TypeVar("Shown")


def get_settings(config: InferConfig, resolved: ResolvedModel) -> dict[str, Any]:
    """Return the settings that only this benchmark depends on; `weights` are checksums.

    Raises:
        UserError: the model's edition has no such stories, or a baseline is to keep two characters.
    """
    from dataclasses import asdict

    settings: dict[str, Any] = {name: getattr(config, name) for name in ("noise", "steps", "guidance_scale")}
    settings["csa"] = {name: value for name, value in asdict(config.csa).items() if name != "panels_at_once"}
    weights = compute_part_checksums("encoder", find_encoder(resolved.folder))
    settings["baseline"] = {"kind": None}
    if config.baseline is not None:
        weights |= compute_baseline_checksums(config.baseline)
        by_weights = ("weights", "file", "image_encoder", "portraits", "words")
        baseline = asdict(config.baseline).items()
        settings["baseline"] = {name: value for name, value in baseline if name not in by_weights}
        if config.benchmark.characters > 1:
            raise UserError(
                f"a baseline keeps one character, not benchmark.characters={config.benchmark.characters}. Leave out "
                "baseline, or set benchmark.characters=1"
            )
    edition = find_edition(resolved.folder).number
    stories = {name: getattr(config.benchmark, name) for name in ("characters", "panels")}
    stories |= {"edition": edition, "checksum": load_story_set(config, resolved).checksum}
    return {**settings, "weights": weights, "benchmark": stories}


def load_story_set(config: InferConfig, resolved: ResolvedModel) -> StorySet:
    """Return the stories that the configuration requests, of the model's edition."""
    edition = find_edition(resolved.folder).number
    planned = config.benchmark
    return get_story_set(edition, planned.characters, planned.panels, planned.set)


def load_benchmark(config: InferConfig, resolved: ResolvedModel, out: Path) -> Benchmark:
    """Load model, classifier and encoder.

    Args:
        resolved: the model with the run's sampling settings.
        out: the folder for portraits that a baseline generates.
    """
    import torch

    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier

    planned, story_set = config.benchmark, load_story_set(config, resolved)
    chosen = story_set.stories[: planned.stories]
    attention = config.csa.build(config.seed)
    accuracy = read_accuracy(resolved.folder)
    model = load_story_model(resolved)
    classifier = AttributeClassifier.load(resolved.folder / "attribute_classifier")
    encoder = load_image_text_encoder(find_encoder(resolved.folder), torch.device("cpu"))
    conditions = build_benchmark_conditions(config, model, out, chosen, get_checksums(resolved))

    def measure(part: Sequence[BenchmarkStory]) -> list[dict[str, Any]]:
        images = generate_stories(model, resolved.config, part, attention, config.seed, config.noise, conditions(part))
        readings = split_by_story(part, read_images(classifier, images))
        drawn: list[dict[str, Any]] = [{}] * len(part)
        if attention.uses_regions and planned.characters > 1:
            numbers = [story.number for story in part]
            drawn = read_regions(model, resolved.config, numbers, attention, config.seed)
        return [
            {
                "number": story.number,
                "readings": read,
                "metrics": measure_story(story, story_set.collect(story, read) | regions, panels, encoder),
            }
            for story, read, panels, regions in zip(part, readings, split_by_story(part, images), drawn, strict=True)
        ]

    which = "frozen stories" if is_frozen(planned.panels) else "stories from the generator of the frozen ones,"
    length = "" if is_frozen(planned.panels) else f" of {planned.panels} panels"
    characters = "" if planned.characters == 1 else f" and {planned.characters} characters"
    places = "" if planned.set == "varied" else " in places that come again"
    return Benchmark(
        "story",
        chosen,
        [f"story {story.number}{length}" for story in chosen],
        measure,
        {"encoder": encoder.label},
        [
            f"{len(chosen)} {which} of {planned.panels} panels{characters}{places} (checksum "
            f"{story_set.checksum[:12]}), generated by the model {resolved.config.name}, which draws only StoryWorld.",
            story_set.remark,
            describe_accuracy(accuracy),
        ],
    )


def measure_story(
    story: BenchmarkStory, attributes: dict[str, Any], images: "Sequence[Image.Image]", encoder: "ImageTextEncoder"
) -> dict[str, float | None]:
    """Return the metrics of one story by name; the value of an image metric is its mean over the images.

    attributes: the evidence of the attribute metrics.
    """
    import numpy as np

    pixels = [np.asarray(image) for image in images]
    embeddings = np.stack([encoder.embed_image(image) for image in pixels])
    evidence = {
        **attributes,
        "images": pixels,
        "image_embeddings": embeddings,
        "text_embeddings": encoder.embed_texts([panel.prompt for panel in story.panels]),
        "pairs": find_character_pairs(get_casts(story)),
    }
    means = {name: float(values.mean()) for name, values in compute_metrics("image", evidence).items()}
    return compute_metrics("story", evidence) | means


def get_casts(story: BenchmarkStory) -> list[tuple[str, ...]]:
    """Return the names of the characters in each panel, the first named first."""
    return [tuple(map(str, panel.cast)) for panel in story.panels]


def get_descriptions(story: BenchmarkStory) -> list[dict[str, list[Span]]]:
    """Return, for each panel, name of a character → where the prompt describes it, as `find_descriptions` says."""
    return [
        dict(zip(map(str, panel.cast), find_descriptions(panel.prompt, panel.prompted), strict=True))
        for panel in story.panels
    ]


def group_story(pipe: Any, story: BenchmarkStory, attention: "ConsistentSelfAttentionConfig") -> "PanelGroup":
    """Return the panels of a story, with the tokens of their characters where regions need them."""
    from storydiffusion.models.prompt_encoding import find_span_tokens
    from storydiffusion.pipelines.panels import group_panels

    prompts, places = zip(*((panel.prompt, panel.prompted["place"]) for panel in story.panels), strict=True)
    described = get_descriptions(story)
    return group_panels(pipe, attention, prompts, described, places, key=story.number, find_tokens=find_span_tokens)


def generate_stories(
    model: StoryModel,
    config: ModelConfig,
    stories: Sequence[BenchmarkStory],
    attention: "ConsistentSelfAttentionConfig",
    seed: int,
    noise: str = "own",
    conditions: "Conditions | None" = None,
) -> list["Image.Image"]:
    """Generate the images of several stories in one batch, story by story; each is as if generated alone.

    Args:
        noise: see `panel_seeds`.
        conditions: of all panels; None: the prompts only.
    """
    from storydiffusion.pipelines.panels import panel_seeds

    groups = [group_story(model.pipe, story, attention) for story in stories]
    seeds = [each for story in stories for each in panel_seeds(seed + story.number, get_casts(story), noise)]
    prompts = [panel.prompt for story in stories for panel in story.panels]
    if "masks" in attention.needs:
        described = [each for story in stories for each in get_descriptions(story)]
        masks = record_subjects(model, config, prompts, described, seeds)
        for group, own in zip(groups, masks.split([group.panels for group in groups]), strict=True):
            group.masks = own
    return generate_images(model, config, prompts, seeds, attention, groups, conditions)


def generate_images(
    model: StoryModel,
    config: ModelConfig,
    prompts: list[str],
    seeds: list[int],
    attention: Any,
    groups: list[Any] | None,
    conditions: "Conditions | None" = None,
) -> list["Image.Image"]:
    """Generate one image per prompt and seed; each of `groups` shares attention, None being one group.

    Raises:
        UserError: latents or images that are not finite.
    """
    from storydiffusion.attention.plugin import consistent_self_attention
    from storydiffusion.pipelines.conditioning import text_conditions
    from storydiffusion.pipelines.delayed_guidance import call_pipeline
    from storydiffusion.pipelines.panels import finite_images, starting_noise
    from storydiffusion.pipelines.story import get_sampling_defaults

    given = conditions or text_conditions(model.pipe, prompts, [""] * len(prompts))
    noise, generators = starting_noise(model.pipe, seeds, config.height, config.width)
    pipe: Any = model.pipe
    with consistent_self_attention(pipe, attention, groups) as state, finite_images(pipe.vae):

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return given.at_step_end(step, state.on_step_end(pipe, step, timestep, tensors))

        start = {"latents": noise.to(model.dtype), "generator": generators}
        arguments = {**given.arguments, **get_sampling_defaults(config), **start}
        return call_pipeline(pipe, arguments, on_step_end, len(prompts))


def split_by_story(stories: Sequence[BenchmarkStory], panels: Sequence[Shown]) -> list[list[Shown]]:
    """Split a sequence over the panels of all stories into one list per story."""
    rest = iter(panels)
    return [[next(rest) for _ in story.panels] for story in stories]
