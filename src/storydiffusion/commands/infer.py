"""Telling: config → story, attention, run folder; and the telling itself."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.baselines.loading import checksums_of_baseline
from storydiffusion.baselines.portraits import checksums_of_portraits, story_conditions
from storydiffusion.commands.video import given_panels, planned_video, render, video_settings
from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.output.files import compute_sha256
from storydiffusion.output.manifest import Manifest, PanelRecord, installed_versions
from storydiffusion.story import Story, load_story, panel_prompts

if TYPE_CHECKING:
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.output.run_folder import RunFolder


@command(InferConfig)
def main(config: InferConfig) -> None:
    from storydiffusion.commands.video import why_no_video
    from storydiffusion.evaluation.benchmarks.run import run_benchmark
    from storydiffusion.loaders.resolve import resolve_model

    if config.benchmark is not None:
        print(*run_benchmark(config), sep="\n  ")
        return
    script = story(config)
    attention = config.csa.build(config.seed)
    model = resolve_model(config.model)
    run = run_folder(config, model, script)
    if run.is_complete:
        print(f"{run.path / 'page.png'} already exists; pass overwrite=true to regenerate")
        return
    tell(config, model, script, attention, run)
    print(f"generated: {run.path / 'page.png'}, {run.path / 'report.html'} and the images in {run.path / 'panels'}")
    print(f"video: {run.path / 'video.mp4'}" if run.manifest.video else f"no video: {why_no_video(config, model)}")


def story(config: InferConfig) -> Story:
    """The script, or, for pictures of the user's own, one without words."""
    if config.frames is None:
        return load_story(config.story)
    from storydiffusion.story.given_images import build_story_from_images

    return build_story_from_images([Path(file) for file in config.frames])


def run_folder(config: InferConfig, model: ResolvedModel, story: Story) -> "RunFolder":
    """The story's folder, checked against what it may already hold."""
    from storydiffusion.output.run_folder import RunFolder

    script = asdict(story) | {"pictures": [compute_sha256(file) for file in config.frames or ()]}
    script["portraits"] = list(checksums_of_portraits(config, story).values())
    weights = dict(model.checksums)
    if config.baseline is not None and config.frames is None:
        weights |= checksums_of_baseline(config.baseline)
    planned = Manifest(
        title=story.title,
        model=config.model.name,
        origin=model.origin,
        config={**asdict(config), "script": script},
        weights=weights,
        video=planned_video(config, model),
    )
    return RunFolder(str(config.run_dir), planned, config.overwrite)


def tell(
    config: InferConfig,
    resolved: ResolvedModel,
    story: Story,
    attention: "ConsistentSelfAttentionConfig",
    run: "RunFolder",
) -> None:
    """Tells `story` into `run`, from where an earlier telling stopped: panels, then the video, then the report."""
    settings: dict[str, str | int | float | bool] = {"model": config.model.name, "seed": config.seed}
    if config.frames is None:
        settings = _settings(config) | _tell_panels(config, resolved, story, attention, run)
    elif not run.panels:
        given_panels(config, run)
    seconds = {}
    if run.manifest.video is not None:
        clock = time.perf_counter()
        render(config, resolved, run, [panel.cut for panel in story.panels])
        seconds["video"] = round(time.perf_counter() - clock, 2)
        settings |= video_settings(config)
    places = {"device": str(resolved.device), "dtype": str(resolved.dtype)}
    run.finish(settings, installed_versions() | places, seconds)


def _tell_panels(
    config: InferConfig,
    resolved: ResolvedModel,
    story: Story,
    attention: "ConsistentSelfAttentionConfig",
    run: "RunFolder",
) -> dict[str, str]:
    """Makes the panels, unless they are there; returns what else the report should say. The model goes with it."""
    from storydiffusion.pipelines.panels import generate_panels, panel_seeds, shared_characters

    model = load_story_model(resolved)
    clock = time.perf_counter()
    prompts, characters = panel_prompts(story), [panel.characters for panel in story.panels]
    unknown = _unknown_words(model, [prompt.prompt for prompt in prompts])
    remarks = {"words unknown to the model": ", ".join(unknown)} if unknown else {}
    if run.panels:
        return remarks
    seeds = panel_seeds(config.seed, characters, config.noise)
    conditions = story_conditions(config, story, model, run.path, run.manifest.weights)
    arguments = {
        **conditions.arguments,
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "height": config.height,
        "width": config.width,
    }
    records = [
        PanelRecord("", prompt.prompt, prompt.negative_prompt, panel.caption, seed, "")
        for prompt, panel, seed in zip(prompts, story.panels, seeds, strict=True)
    ]
    with run.keeping_progress() as keep:
        pictures = generate_panels(
            model.pipe,
            arguments,
            seeds,
            attention,
            shared_characters(characters),
            run.progress(),
            lambda pipe, step, timestep, tensors: keep(step + 1, tensors["latents"]),
            conditions.at_step_end,
        )
        seconds = {"loading": round(model.seconds, 2), "telling": round(time.perf_counter() - clock, 2)}
        run.keep_panels(pictures, records, seconds)
    return remarks


def _settings(config: InferConfig) -> dict[str, str | int | float | bool]:
    """What a reader of the report looks for first."""
    csa = config.csa
    return {
        "model": config.model.name,
        "variant": csa.variant,
        "rate": str(csa.rate),
        "sampler": csa.sampler,
        **({"baseline": config.baseline.kind} if config.baseline else {}),
        "seed": config.seed,
        "noise": config.noise,
        "steps": config.steps or 0,
        "guidance scale": config.guidance_scale or 0.0,
        "size": f"{config.width} × {config.height}",
    }


def _unknown_words(model: StoryModel, prompts: list[str]) -> list[str]:
    """Names on stderr what the model's tokenizer has no word for."""
    from storydiffusion.models.prompt_encoding import unknown_words

    unknown = list(dict.fromkeys(word for text in prompts for word in unknown_words(model.pipe.tokenizer, text)))
    if unknown:
        print(f"warning: the model does not know these words of the prompts: {', '.join(unknown)}", file=sys.stderr)
    return unknown
