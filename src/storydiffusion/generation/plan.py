"""Plan a run: the story, its video, and the manifest of what to generate and with what."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from storydiffusion.config import InferConfig
from storydiffusion.errors import UserError
from storydiffusion.generation.story_warnings import find_missing_characters
from storydiffusion.loaders.boundary_frames import find_untrained, read_boundary_frame_prob
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.output.manifest import Manifest, VideoRecord
from storydiffusion.story import Story, cut_between_characters, load_story
from storydiffusion.story.saved_characters import check_characters, describe_settings, read_characters


def read_story(config: InferConfig) -> Story:
    """Read the script, or write it first; for the user's own images (`frames`), make one without words."""
    if config.is_to_write:
        story = write_story(config)
    elif config.frames is None:
        story = load_story(str(config.story))
    else:
        from storydiffusion.story.given_images import build_story_from_images

        story = build_story_from_images([Path(file) for file in config.frames])
    return apply_settings(config, story)


def apply_settings(config: InferConfig, story: Story) -> Story:
    """Return the story with the cuts and the negative prompt of the configuration."""
    story = cut_between_characters(story) if config.cuts == "characters" else story
    return story if config.negative is None else replace(story, negative=config.negative)


def write_story(config: InferConfig) -> Story:
    """Write the story into the run folder, or read the one that is there, with what the user has changed in it."""
    from storydiffusion.writer.request import build_brief
    from storydiffusion.writer.story_file import write_or_read_story

    file = Path(str(config.run_dir)) / "story.yaml"
    story, draft = write_or_read_story(
        file, build_brief(config, config.model, config.seed), config.writer, config.overwrite
    )
    if draft is not None:
        for note in draft.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"written: {file}")
    return story


def check_saved_characters(config: InferConfig, model: ResolvedModel, story: Story) -> None:
    """Check that the story's character files fit its model and settings, before anything is loaded.

    Raises:
        UserError: a file of another model, other settings, or beside a baseline or poses.
    """
    files = [character.name for character in story.characters if character.file is not None]
    if not files:
        return
    if config.baseline is not None:
        raise UserError(f"a baseline keeps characters by portraits: leave out baseline, or the file of {files[0]}")
    if config.model.controlnet is not None:
        raise UserError(f"saved characters take no poses: leave out model.controlnet, or the file of {files[0]}")
    settings = describe_settings(asdict(config), asdict(config.model), asdict(config.csa.build(config.seed)))
    check_characters(read_characters(story), config.model.name, model.checksums, settings)


def plan_video(config: InferConfig, model: ResolvedModel) -> tuple[VideoRecord | None, str]:
    """Return the record of the video to make; or None, and why there will be none.

    Raises:
        UserError: why the model makes no video, if the configuration demands one.
    """
    if config.video == "off":
        return None, "video=off"
    try:
        trained = read_boundary_frame_prob(model.video.motion_adapter)
        if (untrained := find_untrained(model.video.boundary_frames, trained)) is not None:
            print(f"warning: model.video.{untrained}", file=sys.stderr)
        settings = {**asdict(model.video), "fps": config.fps, "hold": config.hold, "captions": config.captions}
        return VideoRecord("video.mp4", settings, model.video_checksums), ""
    except UserError as error:
        if config.video == "on" or config.frames is not None:
            raise
        return None, str(error)


def plan_manifest(config: InferConfig, model: ResolvedModel, story: Story, video: VideoRecord | None) -> Manifest:
    """Return the manifest of what to generate, and with what."""
    from storydiffusion.baselines.loading import compute_baseline_checksums
    from storydiffusion.baselines.portraits import compute_portrait_checksums
    from storydiffusion.files.checksums import compute_sha256

    script: dict[str, Any] = describe_script(story) | {"images": [compute_sha256(file) for file in config.frames or ()]}
    if poses := [panel.pose for panel in story.panels if panel.pose]:
        script["poses"] = [compute_sha256(file) for file in poses]
    script["portraits"] = list(compute_portrait_checksums(config, story).values())
    script["page"] = config.page.changed
    if config.font:
        script["fonts"] = [compute_sha256(file) for file in config.font]
    if missing := find_missing_characters(config, story):
        script["missing_characters"] = missing
    weights = dict(model.checksums)
    if config.baseline is not None and config.frames is None:
        weights |= compute_baseline_checksums(config.baseline)
    return Manifest(
        title=story.title,
        model=config.model.name,
        origin=model.origin,
        config={**asdict(config), "script": script},
        weights=weights,
        video=video,
    )


def describe_script(story: Story) -> dict[str, Any]:
    """Return the story as plain data, with the checksums of its character files in place of their paths.

    The panels' locks are left out, as they change no result.
    """
    from storydiffusion.files.checksums import compute_sha256

    script = asdict(story)
    for panel in script["panels"]:
        del panel["lock"]
    files = {each["name"]: file for each in script["characters"] if (file := each.pop("file")) is not None}
    return script | ({"character_files": {name: compute_sha256(file) for name, file in files.items()}} if files else {})
