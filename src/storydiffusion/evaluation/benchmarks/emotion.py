"""Benchmark `emotion`: do prompts that name the characters' moods make images that evoke the intended emotion?

The rules writer writes story n for emotion n of the eight in turn, with seed n; the same story is generated with and
without the moods in its prompts, with seed + n. Two runs thus differ only in what is compared: prompts or attention.
An image metric of a story is the mean over its images. Needs a model of StoryWorld's second edition, which has moods.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig
from storydiffusion.config.infer import MOST_STORIES
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.benchmark import Benchmark
from storydiffusion.evaluation.benchmarks.stories import generate_images
from storydiffusion.evaluation.emotion_readers import EmotionReader, find_probe, load_emotion_reader
from storydiffusion.evaluation.metrics.embeddings import find_character_pairs
from storydiffusion.evaluation.metrics.registry import compute_metrics
from storydiffusion.evaluation.networks import ImageTextEncoder, load_image_text_encoder
from storydiffusion.loaders.checksums import compute_checksums, compute_part_checksums
from storydiffusion.loaders.resolve import ResolvedModel, read_edition
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.story import panel_prompts
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.writer.brief import Brief
from storydiffusion.writer.rules import RulesWriter
from storydiffusion.writer.targets import StoryWorldTarget

if TYPE_CHECKING:
    from PIL import Image

EDITION = 2
IDEAS = (
    "a girl with a ball",
    "a lonely robot",
    "a cat on the beach",
    "a bear and a rabbit",
    "a boy reads a book",
    "a fox in the forest",
    "a rabbit in the snow",
    "a bear in the city",
)
"""Without a mood of their own. Each comes with every emotion before it comes again"""


@dataclass(frozen=True)
class EmotionStory:
    """Number, intended emotion, and of each panel the prompt and the characters in it."""

    number: int
    emotion: str
    prompts: list[str]
    characters: list[tuple[str, ...]]


def get_settings(config: InferConfig, model: ResolvedModel) -> dict[str, Any]:
    """Return the settings that only this benchmark depends on; `weights` are checksums.

    Raises:
        UserError: the model draws no moods, or its folder has no probe to read them by.
    """
    if config.baseline is not None:
        raise UserError(f"baseline={config.baseline.kind} is not part of benchmark=emotion. Leave it out")
    if config.csa.regions != "off":
        raise UserError(f"csa.regions={config.csa.regions} is not part of benchmark=emotion. Leave it out")
    folder = model.folder
    probe = find_emotion_files(folder)
    planned = config.benchmark
    stories = [write_story(number, planned.panels, "emotion") for number in range(MOST_STORIES)]
    checksum = sha256(repr([story.prompts for story in stories]).encode()).hexdigest()
    return {
        **{name: getattr(config, name) for name in ("noise", "steps", "guidance_scale")},
        "csa": asdict(config.csa),
        "weights": compute_part_checksums("encoder", get_encoder(folder)) | compute_checksums({"emotion_probe": probe}),
        "benchmark": {"panels": planned.panels, "prompts": planned.prompts, "checksum": checksum},
    }


def find_emotion_files(folder: Path) -> Path:
    """Return the emotion probe of a model folder. Raises UserError for a model that draws no moods, or has no probe."""
    edition = read_edition(folder)
    if edition is None or edition < EDITION:
        trained = "was not trained on StoryWorld" if edition is None else f"knows edition {edition} of StoryWorld"
        raise UserError(
            f"benchmark=emotion needs a model that draws moods, of StoryWorld's edition {EDITION}: {folder} {trained}. "
            "Pass model.path=FOLDER of another model"
        )
    probe = find_probe(get_encoder(folder))
    if probe is None:
        raise UserError(
            f"{folder} has no emotion_probe to read emotions by. Train one: "
            f"python train.py experiment=storyworld_emotion_probe miniature={folder} export={folder}"
        )
    return probe


def get_encoder(folder: Path) -> str:
    """Return the source of the image-text encoder in a model folder."""
    return str(folder / "image_encoder")


def write_story(number: int, panels: int, prompts: str) -> EmotionStory:
    """Write story `number`; its `prompts` name the characters' moods, `emotion`, or do not, `neutral`."""
    emotion, idea = EMOTIONS[number % len(EMOTIONS)], IDEAS[number // len(EMOTIONS) % len(IDEAS)]
    target = StoryWorldTarget(EDITION, with_moods=prompts == "emotion")
    story = RulesWriter().write(Brief(idea, "", emotion, panels, "en", number, target)).story
    texts = [each.prompt for each in panel_prompts(story)]
    return EmotionStory(number, emotion, texts, [panel.characters for panel in story.panels])


def load_benchmark(config: InferConfig, resolved: ResolvedModel, out: Path) -> Benchmark:
    """Load model, encoder and emotion probe; `resolved` has the run's sampling settings."""
    import torch

    planned = config.benchmark
    stories = [write_story(number, planned.panels, planned.prompts) for number in range(planned.stories)]
    encoder = load_image_text_encoder(get_encoder(resolved.folder), torch.device("cpu"))
    encoder = replace(encoder, label=resolved.config.name)
    reader = load_emotion_reader(str(find_emotion_files(resolved.folder)), encoder)
    model = load_story_model(resolved)

    def measure(part: Sequence[EmotionStory]) -> list[dict[str, Any]]:
        images = iter(generate_stories(model, config, resolved, part))
        shown = [[next(images) for _ in story.prompts] for story in part]
        return [
            {"number": story.number, "emotion": story.emotion, "metrics": measure_story(story, panels, encoder, reader)}
            for story, panels in zip(part, shown, strict=True)
        ]

    return Benchmark(
        "story",
        stories,
        [f"story {story.number}" for story in stories],
        measure,
        {"encoder": encoder.label, "emotion": reader.label},
        [
            f"{len(stories)} stories of {planned.panels} panels, written by writer=rules from {len(IDEAS)} ideas for "
            f"the eight emotions in turn, generated by the model {resolved.config.name}, which draws only StoryWorld. "
            "Neutral prompts are those of the same stories without the characters' moods; seeds are the same.",
            "Emo-Score: mean probability of the intended emotion, over all panels, of which the first shows none yet; "
            f"chance is 0.125. {reader.remark} Text-image similarity: cosine of each image with its own prompt in the "
            "model's own encoder, not comparable with other encoders.",
        ],
        [story.emotion for story in stories],
    )


def generate_stories(
    model: StoryModel, config: InferConfig, resolved: ResolvedModel, stories: Sequence[EmotionStory]
) -> "list[Image.Image]":
    """Generate the images of several stories in one batch, story by story; each is as if generated alone."""
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.pipelines.panels import panel_seeds, shared_characters

    groups = [
        PanelGroup(len(story.prompts), key=story.number, may_share=shared_characters(story.characters))
        for story in stories
    ]
    seeds = [
        seed for story in stories for seed in panel_seeds(config.seed + story.number, story.characters, config.noise)
    ]
    prompts = [prompt for story in stories for prompt in story.prompts]
    return generate_images(model, resolved.config, prompts, seeds, config.csa.build(config.seed), groups)


def measure_story(
    story: EmotionStory, images: "Sequence[Image.Image]", encoder: ImageTextEncoder, reader: EmotionReader
) -> dict[str, float | None]:
    """Return the metrics of one story by name; the value of an image metric is its mean over the images."""
    import numpy as np

    from storydiffusion.evaluation.metrics.emotion import probabilities

    pixels = [np.asarray(image.convert("RGB")) for image in images]
    embeddings = np.stack([encoder.embed_image(image) for image in pixels])
    logits = np.stack([reader.read(*both) for both in zip(pixels, embeddings, strict=True)])
    evidence = {
        "image_embeddings": embeddings,
        "text_embeddings": encoder.embed_texts(story.prompts),
        "pairs": find_character_pairs(story.characters),
        "emotion_probabilities": probabilities(logits),
        "emotion": story.emotion,
    }
    means = {name: float(values.mean()) for name, values in compute_metrics("image", evidence).items()}
    return compute_metrics("story", evidence) | means
