"""The video of a story: config → what it would be made of, and the video itself."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.config import InferConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import ResolvedModel, get_video_config
from storydiffusion.loaders.video import load_video_model
from storydiffusion.output.manifest import PanelRecord, VideoRecord

if TYPE_CHECKING:
    from storydiffusion.output.run_folder import RunFolder


def planned_video(config: InferConfig, model: ResolvedModel) -> VideoRecord | None:
    """The record of the video that shall be made, or None where `video` is off, or auto and the model makes none.

    Raises:
        UserError: says why the model makes none, where there must be one.
    """
    try:
        return None if config.video == "off" else _record(config, model)
    except UserError:
        if config.video == "on" or config.frames is not None:
            raise
        return None


def why_no_video(config: InferConfig, model: ResolvedModel) -> str:
    """In one sentence."""
    try:
        _record(config, model)
    except UserError as error:
        return str(error)
    return "video=off"


def render(config: InferConfig, resolved: ResolvedModel, run: "RunFolder", cuts: list[bool]) -> None:
    """Makes the planned video of the panels that are in the run folder; loads the model for it.

    Raises:
        UserError: parts of the model that are damaged or do not fit, or a place that cannot be written.
    """
    from storydiffusion.pipelines.story_video import Scene, Showing, render_video
    from storydiffusion.pipelines.transition import build_sampling

    record, video = run.manifest.video, resolved.video
    assert record is not None
    assert config.fps is not None
    scenes = [
        Scene(run.path / panel.file, panel.prompt, panel.caption, cut)
        for panel, cut in zip(run.panels, cuts, strict=True)
    ]
    model = load_video_model(resolved)
    made_by = {
        "weights": run.manifest.weights | record.weights,
        "schedulers": [config.model.scheduler, video.scheduler],
        "boundary_attention": video.boundary_attention,
    }
    if video.sparse_control is not None:
        made_by["sparse_control_scale"] = video.sparse_control.scale
    render_video(
        run.path / record.file,
        scenes,
        model,
        build_sampling(video),
        Showing(config.fps, config.hold, config.captions),
        config.seed,
        made_by,
    )


def video_settings(config: InferConfig) -> dict[str, str | int | float | bool]:
    """What a reader of the report looks for first."""
    video = get_video_config(config.model)
    return {
        "video": f"{video.frames} frames a transition, {config.fps} a second",
        "end frames": video.boundary_frames,
        "steps of the video": video.steps,
        "guidance scale of the video": video.guidance_scale,
        **({"SparseCtrl's scale": video.sparse_control.scale} if video.sparse_control else {}),
    }


def _record(config: InferConfig, model: ResolvedModel) -> VideoRecord:
    settings = {**asdict(model.video), "fps": config.fps, "hold": config.hold, "captions": config.captions}
    return VideoRecord("video.mp4", settings, model.video_checksums)


def given_panels(config: InferConfig, run: "RunFolder") -> None:
    """Puts the user's own pictures into the run folder as its panels."""
    from storydiffusion.story.given_images import read_image

    assert config.frames is not None
    assert config.width is not None
    assert config.height is not None
    size = (config.width, config.height)
    pictures = [read_image(Path(file), size) for file in config.frames]
    run.keep_panels(pictures, [PanelRecord("", "", "", "", config.seed, "") for _ in pictures], {})
