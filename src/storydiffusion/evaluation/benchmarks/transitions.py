"""Measures transitions on held-out clips of StoryWorld, whose frames between the ends are known.

  python -m storydiffusion.measure_video                                  200 clips, the model's own predictor
  python -m storydiffusion.measure_video interpolation=FOLDER             a release of layers=0 as the interpolation
  python -m storydiffusion.measure_video readme=README.md                 and puts the table into the README
  python -m storydiffusion.measure_video clips=16 out=runs/quick model.video.steps=10

Every way gets the ends and the caption of a clip and makes the frames between them, with the same seeds:
- predictor: the model as it is;
- interpolation: the tokens interpolated and projected, nothing more: the predictor without its transformer. Trained
  with recipe.teacher_forcing=1 both are one: the transformer has no part in what the rest learns. Otherwise train it as
  long (`python train.py predictor.layers=0`), and give its folder of `python -m storydiffusion.release`;
- no semantic tokens: the same model without a predictor, which sees the given ends and the text;
- sparse control: the same with SparseCtrl, the paper's baseline, which alone tells it of the ends: they are not
  imposed. Measured where model.video.sparse_control names one;
- cross-fade: the two pictures mixed;
- truth: the true clip, to compare with.

OUT gets NAME.json for each of them, results.json and table.md. A measurement that was stopped goes on when the same
command is given again. Further settings: seed, batch (clips at once), and the model's: model.video.steps, …

Figures of a clip, means over its frames between the ends where not told otherwise:
- perceptual error: distance of the image encoder's tokens to the true frame's (as LPIPS, without learnt weights);
- place error: 1 − intersection over union of the character's box with the true one; the box is that of the largest
  region in which the frame differs from the empty scene. Not for clips in which the scenery passes by;
- pixel error: mean absolute difference to the true frame; a blur wins it, so it does not judge;
- end error: mean absolute difference of the first and the last frame to the given pictures;
- motion: change from frame to frame over that of the true clip;
- shirt, hat, tone: share of the frames in which the judge reads the true one (a tone: that of skin, fur or metal);
- LPIPS-like and CLIPSIM-like -first and -frames: the paper's, over all frames, in the image encoder's features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import ModelConfig, VideoConfig
from storydiffusion.config.module_command import run
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.stories import JUDGED_SIZE, check_judged, judge_figures, read_text
from storydiffusion.loaders.checksums import compute_checksums
from storydiffusion.loaders.resolve import find_weights, get_video_config, resolve_model
from storydiffusion.loaders.sources import find_model_folder, package_path
from storydiffusion.loaders.video import load_image_encoder, load_video_backbone
from storydiffusion.output.files import compute_folder_sha256, compute_sha256, write_atomically
from storydiffusion.pipelines.transition import build_sampling

if TYPE_CHECKING:
    import numpy as np
    import torch

    from storydiffusion.models.image_encoders import ImageEncoder
    from storydiffusion.models.video_model import VideoModel
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
    from storydiffusion.storyworld.clips import ClipTruth

SECTION = "transitions"
READ = ("shirt", "hat", "tone")
ERRORS = ("perceptual error", "place error", "pixel error", "end error")
OVER_TIME = ("LPIPS-first", "LPIPS-frames", "CLIPSIM-first", "CLIPSIM-frames")
FIGURES = (*ERRORS, "motion", *READ, *OVER_TIME)
OURS, INTERPOLATION, ALONE, SPARSE, FADE, TRUTH = WAYS = (
    "predictor", "interpolation", "no semantic tokens", "sparse control", "cross-fade", "truth",
)  # fmt: skip

OPTIONS = ("frames", "steps", "guidance_scale", "boundary_frames")

Measured = dict[str, float | None]
"""The FIGURES of one clip; None where it has no such thing"""


@dataclass
class MeasureVideoConfig:
    """The command's settings."""

    model: ModelConfig
    out: str = "runs/measure_video"
    readme: str | None = None  # a document with the markers of `evaluation.table.replace_section`
    interpolation: str | None = None  # a released folder, its predictor of no layers; null: ours without transformer
    clips: int = 200
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 2 or self.batch < 1:
            raise UserError(f"clips={self.clips} and batch={self.batch}: measure 2 clips or more, sample 1 or more")
        check_judged(self.model, self.seed)


@dataclass(frozen=True)
class Readers:
    """What looks at the frames."""

    classifier: "AttributeClassifier"
    encoder: "ImageEncoder"


def measure_video(config: MeasureVideoConfig) -> None:
    """Samples, reads and writes everything; see the head of this file."""
    from storydiffusion.evaluation.records import json_bytes
    from storydiffusion.evaluation.tables import replace_section

    readme = Path(config.readme) if config.readme else None
    if readme:
        replace_section(read_text(readme), SECTION, "")  # refuses before an hour of work, not after
    folder = find_model_folder(config.model.path, config.model.revision)
    accuracy = {name: judge_figures(folder)[name] for name in READ}
    ways = [way for way in WAYS if way != SPARSE or get_video_config(config.model).sparse_control is not None]
    models = models_of(config, ways)
    readers = readers_of(config.model)
    measured = {}
    for way in ways:
        file = Path(config.out) / f"{file_name(way)}.json"
        make = maker(way, models.get(way), config)
        measured[way] = measure_clips(file, settings_of(config, folder, way), make, readers, config, way)
    results = {
        "settings": settings_of(config, folder, OURS),
        "attribute_classifier": accuracy,
        "clips": config.clips,
        "interpolation is trained apart": config.interpolation is not None,
        "ways": summarize(measured),
        "motions": by_motion(measured),
    }
    write_atomically(Path(config.out) / "results.json", json_bytes(results))
    table = report(results)
    write_atomically(Path(config.out) / "table.md", table.encode())
    if readme:
        write_atomically(readme, replace_section(read_text(readme), SECTION, table).encode())
    print(table)


Maker = Callable[["Sequence[tuple[int, ClipTruth]]"], "Iterator[np.ndarray]"]
"""Numbered clips → of each its frames, uint8 (F, H, W, 3)"""


def file_name(way: str) -> str:
    """A way's name without spaces."""
    return way.replace(" ", "_")


def readers_of(config: ModelConfig) -> Readers:
    """The model's judge and image encoder."""
    import torch

    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier

    classifier = AttributeClassifier.load(find_model_folder(config.path, config.revision) / "attribute_classifier")
    return Readers(classifier, load_image_encoder(get_video_config(config).image_encoder, torch.float32))


def measure_clips(
    file: Path,
    settings: Mapping[str, Any],
    make: Maker,
    readers: Readers,
    config: MeasureVideoConfig,
    label: str,
) -> list[dict[str, Any]]:
    """The FIGURES of the first `config.clips` held-out clips, one record each: clip, motion, figures, seconds.

    `file` is kept up to date after every batch; what it holds already is not sampled again.
    Raises UserError where it holds figures of other settings.
    """
    from storydiffusion.evaluation.records import measure_all
    from storydiffusion.storyworld.clips import sample_clip
    from storydiffusion.storyworld.images import HELD_OUT_SEED

    def measure(part: "Sequence[tuple[int, ClipTruth]]") -> list[dict[str, Any]]:
        return [
            {"clip": index, "motion": clip.motion, "figures": figures_of(clip, frames, readers)}
            for (index, clip), frames in zip(part, make(part), strict=True)
        ]

    clips = [(index, sample_clip(HELD_OUT_SEED, index)) for index in range(config.clips)]
    return measure_all(file, settings, clips, measure, config.batch, label, "clip")


def video_for(config: MeasureVideoConfig, way: str) -> VideoConfig:
    """The parts of the video model of a way that has one. Raises UserError where one that it needs is not named."""
    video = get_video_config(config.model)
    if way == SPARSE:
        if video.sparse_control is None:
            raise UserError("model.video.sparse_control=null: name the SparseCtrl that is to be measured")
        return replace(video, predictor=None, boundary_frames="free")
    video = replace(video, sparse_control=None)
    if way in (OURS, INTERPOLATION) and video.predictor is None:
        raise UserError("model.video.predictor=null: name the predictor that is to be measured")
    if way == OURS or (way == INTERPOLATION and config.interpolation is None):
        return video
    if way == INTERPOLATION and config.interpolation is not None:
        own = Path(config.interpolation) / "motion_adapter"
        adapter = str(own) if own.is_dir() else video.motion_adapter
        return replace(video, predictor=str(Path(config.interpolation) / "predictor"), motion_adapter=adapter)
    return replace(video, predictor=None)


def models_of(config: MeasureVideoConfig, ways: Sequence[str]) -> dict[str, "VideoModel"]:
    """The video model of each of `ways` that has one; they share what is the same.

    Raises UserError where a way's parts are not named, before any is loaded.
    """
    from storydiffusion.loaders.video import add_predictor, add_sparse_control, move_to_device

    if not {OURS, INTERPOLATION, ALONE, SPARSE} & set(ways):
        return {}
    videos = {way: video_for(config, way) for way in {*ways, OURS if INTERPOLATION in ways else ALONE}}
    model = resolve_model(config.model)
    device, dtype = model.device, model.dtype
    alone = load_video_backbone(model, dtype)
    models = {ALONE: alone}
    if OURS in videos:
        models[OURS] = add_predictor(alone, videos[OURS], dtype)
    if INTERPOLATION in ways:
        models[INTERPOLATION] = _interpolation(config, models[OURS], alone, dtype)
    if SPARSE in videos:
        models[SPARSE] = add_sparse_control(alone, videos[SPARSE], dtype)
    return {way: move_to_device(model, device) for way, model in models.items()}


def _interpolation(
    config: MeasureVideoConfig, ours: "VideoModel", alone: "VideoModel", dtype: "torch.dtype"
) -> "VideoModel":
    """Our model without its transformer, or the one that `config.interpolation` names."""
    from storydiffusion.loaders.video import add_predictor

    if config.interpolation is None:
        assert ours.predictor is not None  # the settings have seen to it
        return replace(ours, predictor=ours.predictor.without_transformer())
    video = video_for(config, INTERPOLATION)
    shares_all = video.motion_adapter == video_for(config, OURS).motion_adapter
    around = alone if shares_all else load_video_backbone(resolve_model(replace(config.model, video=video)), dtype)
    model = add_predictor(around, video, dtype)
    if model.predictor is None or len(model.predictor.layers):
        raise UserError(f"interpolation={config.interpolation} has layers: train one with predictor.layers=0")
    return model


def maker(way: str, model: "VideoModel | None", config: MeasureVideoConfig) -> Maker:
    """How a way makes the frames of clips."""
    import torch

    from storydiffusion.evaluation.metrics.clips import cross_fade
    from storydiffusion.pipelines.story_video import transition_seed
    from storydiffusion.pipelines.transition import sample_clips
    from storydiffusion.storyworld.clips import caption_clip, render_clip

    video = video_for(config, way)

    def make(part: "Sequence[tuple[int, ClipTruth]]") -> "Iterator[np.ndarray]":
        true = [render_clip(clip, video.frames, JUDGED_SIZE) for _, clip in part]
        if way == TRUTH:
            yield from true
        elif model is None:
            yield from (cross_fade(frames[0], frames[-1], video.frames) for frames in true)
        else:
            start, end = (
                torch.stack([torch.from_numpy(frames[at]).permute(2, 0, 1) for frames in true]) for at in (0, -1)
            )
            prompts = [caption_clip(clip, index) for index, clip in part]
            seeds = [transition_seed(config.seed, index) for index, _ in part]
            sampled = sample_clips(model, start, end, prompts, seeds, build_sampling(video))
            yield from sampled.permute(0, 1, 3, 4, 2).numpy()

    return make


def figures_of(clip: "ClipTruth", frames: "np.ndarray", readers: Readers) -> Measured:
    """The FIGURES of one clip, uint8 (F, H, W, 3), as defined at the head of this file."""
    import numpy as np
    import torch

    from storydiffusion.evaluation.metrics.clips import (
        cosine,
        figure_box,
        from_first,
        from_previous,
        motion,
        overlap,
        pixel_error,
        token_distance,
    )
    from storydiffusion.storyworld.clips import follow, render_clip, render_plates
    from storydiffusion.storyworld.images import to_tensor

    count, size = frames.shape[:2]
    true = render_clip(clip, count, size)
    pictures = torch.from_numpy(np.stack([frames, true])).permute(0, 1, 4, 2, 3)
    tokens, true_tokens = (readers.encoder.features(part, "hidden").numpy() for part in pictures)
    pooled = readers.encoder.features(pictures[0], "pooled")[:, 0].numpy()
    between = range(1, count - 1)
    place = None
    if not clip.travels:
        plates, truth = render_plates(clip, count, size), follow(clip, count, size)
        place = float(np.mean([1 - overlap(figure_box(frames[i], plates[i]), truth[i].box) for i in between]))
    read = readers.classifier.read(to_tensor(frames[1:-1]))
    figures: Measured = {
        "perceptual error": float(np.mean([token_distance(tokens[i], true_tokens[i]) for i in between])),
        "place error": place,
        "pixel error": pixel_error(frames[1:-1], true[1:-1]),
        "end error": pixel_error(frames[[0, -1]], true[[0, -1]]),
        "motion": motion(frames) / motion(true),
        **{name: float(np.mean([value == getattr(clip.start, name) for value in read[name]])) for name in READ},
    }
    for name, compare, features in (("LPIPS", token_distance, tokens), ("CLIPSIM", cosine, pooled)):
        figures |= {f"{name}-first": from_first(compare, features), f"{name}-frames": from_previous(compare, features)}
    return figures


def summarize(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """For each way the estimate of each figure, and the predictor's paired difference to it."""
    from storydiffusion.evaluation.statistics import estimate, paired_difference

    def values(way: str, name: str) -> list[float]:
        return [value for one in measured[way] if (value := one["figures"][name]) is not None]

    summary: dict[str, Any] = {}
    for way in measured:
        summary[way] = {}
        for name in FIGURES:
            if len(values(way, name)) >= 2:
                difference = asdict(paired_difference(values(OURS, name), values(way, name)))
                summary[way][name] = {**asdict(estimate(values(way, name))), "predictor_less_this": difference}
    return summary


def by_motion(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means of both errors for each motion and way, with the number of clips."""
    motions = sorted({one["motion"] for one in measured[OURS]})
    found: dict[str, Any] = {}
    for motion in motions:
        found[motion] = {"clips": sum(one["motion"] == motion for one in measured[OURS])}
        for way, records in measured.items():
            for name in ERRORS[:2]:
                values = [v for one in records if one["motion"] == motion and (v := one["figures"][name]) is not None]
                if values:
                    found[motion].setdefault(way, {})[name] = sum(values) / len(values)
    return found


def report(results: Mapping[str, Any]) -> str:
    """The tables in Markdown, and under them what they were measured on, how and where."""
    from storydiffusion.evaluation.tables import markdown_table

    ways, settings = results["ways"], results["settings"]
    header = ["", *ways]
    rows = [[_title(name), *(_cell(ways[way].get(name), name) for way in ways)] for name in FIGURES]
    others = [way for way in ways if way not in (OURS, TRUTH)]
    differences = [
        [f"{name}, predictor less …", *(_difference(ways[way].get(name), name) for way in others)]
        for name in ("perceptual error", "place error", *READ)
    ]
    motions = [
        [motion, str(found["clips"]), *(_by_motion(found, way) for way in ways)]
        for motion, found in results["motions"].items()
    ]
    accuracy = ", ".join(f"{name} {100 * share:.1f}" for name, share in results["attribute_classifier"].items())
    trained_apart = results["interpolation is trained apart"]
    interpolation = "was trained by itself" if trained_apart else "is the predictor without its transformer"
    return (
        markdown_table(header, rows)
        + "\n"
        + markdown_table(["", *others], differences)
        + f"\nThese are figures of the model {settings['model']}, which draws StoryWorld alone: {results['clips']} "
        f"held-out clips of {settings['frames']} frames, {settings['steps']} steps, guidance "
        f"{settings['guidance_scale']:g}, the same seeds for every way; mean ± standard error over clips, p of a "
        "paired t-test. The first two errors are over the frames between the ends, whose truth is known; smaller is "
        "better, as of LPIPS; of CLIPSIM larger is. LPIPS and CLIPSIM here are taken in the model's own small image "
        "encoder, so not comparable with others; a clip that stands still wins all four. Shirt, hat and tone are "
        f"read by the model's judge, whose own accuracy on held-out stills is, in %: {accuracy}; the column of truth "
        f"shows how it reads the true frames between. The interpolation {interpolation}. "
        f"Machine: {settings['machine']}, {settings['dtype']}.\n\n"
        "<details><summary>Perceptual and place error by motion</summary>\n\n"
        + markdown_table(["motion", "clips", *ways], motions)
        + "\n</details>\n"
    )


def _by_motion(found: Mapping[str, Any], way: str) -> str:
    return " / ".join(f"{found[way][name]:.3f}" for name in ERRORS[:2] if name in found[way])


def _title(name: str) -> str:
    return f"{name}, %" if name in READ else f"{name}, × true" if name == "motion" else name


def _cell(entry: Mapping[str, Any] | None, name: str) -> str:
    if entry is None:
        return "–"
    scale, digits = (100, 1) if name in READ else (1, 3)
    return f"{scale * entry['mean']:.{digits}f} ± {scale * entry['standard_error']:.{digits}f}"


def _difference(entry: Mapping[str, Any] | None, name: str) -> str:
    from storydiffusion.evaluation.statistics import PairedDifference
    from storydiffusion.evaluation.tables import p_value

    if entry is None:
        return "–"
    difference = PairedDifference(**entry["predictor_less_this"])
    scale, digits = (100, 1) if name in READ else (1, 3)
    p = p_value(difference)
    mean, error = scale * difference.mean, scale * difference.standard_error
    return f"{mean:+.{digits}f} ± {error:.{digits}f} (p {p if p.startswith('<') else f'= {p}'})"


def settings_of(config: MeasureVideoConfig, folder: Path, way: str) -> dict[str, Any]:
    """What the figures of a way depend on: a measurement goes on only where all of it is the same."""
    from storydiffusion.training.record import machine

    model, video = config.model, video_for(config, way)
    weights = compute_checksums(find_weights(folder))
    weights["attribute_classifier"] = compute_sha256(folder / "attribute_classifier" / "model.safetensors")
    control = video.sparse_control
    parts = {"motion_adapter": video.motion_adapter, "predictor": video.predictor}
    parts["sparse_control"] = control and control.weights
    for part, source in parts.items():
        if source is not None and (path := package_path(source)).is_dir():
            weights |= {f"{part}/{name}": checksum for name, checksum in compute_folder_sha256(path).items()}
    options: dict[str, Any] = {name: getattr(video, name) for name in OPTIONS}
    if control is not None:
        options["sparse control's scale"] = control.scale
    return {
        "model": model.name,
        "dtype": model.dtype,
        "device": model.device,
        **options,
        "boundary_attention": video.boundary_attention,
        "seed": config.seed,
        "machine": machine(),
        "weights": weights,
    }


if __name__ == "__main__":
    run(MeasureVideoConfig, measure_video, __doc__)
