"""Generate a story into a run folder: panels, page, video and report.

An interrupted run resumes where it stopped, with the same pixels; a finished one answers without loading a model.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig
from storydiffusion.generation.engine import Engine
from storydiffusion.generation.locks import check_locks
from storydiffusion.generation.networks import RunNetworks
from storydiffusion.generation.plan import check_saved_characters, plan_manifest, plan_video, read_story
from storydiffusion.generation.story_warnings import (
    Settings,
    warn_of_missing_characters,
    warn_of_negative_prompts,
    warn_of_single_panel,
    warn_of_words,
)
from storydiffusion.loaders.resolve import ResolvedModel, resolve_model
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.output.manifest import PanelRecord, TakeRecord, VideoRecord, installed_versions, read_manifest
from storydiffusion.output.run_folder import RunFolder, describe_panels
from storydiffusion.output.typefaces import check_fonts
from storydiffusion.story import Story
from storydiffusion.story.poses import check_poses
from storydiffusion.story.saved_characters import keep_files

if TYPE_CHECKING:
    from storydiffusion.pipelines.panels import FeatureStore
    from storydiffusion.pipelines.story import StoryPipeline


@dataclass(frozen=True)
class Outcome:
    """What a call of `generate_story` has made in its run folder.

    Attributes:
        is_new: whether anything was generated; False for a story that was finished before.
        video: its file; None where there is none, and `no_video` says why.
        takes: new takes of a panel; then nothing else was made.
        exports: files to share.
    """

    folder: Path
    is_new: bool = False
    video: Path | None = None
    no_video: str = ""
    takes: tuple[TakeRecord, ...] = ()
    exports: tuple[Path, ...] = ()


def generate_story(config: InferConfig, engine: Engine | None = None) -> Outcome:
    """Generate what the run folder lacks: panels and page, then the video, then the report.

    With `config.retake` it makes takes of a panel or chooses one, with `config.extend` panels at the end.

    Args:
        engine: with networks to use, and who watches; None: the networks are loaded for this call.

    Raises:
        UserError: a story, a model or a folder that cannot be used.
        KeyboardInterrupt: of the user or of `engine.watch`; the message says what is kept.
    """
    engine = engine or Engine(RunNetworks(shares=config.baseline is None))
    folder, story = Path(str(config.run_dir)), read_story(config)
    check_fonts(config.font or ())
    if config.frames is None:
        check_poses(story, config.model.controlnet is not None)
    model = resolve_model(config.model)
    check_saved_characters(config, model, story)
    video, no_video = plan_video(config, model)
    if config.exports:
        from storydiffusion.output.exports import check_transitions

        check_transitions(config.exports, video is not None)
    if config.retake is not None or config.extend:
        from storydiffusion.generation.takes import add_images, without_takes

        alone = without_takes(config)
        if takes := add_images(config, model, story, plan_manifest(alone, model, story, video), engine):
            return Outcome(folder, is_new=True, takes=tuple(takes))
        config = alone
    with own_folder(folder):
        run = open_run_folder(config, model, story, video)
        keep_files(story, folder)
        is_new = not run.is_complete
        if is_new:
            fill_run_folder(config, model, story, run, engine)
    exports = ()
    if config.exports:
        from storydiffusion.generation.export import export_run

        exports = tuple(export_run(folder, config.exports, config.paper))
    return Outcome(folder, is_new, folder / video.file if video else None, no_video, exports=exports)


def fill_run_folder(config: InferConfig, model: ResolvedModel, story: Story, run: RunFolder, engine: Engine) -> None:
    """Generate what an unfinished run folder lacks."""
    if run.damage:
        found = ", ".join(f"{file} {problem}" for file, problem in run.damage.items())
        print(f"warning: in {run.path} {found} since it was made: making it again", file=sys.stderr)
    warn_of_single_panel(config, story)
    warn_of_negative_prompts(config, run.manifest.video, story)
    settings = describe_story(config, story) | warn_of_missing_characters(config, story)
    print("loading torch and diffusers …", file=sys.stderr, flush=True)
    if config.frames is not None:
        copy_images(config, model, story, run)
    elif run.panels:
        run.make_page()
        settings |= warn_of_words(model, story)
    else:
        settings |= generate_panels(config, model, story, run, engine)
    seconds = {}
    if run.lacks_video:
        from storydiffusion.generation.video import generate_video

        clock = time.perf_counter()
        generate_video(config, model, run, [bool(panel.cut) for panel in story.panels], engine)
        seconds["video"] = round(time.perf_counter() - clock, 2)
    if run.manifest.video is not None:
        from storydiffusion.generation.video import describe_video

        settings |= describe_video(run.manifest.video)
    place = {"device": str(model.device), "dtype": str(model.dtype)}
    run.finish(settings, installed_versions() | place, seconds)


def open_run_folder(config: InferConfig, model: ResolvedModel, story: Story, video: VideoRecord | None) -> RunFolder:
    """Open the story's folder, checked against what it already contains."""
    planned = plan_manifest(config, model, story, video)

    def plan() -> tuple[PanelRecord, ...]:
        from storydiffusion.pipelines.panel_keys import plan_panels

        return plan_panels(config, story, planned, model.folder)

    folder = Path(str(config.run_dir))
    if any(panel.lock for panel in story.panels) and (folder / "manifest.json").exists():
        check_locks(folder, story, read_manifest(folder / "manifest.json"), plan(), config.overwrite)
    return RunFolder(folder, planned, config.overwrite, plan)


def copy_images(config: InferConfig, model: ResolvedModel, story: Story, run: RunFolder) -> None:
    """Copy the user's own images into the run folder as its panels, in the configured size."""
    from storydiffusion.pipelines.panel_keys import plan_panels
    from storydiffusion.story.given_images import read_image

    if run.panels:
        run.make_page()
        return
    assert config.frames is not None
    assert config.width is not None
    assert config.height is not None
    images = [read_image(Path(file), (config.width, config.height)) for file in config.frames]
    run.keep_panels(images, plan_panels(config, story, run.manifest, model.folder), {})


def generate_panels(
    config: InferConfig, resolved: ResolvedModel, story: Story, run: RunFolder, engine: Engine
) -> Settings:
    """Generate the panels that the folder lacks, from the step where an earlier run stopped; return remarks on them."""
    from storydiffusion.baselines.portraits import build_story_conditions
    from storydiffusion.output.kept_features import write_features
    from storydiffusion.pipelines.panel_keys import describe_sharing, find_computed, plan_panels
    from storydiffusion.pipelines.story import StoryPipeline, get_sampling_defaults

    plan = plan_panels(config, story, run.manifest, resolved.folder)
    images = run.kept_images(plan)
    missing = [panel for panel in range(len(plan)) if panel not in images]
    computed = find_computed(config, story, missing)
    if images:
        made = describe_panels([panel + 1 for panel in missing], len(plan))
        kept = describe_panels([panel + 1 for panel in images], len(plan))
        print(f"generating {made}; keeping {kept}", file=sys.stderr)
    if not missing:
        run.keep_panels(list(images.values()), plan, {})
        return warn_of_words(resolved, story)
    clock = time.perf_counter()
    model = engine.networks.load_images(resolved)
    seconds = {"loading": round(time.perf_counter() - clock, 2)}
    pipe = StoryPipeline(model.pipe, get_sampling_defaults(config.model), resolved)
    clock = time.perf_counter()
    remarks = warn_of_words(resolved, story)
    conditions = build_story_conditions(config, story, model, run.path, run.manifest.weights)
    start = run.progress(computed if len(computed) < len(plan) else ())
    features = open_features(config, story, pipe, len(computed)) if start is None else None
    with run.keeping_progress() as keep:

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
            keep(step + 1, tensors["latents"])
            engine.watch("panels", step + 1, pipe.num_timesteps)

        output = pipe(
            story,
            seed=config.seed,
            csa=config.csa.build(config.seed),
            noise=config.noise,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            height=config.height,
            width=config.width,
            conditions=conditions,
            start=start,
            panels=computed if len(computed) < len(plan) else None,
            callback_on_step_end=on_step_end,
            features=features,
        )
        seconds["panels"] = round(time.perf_counter() - clock, 2)
        images = dict(zip(computed, output.images, strict=True)) | images
        run.keep_panels([images[panel] for panel in range(len(plan))], plan, seconds)
    if features is not None:
        recorded = {panel: each for panel, each in zip(computed, features.recorded.values(), strict=True) if each}
        made = {run.panels[panel].sha256: each for panel, each in recorded.items() if panel in missing}
        write_features(run.path, made, describe_sharing(config))
    return remarks


def open_features(config: InferConfig, story: Story, pipe: "StoryPipeline", images: int) -> "FeatureStore | None":
    """Return what records the features of a story's images, where the configuration keeps them."""
    from storydiffusion.pipelines.panels import open_feature_store

    if config.baseline is not None or any(character.file for character in story.characters):
        return None  # whose panels also depend on other images
    sampling = {"num_inference_steps": config.steps, "guidance_scale": config.guidance_scale}
    sampling |= {"height": config.height, "width": config.width}
    return open_feature_store(pipe.pipe, config.csa.build(config.seed), sampling, images, config.keep_features)


def describe_story(config: InferConfig, story: Story) -> Settings:
    """Return the settings that the report lists first."""
    negative: Settings = {"negative prompt": story.negative} if story.negative else {}
    if config.frames is not None:
        return {"model": config.model.name, "seed": config.seed, **negative}
    sources = {"idea": config.idea, "text": config.text, "emotion": config.emotion}
    written = {name: value for name, value in sources.items() if value is not None}
    saved = [character.name for character in story.characters if character.file is not None]
    return {
        **({**written, "writer": config.writer.kind} if written else {}),
        "model": config.model.name,
        "variant": config.csa.variant,
        "rate": str(config.csa.rate),
        "sampler": config.csa.sampler,
        **({"regions": config.csa.regions} if config.csa.regions != "off" else {}),
        **({"baseline": config.baseline.kind} if config.baseline else {}),
        "seed": config.seed,
        "noise": config.noise,
        **({"saved characters": ", ".join(saved)} if saved else {}),
        "steps": config.steps or 0,
        "guidance scale": config.guidance_scale or 0.0,
        "size": f"{config.width} × {config.height}",
        **negative,
    }
