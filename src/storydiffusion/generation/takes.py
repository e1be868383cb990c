"""`retake=N` and `extend=true` of infer: new images beside those of a finished story, which stay as they are.

Takes lie in takes/ of the run folder, PANEL-TAKE.png; take 0 is the panel's first image. None is removed until panels
are generated again.
"""

import copy
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig
from storydiffusion.errors import UserError
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.generation.engine import Engine
from storydiffusion.generation.locks import check_unlocked
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.output.differences import find_differences
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.output.manifest import (
    REPORT,
    Manifest,
    PanelRecord,
    TakeRecord,
    find_damage,
    read_manifest,
    write_manifest,
)
from storydiffusion.story import Story
from storydiffusion.story.saved_characters import read_characters

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.pipelines.takes import Features, Place

OWN_CHANGES = ("prompt", "negative", "seed", "caption", "says", "cut")
"""what may differ in the panel to retake"""
SHOWN_SETTINGS = ("video", "fps", "hold", "captions")
"""settings that panels do not depend on, beside those of model.video and page"""


def add_images(
    config: InferConfig, model: ResolvedModel, story: Story, planned: Manifest, engine: Engine
) -> list[TakeRecord]:
    """Make takes, choose one, or extend the story; return new takes, [] where page and video are left to make."""
    check_unlocked(story, config.retake or 0)
    with own_folder(str(config.run_dir)):
        if config.extend:
            extend_story(config, model, story, planned, engine)
            return []
        if config.take is not None:
            choose_take(config, model, story, planned)
            return []
        return make_takes(config, model, story, planned, engine)


def open_story(config: InferConfig, planned: Manifest, allowed: Collection[str], keeps: str) -> Manifest:
    """Return the manifest of the finished story to which images are added.

    Args:
        allowed: names of differences that the story may have.
        keeps: what this command keeps, for the error.

    Raises:
        UserError: an unfinished or damaged story, or one that differs in more.
    """
    folder = Path(str(config.run_dir))
    found = read_manifest(folder / "manifest.json")
    if damage := [file for file in find_damage(folder, found) if file.startswith("panels/")]:
        raise UserError(f"{folder / damage[0]} is damaged: run infer without retake, take or extend to restore it")
    if not found.complete or not found.panels:
        raise UserError(f"{folder} contains no finished story: run infer without retake, take or extend first")
    differences = [each.what for each in find_differences(found, planned) if is_of_panels(each.what, found, planned)]
    if others := [what for what in differences if what not in allowed]:
        raise UserError(f"{keeps}, but {others[0]} differs from {folder}: undo this change")
    return found


def is_of_panels(what: str, found: Manifest, planned: Manifest) -> bool:
    """Return whether a difference concerns panels or their captions, and not only the page's layout or the video."""
    if what in SHOWN_SETTINGS or what == "page" or what.startswith(("page.", "model.video")):
        return False
    name = what.removeprefix("weights ")
    return name == what or name in found.weights or name in planned.weights


def open_panel(config: InferConfig, planned: Manifest) -> tuple[Manifest, int]:
    """Return the finished story whose panel is to be retaken, and the panel's number from 0. Raises UserError."""
    number = int(config.retake or 0)
    allowed = {f"{name} of panel {number}" for name in OWN_CHANGES}
    found = open_story(config, planned, allowed, f"retake keeps all but panel {number}")
    if number > len(found.panels):
        raise UserError(f"retake={number}, but the story has {len(found.panels)} panels: choose one of these")
    return found, number - 1


def make_takes(
    config: InferConfig, model: ResolvedModel, story: Story, planned: Manifest, engine: Engine
) -> list[TakeRecord]:
    """Generate `config.candidates` takes of panel `config.retake`, record them, and return them."""
    from storydiffusion.pipelines.panel_keys import plan_panels
    from storydiffusion.pipelines.takes import collect_takes, get_chosen_takes

    (found, panel), folder = open_panel(config, planned), Path(str(config.run_dir))
    takes, chosen = collect_takes(found), get_chosen_takes(found)
    goal = plan_panels(config, story, planned, model.folder)[panel]
    new = plan_takes(config, [take for take in takes.values() if take.panel == panel], goal)
    new = [take.seen_with(story.panels[panel].characters, chosen) for take in new]
    print(f"generating {len(new)} takes of panel {panel + 1}; keeping all panels", file=sys.stderr)
    images, features = generate_images(config, model, story, takes, new, engine)
    written = keep_takes(folder, found, takes[panel, 0], new, images)
    keep_features(config, takes, features)
    return written


def generate_images(
    config: InferConfig,
    model: ResolvedModel,
    story: Story,
    takes: Mapping[tuple[int, int], TakeRecord],
    new: Sequence[TakeRecord],
    engine: Engine,
) -> "tuple[list[Image.Image], Mapping[Place, Features]]":
    """Generate new images beside those that there are; return them, and features of images that were computed."""
    from storydiffusion.output.kept_features import read_features
    from storydiffusion.pipelines.panel_keys import describe_sharing
    from storydiffusion.pipelines.story import StoryPipeline, get_sampling_defaults
    from storydiffusion.pipelines.takes import KeptFeatures, generate_takes

    settings = {
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "height": config.height,
        "width": config.width,
    }
    pipe = StoryPipeline(engine.networks.load_images(model).pipe, get_sampling_defaults(config.model))

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        engine.watch("takes", step + 1, pipe.num_timesteps)

    csa, files = config.csa.build(config.seed), read_characters(story)
    folder, sharing = Path(str(config.run_dir)), describe_sharing(config)
    kept = KeptFeatures(lambda image: read_features(folder, image.sha256, sharing), config.keep_features)
    images = generate_takes(pipe, story, takes, new, csa, settings, on_step_end, files, kept)
    return images, kept.added


def keep_features(
    config: InferConfig, images: "Mapping[Place, TakeRecord]", features: "Mapping[Place, Features]"
) -> None:
    """Write features of some of the story's images into the run folder."""
    from storydiffusion.output.kept_features import write_features
    from storydiffusion.pipelines.panel_keys import describe_sharing

    named = {images[place].sha256: tensors for place, tensors in features.items()}
    write_features(Path(str(config.run_dir)), named, describe_sharing(config))


def plan_takes(config: InferConfig, takes: list[TakeRecord], goal: PanelRecord) -> list[TakeRecord]:
    """Return records of the takes to generate; the first take of a changed panel starts from the panel's own noise."""
    from storydiffusion.pipelines.takes import take_seed

    first = max(take.number for take in takes) + 1
    new = [
        TakeRecord(takes[0].panel, number, "", goal.prompt, goal.negative_prompt, 0, "")
        for number in range(first, first + config.candidates)
    ]
    seeds = [take_seed(config.seed, each.panel, each.number) for each in new]
    if (goal.prompt, goal.negative_prompt, goal.seed) not in [(t.prompt, t.negative_prompt, t.seed) for t in takes]:
        seeds[0] = goal.seed
    return [replace(each, seed=seed) for each, seed in zip(new, seeds, strict=True)]


def keep_takes(
    folder: Path, found: Manifest, first: TakeRecord, new: list[TakeRecord], images: "list[Image.Image]"
) -> list[TakeRecord]:
    """Write the images of new takes, and that of the panel's first image beside them; then the manifest."""
    kept = list(found.takes)
    if first not in kept:
        kept.append(copy_take(folder, first))
    written = write_takes(folder, new, images)
    write_manifest(folder / "manifest.json", replace(found, takes=(*kept, *written)))
    return written


def write_takes(folder: Path, new: Sequence[TakeRecord], images: "Sequence[Image.Image]") -> list[TakeRecord]:
    """Write the images of new takes; return their records with file and checksum."""
    from storydiffusion.files.atomic import write_image

    for take, image in zip(new, images, strict=True):
        write_image(folder / take_file(take), image)
    return [replace(take, file=take_file(take), sha256=compute_sha256(folder / take_file(take))) for take in new]


def choose_take(config: InferConfig, model: ResolvedModel, story: Story, planned: Manifest) -> None:
    """Show take `config.take` in panel `config.retake`; page, video and report are left to be made.

    Raises:
        UserError: no such take, or its image is damaged.
    """
    from storydiffusion.pipelines.panel_keys import plan_panels

    (found, panel), folder = open_panel(config, planned), Path(str(config.run_dir))
    takes = {take.number: take for take in found.takes if take.panel == panel}
    if config.take not in takes:
        known = f"choose one of {', '.join(map(str, sorted(takes)))}" if takes else "make some with candidates=N first"
        raise UserError(f"panel {panel + 1} has no take {config.take}: {known}")
    take = takes[config.take]
    if not (folder / take.file).exists() or compute_sha256(folder / take.file) != take.sha256:
        raise UserError(f"{folder / take.file} is missing or has changed: choose another take")
    panels = [
        replace(old, caption=plan.caption, says=plan.says, key=plan.key)
        for old, plan in zip(found.panels, plan_panels(config, story, planned, model.folder), strict=True)
    ]
    panels[panel] = replace(
        panels[panel],
        prompt=take.prompt,
        negative_prompt=take.negative_prompt,
        seed=take.seed,
        sha256=take.sha256,
    )
    show_takes(folder, found, planned, panels)


def extend_story(config: InferConfig, model: ResolvedModel, story: Story, planned: Manifest, engine: Engine) -> None:
    """Generate panels at the end of a finished story; they read its panels, which do not read them.

    All images become takes, which say what they read. Page, video and report are left to be made.
    """
    from storydiffusion.pipelines.panel_keys import plan_panels
    from storydiffusion.pipelines.takes import collect_takes, get_chosen_takes

    folder, count = Path(str(config.run_dir)), len(story.panels)
    first = len(read_manifest(folder / "manifest.json").panels)
    if first == count:
        return
    found = open_story(config, planned, find_new_panels(story, first), f"extend keeps the {first} existing panels")
    takes, plan = collect_takes(found), plan_panels(config, story, planned, model.folder)
    reads = [*get_chosen_takes(found), *[0] * (count - first)]
    new = [
        TakeRecord(number, 0, "", each.prompt, each.negative_prompt, each.seed, "").seen_with(panel.characters, reads)
        for number, (each, panel) in enumerate(zip(plan, story.panels, strict=True))
        if number >= first
    ]
    print(f"generating {len(new)} panels; keeping {first}", file=sys.stderr)
    images, features = generate_images(config, model, story, takes, new, engine)
    written = write_takes(folder, new, images)
    keep_features(config, takes, features)
    found = replace(found, takes=(*(copy_take(folder, take) for take in takes.values()), *written))
    panels = [replace(old, key=each.key) for old, each in zip(found.panels, plan, strict=False)]
    panels += [
        replace(plan[take.panel], file=f"panels/{take.panel + 1:03d}.png", sha256=take.sha256) for take in written
    ]
    show_takes(folder, found, planned, panels)


def find_new_panels(story: Story, first: int) -> set[str]:
    """Return the differences from a story of its first `first` panels, which `extend` allows."""
    allowed = {f"panel {number} is new" for number in range(first + 1, len(story.panels) + 1)}
    return allowed | {f"{character.name} is a new character" for character in story.characters}


def show_takes(folder: Path, found: Manifest, planned: Manifest, panels: Sequence[PanelRecord]) -> None:
    """Write the manifest of panels whose images are takes; the run folder then restores each image from its take."""
    stated = {each.file: each.sha256 for each in panels}
    manifest = replace(found, config=planned.config, panels=tuple(panels), results=stated, complete=False)
    write_manifest(folder / "manifest.json", manifest)
    for file in (REPORT, *([found.video.file] if found.video else [])):
        (folder / file).unlink(missing_ok=True)


def copy_take(folder: Path, take: TakeRecord) -> TakeRecord:
    """Return the take with its image in takes/, copied there if it lies elsewhere."""
    from storydiffusion.files.atomic import write_atomically

    if take.file != take_file(take):
        write_atomically(folder / take_file(take), (folder / take.file).read_bytes())
    return replace(take, file=take_file(take))


def without_takes(config: InferConfig) -> InferConfig:
    """Return the configuration of the story itself, without retake, take or extend."""
    alone = copy.copy(config)
    alone.retake = alone.take = None
    alone.extend = False
    return alone


def take_file(take: TakeRecord) -> str:
    """Return the file of a take in its run folder."""
    return f"takes/{take.panel + 1:03d}-{take.number:03d}.png"
