"""The video of a story: config → what it would be made of, and the video itself."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig, VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.text_to_image import device_of, dtype_of, model_folder
from storydiffusion.loaders.video import checksums_of_part, key_of_part, load_video_model, package_path, video_of
from storydiffusion.output.manifest import PanelRecord, VideoRecord
from storydiffusion.pipelines.transition import sampling_of

if TYPE_CHECKING:
    from storydiffusion.output.run_folder import RunFolder


def planned_video(config: InferConfig) -> VideoRecord | None:
    """The record of the video that shall be made, or None where `video` is off, or auto and the model makes none.

    Raises:
        UserError: says why the model makes none, where there must be one.
    """
    try:
        return None if config.video == "off" else _record(config)
    except UserError:
        if config.video == "on" or config.frames is not None:
            raise
        return None


def why_no_video(config: InferConfig) -> str:
    """In one sentence."""
    try:
        _record(config)
    except UserError as error:
        return str(error)
    return "video=off"


def render(config: InferConfig, run: "RunFolder", cuts: list[bool]) -> None:
    """Makes the planned video of the panels that are in the run folder; loads the model for it.

    Raises:
        UserError: parts of the model that are damaged or do not fit, or a place that cannot be written.
    """
    from storydiffusion.pipelines.story_video import Scene, Showing, render_video

    record, video = run.manifest.video, video_of(config.model)
    assert record is not None
    assert config.fps is not None
    scenes = [
        Scene(run.path / panel.file, panel.prompt, panel.caption, cut)
        for panel, cut in zip(run.panels, cuts, strict=True)
    ]
    device = device_of(config.model)
    model = load_video_model(config.model, dtype_of(config.model.dtype, device), device)
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
        sampling_of(video),
        Showing(config.fps, config.hold, config.captions),
        config.seed,
        made_by,
    )


def video_settings(config: InferConfig) -> dict[str, str | int | float | bool]:
    """What a reader of the report looks for first."""
    video = video_of(config.model)
    return {
        "video": f"{video.frames} frames a transition, {config.fps} a second",
        "end frames": video.boundary_frames,
        "steps of the video": video.steps,
        "guidance scale of the video": video.guidance_scale,
        **({"SparseCtrl's scale": video.sparse_control.scale} if video.sparse_control else {}),
    }


def _record(config: InferConfig) -> VideoRecord:
    video = video_of(config.model)
    _check_fits(model_folder(config.model.path, config.model.revision), video)
    settings = {**asdict(video), "fps": config.fps, "hold": config.hold, "captions": config.captions}
    return VideoRecord("video.mp4", settings, _weights(video))


def _weights(video: VideoConfig) -> dict[str, str]:
    """The files of the parts that only a video needs, with their SHA-256; a part on a hub by its id.

    Raises UserError for a part that is not there, as far as can be seen without loading it.
    """
    if video.motion_adapter is None:
        raise UserError("model.video.motion_adapter=null makes new motion modules: name trained ones, or train them")
    sources = {"motion_adapter": video.motion_adapter}
    if video.predictor is not None:
        sources |= {"predictor": video.predictor, "image_encoder": video.image_encoder}
    if video.sparse_control is not None:
        sources |= {"sparse_control": video.sparse_control.weights}
    return {name: found for part, source in sources.items() for name, found in checksums_of_part(part, source).items()}


def _check_fits(model: Path, video: VideoConfig) -> None:
    """Whether parts in local folders were made for this U-Net, as far as their config.json tell."""
    unet = _read_config(model / "unet")
    sparse_control = video.sparse_control and video.sparse_control.weights
    pairs = (
        ("motion_adapter", video.motion_adapter, "block_out_channels", "block_out_channels"),
        ("predictor", video.predictor, "context_width", "cross_attention_dim"),
        ("sparse_control", sparse_control, "block_out_channels", "block_out_channels"),
        ("sparse_control", sparse_control, "cross_attention_dim", "cross_attention_dim"),
    )
    for part, source, name, name_in_unet in pairs:
        settings = _read_config(package_path(source)) if source is not None else {}
        found, wanted = settings.get(name), unet.get(name_in_unet)
        if found is not None and wanted is not None and found != wanted:
            raise UserError(
                f"{key_of_part(part)}={source} has {name} {found}, the U-Net of {model} wants {wanted}: "
                f"set {key_of_part(part)} to one that was trained with it"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of a part; empty where there is none to read, which loading it will name."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def given_panels(config: InferConfig, run: "RunFolder") -> None:
    """Puts the user's own pictures into the run folder as its panels."""
    from storydiffusion.story.given_images import read_image

    assert config.frames is not None
    assert config.width is not None
    assert config.height is not None
    size = (config.width, config.height)
    pictures = [read_image(Path(file), size) for file in config.frames]
    run.keep_panels(pictures, [PanelRecord("", "", "", "", config.seed, "") for _ in pictures], {})
