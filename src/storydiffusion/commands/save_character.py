"""`storydiffusion save-character`: save a character of a finished story, for other stories."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config.command_line import command
from storydiffusion.config.infer import CSAConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import read_json
from storydiffusion.loaders.sources import CONFIG_FILES, find_model_folder
from storydiffusion.output.manifest import Manifest, TakeRecord, find_damage, read_manifest
from storydiffusion.story.saved_characters import describe_settings

if TYPE_CHECKING:
    from storydiffusion.pipelines.character_saving import Recipe

FOLDER = "characters"


@dataclass
class SaveCharacterConfig:
    """conf/save_character.yaml."""

    run_dir: str
    name: str
    out: str | None  # null: FOLDER/NAME.safetensors
    overwrite: bool


@command(SaveCharacterConfig)
def main(config: SaveCharacterConfig) -> None:
    """Run the verb."""
    folder = Path(config.run_dir)
    found = open_run(folder)
    recipe = read_recipe(found)
    from storydiffusion.story.given_images import read_image

    images = [read_image(folder / panel.file) for panel in found.panels]
    stem = re.sub(r"[^\w-]+", "_", config.name.lower())
    out = Path(config.out or f"{FOLDER}/{stem}")
    file = recipe.save(config.name, images, out, config.overwrite)
    print(f"saved: {file} ({file.stat().st_size:,} bytes); write {{file: {file}}} as a character of another story")


def open_run(folder: Path) -> Manifest:
    """Return the manifest of a finished story from which characters can be saved.

    Raises:
        UserError: an unfinished or damaged story, or one whose images depend on more than prompts and seeds.
    """
    found = read_manifest(folder / "manifest.json")
    if damage := [file for file in find_damage(folder, found) if file.startswith("panels/")]:
        raise UserError(f"{folder / damage[0]} is damaged: run infer without retake, take or extend to restore it")
    if not found.complete or not found.panels:
        raise UserError(f"{folder} contains no finished story: run infer without retake, take or extend first")
    if missing := [each.name for each in fields(CSAConfig) if each.name not in found.config.get("csa", {})]:
        raise UserError(f"{folder} records no csa.{missing[0]}, as it is of another version: generate the story again")
    script = found.config["script"]
    held = {
        "images of your own (frames)": found.config.get("frames"),
        "a baseline": found.config.get("baseline"),
        "poses": script.get("poses"),
        "saved characters": script.get("character_files"),
    }
    for what, value in held.items():
        if value:
            raise UserError(f"{folder} has {what}, which a character file does not hold: save from a story without")
    return found


def read_recipe(found: Manifest) -> "Recipe":
    """Return how a story was generated; further takes count where the chosen ones read them."""
    from storydiffusion.loaders.text_to_image import load_tokenizer
    from storydiffusion.models.prompt_encoding import count_windows
    from storydiffusion.pipelines.character_saving import Recipe
    from storydiffusion.pipelines.takes import collect_takes, get_chosen_takes, place_views
    from storydiffusion.story.character_file import SavedImage

    config, takes, chosen = found.config, collect_takes(found), get_chosen_takes(found)
    csa = CSAConfig(**{**config["csa"], "rate": _read_rate(config["csa"]["rate"])}).build(config["seed"])
    shown = [takes[panel, number] for panel, number in enumerate(chosen)]
    read = find_read(takes, shown)
    model = find_model_folder(config["model"]["path"], config["model"]["revision"], files=CONFIG_FILES)
    if not (model / "unet").is_dir():
        raise UserError(f"{model} has no U-Net, whose features a character file describes: save from another model")
    texts = [text for take in read for text in (take.prompt, take.negative_prompt)]
    images = tuple(
        SavedImage(take.panel, take.prompt, take.negative_prompt, take.seed, take.characters, view.images)
        for take, view in zip(read, place_views(read), strict=True)
    )
    return Recipe(
        descriptions={each["name"]: each["description"] for each in config["script"]["characters"]},
        model=found.model,
        weights=lambda: found.weights,
        settings=describe_settings(config, config["model"], asdict(csa)),
        csa=csa,
        images=images,
        chosen=tuple(read.index(take) for take in shown),
        shape=find_latent_shape(model, config["height"], config["width"]),
        windows=count_windows([load_tokenizer(model)], texts),
    )


def find_read(takes: dict[tuple[int, int], TakeRecord], shown: Sequence[TakeRecord]) -> list[TakeRecord]:
    """Return the takes that are shown, those that they read, and so on, by panel and number."""
    found, left = set(), [(take.panel, take.number) for take in shown]
    while left:
        place = left.pop()
        if place not in found:
            found.add(place)
            left += [read for read in enumerate(takes[place].reads) if read[0] != place[0]]
    return [takes[place] for place in sorted(found)]


def find_latent_shape(model: Path, height: int, width: int) -> tuple[int, int, int]:
    """Return (C, h, w) of the latents of an image, from the configuration files of a model's folder."""
    channels = read_json(model / "unet" / "config.json")["in_channels"]
    factor = 2 ** (len(read_json(model / "vae" / "config.json")["block_out_channels"]) - 1)
    return channels, height // factor, width // factor


def _read_rate(rate: Any) -> Any:
    """Return a rate with its grids as numbers, which JSON keeps as text."""
    return {int(grid): value for grid, value in rate.items()} if isinstance(rate, dict) else rate
