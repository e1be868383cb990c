"""Generate a story: panels, a comic page, a video and a report in one run folder; or run a benchmark.

An interrupted run resumes where it stopped, with the same pixels; a finished one answers without loading a model.
"""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.commands.story_warnings import (
    Settings,
    find_missing_characters,
    warn_of_missing_characters,
    warn_of_negative_prompts,
    warn_of_single_panel,
    warn_of_words,
)
from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import find_untrained, read_boundary_frame_prob
from storydiffusion.loaders.resolve import ResolvedModel, resolve_model
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord, installed_versions
from storydiffusion.output.typefaces import check_fonts
from storydiffusion.story import Story, cut_between_characters, load_story
from storydiffusion.story.poses import check_poses

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from storydiffusion.output.run_folder import RunFolder


@command(InferConfig)
def main(config: InferConfig) -> None:
    """Run the verb: a benchmark, or one story."""
    if config.benchmark is None:
        generate_story(config)
        return
    from storydiffusion.evaluation.benchmarks.run import run_benchmark

    print(*run_benchmark(config), sep="\n  ")


def generate_story(config: InferConfig) -> None:
    """Generate what the run folder lacks: panels and page, then the video, then the report."""
    story = read_story(config)
    check_fonts(config.font or ())
    if config.frames is None:
        check_poses(story, config.model.controlnet is not None)
    model = resolve_model(config.model)
    video, no_video = plan_video(config, model)
    if config.exports:
        from storydiffusion.output.exports import check_transitions

        check_transitions(config.exports, video is not None)
    if config.retake is not None or config.extend:
        from storydiffusion.commands.takes import add_images, without_takes

        alone = without_takes(config)
        if not add_images(config, model, story, plan_manifest(alone, model, story, video)):
            return
        config = alone
    with own_folder(str(config.run_dir)):
        run = open_run_folder(config, model, story, video)
        is_new = not run.is_complete
        if is_new:
            fill_run_folder(config, model, story, run)
    if is_new:
        print(f"generated: {run.path / 'page.png'}, {run.path / 'report.html'} and the images in {run.path / 'panels'}")
        print(f"no video: {no_video}" if video is None else f"video: {run.path / video.file}")
    else:
        print(f"{run.path / 'page.png'} already exists; pass overwrite=true to regenerate")
    if config.exports:
        from storydiffusion.commands.export import export_run

        export_run(run.path, config.exports, config.paper)


def fill_run_folder(config: InferConfig, model: ResolvedModel, story: Story, run: "RunFolder") -> None:
    """Generate what an unfinished run folder lacks."""
    if run.damage:
        found = ", ".join(f"{file} {problem}" for file, problem in run.damage.items())
        print(f"warning: in {run.path} {found} since it was made: making it again", file=sys.stderr)
    warn_of_single_panel(config, story)
    warn_of_negative_prompts(config, run.manifest.video, story)
    settings = describe_story(config, story) | warn_of_missing_characters(config, story)
    announce("torch and diffusers")
    pipe = None
    if config.frames is not None:
        copy_images(config, model, story, run)
    elif run.panels:
        run.make_page()
        settings |= warn_of_words(model, story)
    else:
        remarks, pipe = generate_panels(config, model, story, run)
        settings |= remarks
    seconds = {}
    if run.lacks_video:
        clock = time.perf_counter()
        generate_video(config, model, run, [bool(panel.cut) for panel in story.panels], pipe)
        seconds["video"] = round(time.perf_counter() - clock, 2)
    if run.manifest.video is not None:
        settings |= describe_video(run.manifest.video)
    place = {"device": str(model.device), "dtype": str(model.dtype)}
    run.finish(settings, installed_versions() | place, seconds)


def read_story(config: InferConfig) -> Story:
    """Read the script, or write it first; for the user's own images (`frames`), make one without words."""
    if config.is_to_write:
        story = write_story(config)
    elif config.frames is None:
        story = load_story(str(config.story))
    else:
        from storydiffusion.story.given_images import build_story_from_images

        story = build_story_from_images([Path(file) for file in config.frames])
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


def open_run_folder(config: InferConfig, model: ResolvedModel, story: Story, video: VideoRecord | None) -> "RunFolder":
    """Open the story's folder, checked against what it already contains."""
    from storydiffusion.output.run_folder import RunFolder

    planned = plan_manifest(config, model, story, video)

    def plan() -> tuple[PanelRecord, ...]:
        from storydiffusion.pipelines.panel_keys import plan_panels

        return plan_panels(config, story, planned, model.folder)

    return RunFolder(str(config.run_dir), planned, config.overwrite, plan)


def plan_manifest(config: InferConfig, model: ResolvedModel, story: Story, video: VideoRecord | None) -> Manifest:
    """Return the manifest of what to generate, and with what."""
    from storydiffusion.baselines.loading import compute_baseline_checksums
    from storydiffusion.baselines.portraits import compute_portrait_checksums
    from storydiffusion.files.checksums import compute_sha256

    script: dict[str, Any] = asdict(story) | {"images": [compute_sha256(file) for file in config.frames or ()]}
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


def copy_images(config: InferConfig, model: ResolvedModel, story: Story, run: "RunFolder") -> None:
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
    config: InferConfig, resolved: ResolvedModel, story: Story, run: "RunFolder"
) -> "tuple[Settings, DiffusionPipeline | None]":
    """Generate the panels that the folder lacks, from the step where an earlier run stopped.

    Returns:
        Remarks for the report, and the pipeline for the video; None where none was loaded, or a baseline changed it.
    """
    from storydiffusion.baselines.portraits import build_story_conditions
    from storydiffusion.loaders.text_to_image import load_story_model
    from storydiffusion.output.run_folder import describe_panels
    from storydiffusion.pipelines.panel_keys import find_computed, plan_panels
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
        return warn_of_words(resolved, story), None
    announce(f"the model {config.model.name} from {config.model.path}")
    model = load_story_model(resolved)
    pipe = StoryPipeline(model.pipe, get_sampling_defaults(config.model))
    clock = time.perf_counter()
    remarks = warn_of_words(resolved, story)
    conditions = build_story_conditions(config, story, model, run.path, run.manifest.weights)
    with run.keeping_progress() as keep:
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
            start=run.progress(computed if len(computed) < len(plan) else ()),
            panels=computed if len(computed) < len(plan) else None,
            callback_on_step_end=lambda pipe, step, timestep, tensors: keep(step + 1, tensors["latents"]),
        )
        seconds = {"loading": round(model.seconds, 2), "panels": round(time.perf_counter() - clock, 2)}
        images = dict(zip(computed, output.images, strict=True)) | images
        run.keep_panels([images[panel] for panel in range(len(plan))], plan, seconds)
    return remarks, model.pipe if config.baseline is None else None


def generate_video(
    config: InferConfig, resolved: ResolvedModel, run: "RunFolder", cuts: list[bool], pipe: "DiffusionPipeline | None"
) -> None:
    """Generate the planned video of the panels in the run folder, with the networks of `pipe` where it is given.

    Raises:
        UserError: parts of the model that are damaged or do not fit, or a place that cannot be written.
    """
    from storydiffusion.loaders.video import load_video_model
    from storydiffusion.pipelines.story_video import Scene, Showing, render_video
    from storydiffusion.pipelines.transition_sampling import build_sampling

    record, video = run.manifest.video, resolved.video
    assert record is not None
    assert config.fps is not None
    announce("the video model: motion modules, predictor and image encoder")
    scenes = [
        Scene(run.path / panel.file, panel.prompt, join_speech(panel), cut, panel.negative_prompt)
        for panel, cut in zip(run.panels, cuts, strict=True)
    ]
    made_by = {
        "weights": run.manifest.weights | record.weights,
        "schedulers": [config.model.scheduler, video.scheduler],
        "boundary_attention": video.boundary_attention,
    }
    if config.model.additions:
        made_by["additions"] = config.model.additions
    if video.sparse_control is not None:
        made_by["sparse_control_scale"] = video.sparse_control.scale
    render_video(
        run.path / record.file,
        scenes,
        load_video_model(resolved, pipe),
        build_sampling(video),
        Showing(config.fps, config.hold, config.captions, tuple(run.fonts)),
        config.seed,
        made_by,
    )


def join_speech(panel: PanelRecord) -> str:
    """Return the caption of a panel in the video, where what is said follows in quotes."""
    return "\n".join(filter(None, [panel.caption, panel.says and f"“{panel.says}”"]))


def describe_story(config: InferConfig, story: Story) -> Settings:
    """Return the settings that the report lists first."""
    negative: Settings = {"negative prompt": story.negative} if story.negative else {}
    if config.frames is not None:
        return {"model": config.model.name, "seed": config.seed, **negative}
    sources = {"idea": config.idea, "text": config.text, "emotion": config.emotion}
    written = {name: value for name, value in sources.items() if value is not None}
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
        "steps": config.steps or 0,
        "guidance scale": config.guidance_scale or 0.0,
        "size": f"{config.width} × {config.height}",
        **negative,
    }


def describe_video(video: VideoRecord) -> Settings:
    """Return the settings of the video that the report lists."""
    settings = video.settings
    return {
        "video": f"{settings['frames']} frames per transition, {settings['fps']} per second",
        "boundary frames": settings["boundary_frames"],
        "video steps": settings["steps"],
        "video guidance scale": settings["guidance_scale"],
        **({"SparseCtrl scale": settings["sparse_control"]["scale"]} if settings["sparse_control"] else {}),
    }


def announce(stage: str) -> None:
    """Print what is loaded next, before a stage that takes seconds."""
    print(f"loading {stage} …", file=sys.stderr, flush=True)
