"""Benchmark `text2image`: single images against what their prompts state, in the model's edition of StoryWorld.

Image n shows truth n of the held-out world: its prompt has random words and leaves a random part of the attire open, as
in training. It is generated with seed + n and without consistent self-attention. An image is measured as a story of one
panel. samples.png shows the first images with their prompts, uncurated.

`benchmark.source` measures true images instead: as they are, or encoded and decoded by the model's autoencoder. These
are the upper bounds that the attribute classifier and the autoencoder set to any denoiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig
from storydiffusion.evaluation.benchmarks.benchmark import (
    READ_SIZE,
    Benchmark,
    describe_accuracy,
    find_edition,
    read_accuracy,
    read_images,
)
from storydiffusion.evaluation.benchmarks.image_encoder import draw_images
from storydiffusion.evaluation.benchmarks.stories import generate_images
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.files.atomic import write_image
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.loaders.text_to_image import load_story_model

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.storyworld.captions import Prompt
    from storydiffusion.storyworld.edition import Edition

SHEET, SAMPLES = "samples.png", 64
GROUPS = ("no character", "one character", "two characters")


@dataclass(frozen=True)
class Case:
    """An image to generate."""

    number: int
    prompt: "Prompt"
    characters: int


MakeImages = Callable[[Sequence[Case]], "list[Image.Image]"]


@dataclass(frozen=True)
class Source:
    """Where the images come from that are measured.

    Attributes:
        load: settings, model and edition → what makes the images of cases.
        remark: continues "n held-out prompts of …"; {} stands for the model's name.
    """

    load: "Callable[[InferConfig, ResolvedModel, Edition], MakeImages]"
    remark: str


def get_settings(config: InferConfig, model: ResolvedModel) -> dict[str, Any]:
    """Return the settings that only this benchmark depends on."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("steps", "guidance_scale")}
    own = {"edition": find_edition(model.folder).number, "source": config.benchmark.source}
    return {**settings, "weights": {}, "benchmark": own}


def load_benchmark(config: InferConfig, resolved: ResolvedModel, out: Path) -> Benchmark:
    """Load model and classifier.

    Args:
        resolved: the model with the run's sampling settings.
        out: the folder for samples.png and, in samples/, the images on it.
    """
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier

    edition, source = find_edition(resolved.folder), SOURCES[config.benchmark.source]
    cases = [draw_case(edition, number) for number in range(config.benchmark.images)]
    accuracy = read_accuracy(resolved.folder)
    make_images = source.load(config, resolved, edition)
    classifier = AttributeClassifier.load(resolved.folder / "attribute_classifier")

    def measure(part: Sequence[Case]) -> list[dict[str, Any]]:
        images = make_images(part)
        keep_samples(part, images, cases[:SAMPLES], out)
        return [
            {"image": case.number, "readings": [read], "metrics": measure_image(edition, case, read)}
            for case, read in zip(part, read_images(classifier, images), strict=True)
        ]

    return Benchmark(
        "image",
        cases,
        [f"image {case.number}" for case in cases],
        measure,
        {},
        [
            f"{len(cases)} held-out prompts of StoryWorld's edition {edition.number}, "
            f"{source.remark.format(resolved.config.name)}. Every metric is the share of images that show what prompts "
            "name; of several characters in an image, each is taken for the prompted one whose kind and named "
            "attributes fit best.",
            describe_accuracy(accuracy),
        ],
        [GROUPS[case.characters] for case in cases],
    )


def load_model(config: InferConfig, resolved: ResolvedModel, edition: "Edition") -> MakeImages:
    """Return what generates images by the model."""
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig

    model, off = load_story_model(resolved), ConsistentSelfAttentionConfig(variant="off")

    def generate(cases: Sequence[Case]) -> "list[Image.Image]":
        seeds = [config.seed + case.number for case in cases]
        return generate_images(model, resolved.config, [case.prompt.text for case in cases], seeds, off, None)

    return generate


def load_autoencoder(config: InferConfig, resolved: ResolvedModel, edition: "Edition") -> MakeImages:
    """Return what encodes true images and decodes the mode of their latents."""
    from PIL import Image

    from storydiffusion.pipelines.transition_sampling import decode_frames, encode_images
    from storydiffusion.storyworld.images import HELD_OUT_SEED

    pipe: Any = load_story_model(resolved).pipe

    def reconstruct(cases: Sequence[Case]) -> "list[Image.Image]":
        pixels = draw_images(edition, [edition.sample(HELD_OUT_SEED, case.number) for case in cases])
        decoded = decode_frames(pipe.vae, encode_images(pipe.vae, pixels).unsqueeze(2))[:, 0]
        return [Image.fromarray(image) for image in decoded.permute(0, 2, 3, 1).numpy()]

    return reconstruct


def load_renderer(config: InferConfig, resolved: ResolvedModel, edition: "Edition") -> MakeImages:
    """Return what draws true images."""
    from PIL import Image

    from storydiffusion.storyworld.images import HELD_OUT_SEED

    def render(cases: Sequence[Case]) -> "list[Image.Image]":
        truths = [edition.sample(HELD_OUT_SEED, case.number) for case in cases]
        return [Image.fromarray(edition.render(truth, READ_SIZE)) for truth in truths]

    return render


SOURCES = {
    "generated": Source(load_model, "generated by the model {}, which draws only StoryWorld"),
    "reconstructed": Source(load_autoencoder, "whose true images the autoencoder of the model {} encoded and decoded"),
    "rendered": Source(load_renderer, "with their true images, not those of the model {}"),
}
"""By benchmark.source"""


def draw_case(edition: "Edition", number: int) -> Case:
    """Return case `number` of the edition: the truth of that number in the held-out world, and a prompt for it."""
    from storydiffusion.storyworld.images import HELD_OUT_SEED

    truth = edition.sample(HELD_OUT_SEED, number)
    characters = sum(x == x for x in edition.get_positions(truth))  # NaN where there is none
    return Case(number, edition.draw_prompt(truth, number), characters)


def measure_image(edition: "Edition", case: Case, reading: dict[str, str]) -> dict[str, float | None]:
    """Return the metrics of one image by name."""
    stated = case.prompt.stated
    evidence = {"readings": [edition.fit_reading(reading, stated)], "prompted": [stated], "named": [stated]}
    return compute_metrics("story", evidence)


def keep_samples(part: Sequence[Case], images: "Sequence[Image.Image]", shown: Sequence[Case], out: Path) -> None:
    """Write those images of `part` that samples.png shows, and the sheet itself with the last of them."""
    from storydiffusion.output.captioned_sheet import draw_sheet
    from storydiffusion.story.given_images import read_image

    files = {case.number: out / "samples" / f"{case.number:03d}.png" for case in shown}
    for case, image in zip(part, images, strict=True):
        if case.number in files:
            write_image(files[case.number], image)
    if shown[-1] in part:
        captions = [f"{case.number}. {case.prompt.text}" for case in shown]
        write_image(out / SHEET, draw_sheet([read_image(file) for file in files.values()], captions))
