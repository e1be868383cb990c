"""Generate the video of a run folder's panels."""

from storydiffusion.config import InferConfig
from storydiffusion.generation.engine import Engine
from storydiffusion.generation.story_warnings import Settings
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.output.manifest import PanelRecord, VideoRecord
from storydiffusion.output.run_folder import RunFolder


def generate_video(
    config: InferConfig, resolved: ResolvedModel, run: RunFolder, cuts: list[bool], engine: Engine
) -> None:
    """Generate the planned video of the panels in the run folder.

    Raises:
        UserError: parts of the model that are damaged or do not fit, or a place that cannot be written.
    """
    from storydiffusion.pipelines.story_video import Scene, Showing, render_video
    from storydiffusion.pipelines.transition_sampling import build_sampling

    record, video = run.manifest.video, resolved.video
    assert record is not None
    assert config.fps is not None
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
        engine.networks.load_video(resolved),
        build_sampling(video),
        Showing(config.fps, config.hold, config.captions, tuple(run.fonts)),
        config.seed,
        made_by,
        lambda step, steps: engine.watch("video", step, steps),
    )


def join_speech(panel: PanelRecord) -> str:
    """Return the caption of a panel in the video, where what is said follows in quotes."""
    return "\n".join(filter(None, [panel.caption, panel.says and f"“{panel.says}”"]))


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
