"""Condition the panels of a story by a baseline method, whose reference images are portraits of the characters.

Without portraits of the user's own, the plain model first generates one of each character, so that all methods start
from the same portraits. portraits/ of the run keeps them, each with a digest of all that it was generated from.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.baselines.loading import add_baseline, fetch_baseline
from storydiffusion.config import InferConfig, PhotoMakerConfig
from storydiffusion.errors import UserError
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.loaders.text_to_image import StoryModel
from storydiffusion.story import PanelPrompt, Story, character_prompts, panel_prompts
from storydiffusion.storyworld.scene_stories import BenchmarkStory

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.pipelines.conditioning import Baseline, CharacterReference, Conditions

PORTRAITS_AT_ONCE = 4
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Portrait:
    """A portrait to generate."""

    prompt: PanelPrompt
    seed: int


def compute_portrait_checksums(config: InferConfig, story: Story) -> dict[str, str]:
    """Return the user's own portraits with their SHA-256.

    Raises:
        UserError: a character that the baseline's settings do not name, or a missing image.
    """
    baseline, names = config.baseline, [character.name for character in story.characters]
    if baseline is None or not names:
        return {}
    if isinstance(baseline, PhotoMakerConfig):
        words = _check_names(names, baseline.words or {}, "words", "girl")
        for character in story.characters:
            word = words[character.name]
            if word not in re.findall(r"\w+", character.description):
                raise UserError(
                    f"baseline.words has {word!r} for {character.name!r}, described as '{character.description}': "
                    "choose a word of the description"
                )
    if baseline.portraits is None:
        return {}
    given = _check_names(names, baseline.portraits, "portraits", "FILE")
    return {str(file): compute_sha256(file) for name in names for file in _find_images(given[name])}


def build_story_conditions(
    config: InferConfig, story: Story, model: StoryModel, folder: Path, weights: Mapping[str, str]
) -> "Conditions | None":
    """Return the conditions of the story's panels by a baseline, which stays installed in the model's pipeline.

    None: there is no baseline, and only text conditions them.

    Args:
        folder: of the run.
        weights: the model's files with their checksums, for the digests of portraits.
    """
    if config.baseline is None:
        return None
    given = panel_prompts(story)
    prompts, negative_prompts = [each.prompt for each in given], [each.negative_prompt for each in given]
    fetch_baseline(config.baseline)  # missing weights must show before minutes of generation
    references = _build_references(config, story, model, folder, weights)
    shown = [references[panel.characters[0]] if panel.characters else None for panel in story.panels]
    baseline = add_baseline(model, config.model, config.baseline)
    assert config.steps is not None
    assert config.guidance_scale is not None
    return baseline.conditions(prompts, negative_prompts, shown, config.steps, config.guidance_scale)


def build_benchmark_conditions(
    config: InferConfig, model: StoryModel, folder: Path, stories: Sequence[BenchmarkStory], weights: Mapping[str, str]
) -> "Callable[[Sequence[BenchmarkStory]], Conditions | None]":
    """Return a function: some of `stories` → the conditions of their panels, story by story; None without a baseline.

    Its first call generates all portraits with the plain model, each from the prompt of its story's first panel, and
    then installs the baseline. The other arguments are those of `build_story_conditions`.
    """
    from storydiffusion.pipelines.conditioning import CharacterReference
    from storydiffusion.pipelines.panels import panel_seeds

    @cache  # portraits are generated at the first call
    def baseline() -> "tuple[Baseline, dict[int, CharacterReference]]":
        fetch_baseline(config.baseline)  # missing weights must show before hours of generation
        wanted = {
            story.number: Portrait(
                PanelPrompt(story.panels[0].prompt, ""), panel_seeds(config.seed + story.number, [("hero",)])[0]
            )
            for story in stories
        }
        drawn = _portraits(folder, model, config, wanted, weights)
        references = {one.number: CharacterReference((drawn[one.number],), one.kind) for one in stories}
        return add_baseline(model, config.model, config.baseline), references

    def conditions(batch: Sequence[BenchmarkStory]) -> "Conditions | None":
        if config.baseline is None:
            return None
        method, references = baseline()
        prompts = [panel.prompt for story in batch for panel in story.panels]
        shown = [references[story.number] for story in batch for _ in story.panels]
        assert config.steps is not None
        assert config.guidance_scale is not None
        return method.conditions(prompts, [""] * len(prompts), shown, config.steps, config.guidance_scale)

    return conditions


def _portraits(
    folder: Path, model: StoryModel, config: InferConfig, wanted: Mapping[int, Portrait], weights: Mapping[str, str]
) -> "dict[int, Image.Image]":
    """Return number → portrait, generated by the plain model; `folder`/portraits keeps them."""
    import numpy as np
    from PIL import Image

    from storydiffusion.output.film_strip import read_strip, write_strip

    files = {number: folder / "portraits" / f"{number:03d}.png" for number in wanted}
    keys = {number: _digest(config, portrait, weights) for number, portrait in wanted.items()}
    found = {number: read_strip(files[number], 1, keys[number]) for number in wanted}
    missing = [number for number, image in found.items() if image is None]
    for first in range(0, len(missing), PORTRAITS_AT_ONCE):
        part = missing[first : first + PORTRAITS_AT_ONCE]
        for number, image in zip(part, _generate(model, config, [wanted[number] for number in part]), strict=True):
            strip = np.asarray(image.convert("RGB"))[None]
            write_strip(files[number], strip, keys[number])
            found[number] = strip
    return {number: Image.fromarray(image[0]) for number, image in found.items() if image is not None}


def _build_references(
    config: InferConfig, story: Story, model: StoryModel, folder: Path, weights: Mapping[str, str]
) -> "dict[str, CharacterReference]":
    """Return character → its reference images."""
    import numpy as np

    from storydiffusion.pipelines.conditioning import CharacterReference
    from storydiffusion.story.given_images import read_image

    baseline, names = config.baseline, [character.name for character in story.characters]
    words = (baseline.words or {}) if isinstance(baseline, PhotoMakerConfig) else {}
    if baseline.portraits is not None:
        given = {name: tuple(read_image(file) for file in _find_images(baseline.portraits[name])) for name in names}
    else:
        seeds = [np.random.SeedSequence(config.seed, spawn_key=(n, 2)).generate_state(1)[0] for n in range(len(names))]
        wanted = [Portrait(prompt, int(seed)) for prompt, seed in zip(character_prompts(story), seeds, strict=True)]
        drawn = _portraits(folder, model, config, dict(enumerate(wanted, 1)), weights)
        given = {name: (drawn[number],) for number, name in enumerate(names, 1)}
    return {name: CharacterReference(given[name], words.get(name, "")) for name in names}


def _generate(model: StoryModel, config: InferConfig, wanted: Sequence[Portrait]) -> "list[Image.Image]":
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.pipelines.conditioning import text_conditions
    from storydiffusion.pipelines.panels import generate_panels
    from storydiffusion.pipelines.story import get_sampling_defaults

    prompts, negative_prompts = zip(*((one.prompt.prompt, one.prompt.negative_prompt) for one in wanted), strict=True)
    arguments = {
        **get_sampling_defaults(config.model),
        **text_conditions(model.pipe, prompts, negative_prompts).arguments,
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "height": config.height,
        "width": config.width,
    }
    alone = ConsistentSelfAttentionConfig(variant="off")
    return generate_panels(model.pipe, arguments, [portrait.seed for portrait in wanted], alone)


def _digest(config: InferConfig, portrait: Portrait, weights: Mapping[str, str]) -> str:
    sampling: list[Any] = [config.model.scheduler, config.steps, config.guidance_scale, config.height, config.width]
    if config.model.additions:
        sampling.append(config.model.additions)
    inputs = [portrait.prompt.prompt, portrait.prompt.negative_prompt, portrait.seed]
    return hashlib.sha256(json.dumps([sampling, inputs, dict(weights)], sort_keys=True).encode()).hexdigest()


def _check_names(names: Sequence[str], given: Mapping[str, Any], key: str, example: str) -> Mapping[str, Any]:
    """Return `given` if it has an entry for every character and no other."""
    for name in names:
        if name not in given:
            raise UserError(f"baseline.{key} has none for {name!r}: write baseline.{key}='{{{name}: {example}}}'")
    for name in given:
        if name not in names:
            raise UserError(f"baseline.{key} names {name!r}, but the characters of the story are {', '.join(names)}")
    return given


def _find_images(source: str) -> list[Path]:
    """Return an image file, or those of a folder."""
    path = Path(source).expanduser()
    files = [path] if not path.is_dir() else sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files or not files[0].is_file():
        raise UserError(f"baseline.portraits: {source} is neither an image file nor a folder of images: give one")
    return files
