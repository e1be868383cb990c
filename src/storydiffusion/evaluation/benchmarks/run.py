"""A benchmark: many stories or clips of StoryWorld, made, read and compared with what is known: config → result.json.

records.json beside it keeps every batch that is done, so that the same command goes on where it was stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.baselines.loading import checksums_of_baseline
from storydiffusion.baselines.portraits import benchmark_conditions
from storydiffusion.config import InferConfig, ModelConfig, StoriesBenchmark, TransitionsBenchmark, flat
from storydiffusion.evaluation.benchmarks.stories import (
    by_story,
    check_judged,
    figures_of,
    judge_figures,
    judged_weights,
    read_by,
    tell,
)
from storydiffusion.evaluation.benchmarks.transitions import (
    ERRORS,
    FIGURES,
    OVER_TIME,
    READ,
    SPARSE,
    WAYS,
    MeasureVideoConfig,
    file_name,
    maker,
    measure_clips,
    models_of,
    readers_of,
)
from storydiffusion.evaluation.networks import MINIATURE, load_image_text_encoder
from storydiffusion.evaluation.records import RECORDS, are_of, measure_all
from storydiffusion.loaders.checksums import compute_part_checksums
from storydiffusion.loaders.resolve import get_video_config, resolve_model
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.storyworld.stories import PANELS, FrozenStory, get_stories

if TYPE_CHECKING:
    from PIL.Image import Image

    from storydiffusion.evaluation.networks import ImageTextEncoder
    from storydiffusion.evaluation.result import Better, Result

BETTER: "dict[str, Better]" = {
    **dict.fromkeys(ERRORS, "lower"),
    **dict.fromkeys(("motion", *OVER_TIME), "truth"),
    **dict.fromkeys(READ, "higher"),
}
"""of the figures of clips; a clip that stands still would win OVER_TIME as the paper reads it"""


def benchmark(config: InferConfig) -> list[str]:
    """Measures what of `config.benchmark` is not measured yet, writes result.json; returns what to tell of it.

    Raises:
        UserError: a model without judge, or a folder that holds what other settings gave.
    """
    from storydiffusion.evaluation.result import FILE, load_result, save_result

    folder = Path(str(config.run_dir))
    settings, count = _settings(config), _count(config.benchmark)
    _make_room(folder, settings, config.overwrite)
    file = folder / FILE
    if file.exists() and (result := load_result(file)).settings == settings | count:
        return [f"{file} is measured already; overwrite=true measures it again", *_summary(result)]
    measure = _stories if isinstance(config.benchmark, StoriesBenchmark) else _transitions
    result = measure(config, folder / RECORDS, settings)
    save_result(replace(result, settings=settings | count), folder)
    return [f"measured: {file}", *_summary(result)]


def _stories(config: InferConfig, records: Path, settings: dict[str, Any]) -> "Result":
    import torch

    from storydiffusion.evaluation.result import Figure, Result
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
    from storydiffusion.training.record import machine

    planned, model_config = config.benchmark, _model(config)
    stories, checksum = get_stories(planned.panels)
    attention = config.csa.build(config.seed)
    resolved = resolve_model(model_config)
    folder = resolved.folder
    accuracy = judge_figures(folder)
    model, classifier = load_story_model(resolved), AttributeClassifier.load(folder / "attribute_classifier")
    encoder = load_image_text_encoder(MINIATURE, torch.device("cpu"))
    chosen = stories[: planned.stories]
    conditions = benchmark_conditions(config, model, records.parent, chosen, judged_weights(folder))

    def measure(told: Sequence[FrozenStory]) -> list[dict[str, Any]]:
        pictures = tell(model, model_config, told, attention, config.seed, config.noise, conditions(told))
        parts = zip(told, read_by(classifier, told, pictures), by_story(told, pictures), strict=True)
        return [
            {"number": story.number, "readings": readings, "similarities": similarities(story, shown, encoder)}
            for story, readings, shown in parts
        ]

    found = measure_all(records, settings, chosen, measure, planned.batch, records.parent.name, "story")
    measured = [
        figures_of(story, one["readings"]) | one["similarities"] for story, one in zip(chosen, found, strict=True)
    ]
    which = "frozen stories" if planned.panels == PANELS else "stories drawn as the frozen ones are,"
    remarks = [
        f"{len(chosen)} {which} of {planned.panels} panels (checksum {checksum[:12]}), made by the model "
        f"{model_config.name}, which draws StoryWorld alone.",
        "Consistency: pairs of pictures that agree, averaged over the attributes that prompts leave open; neighbours: "
        "pairs of neighbouring panels alone; similarities: cosines in the miniature's own image-text encoder, so not "
        "comparable with others; the rest: what was told and is shown.",
        _judged(accuracy),
        f"Machine: {machine()}.",
    ]
    length = "" if planned.panels == PANELS else f" of {planned.panels} panels"
    return Result(
        [f"story {story.number}{length}" for story in chosen],
        {name: Figure([one[name] for one in measured], "higher") for name in measured[0]},
        settings,
        remarks,
    )


def similarities(
    story: FrozenStory, pictures: "Sequence[Image]", encoder: "ImageTextEncoder"
) -> dict[str, float | None]:
    """The paper's two figures of pictures (table 1), of one story: means over its pictures and over their pairs."""
    import numpy as np

    from storydiffusion.evaluation.metrics.embeddings import clip_score, cosines, mean_over_pairs, similarity_matrix
    from storydiffusion.evaluation.summary import CHARACTER, CLIP_SCORE, TEXT_IMAGE

    embeddings = np.stack([encoder.of_picture(np.asarray(picture)) for picture in pictures])
    told = cosines(embeddings, encoder.of_texts([panel.prompt for panel in story.panels]))
    return {
        TEXT_IMAGE.name: float(told.mean()),
        CLIP_SCORE.name: float(clip_score(told).mean()),
        CHARACTER.name: mean_over_pairs(similarity_matrix(embeddings), list(combinations(range(len(pictures)), 2))),
    }


def _transitions(config: InferConfig, records: Path, settings: dict[str, Any]) -> "Result":
    from storydiffusion.evaluation.result import Figure, Result
    from storydiffusion.training.record import machine

    planned, video = config.benchmark, get_video_config(config.model)
    measuring = MeasureVideoConfig(
        config.model, interpolation=planned.interpolation, clips=planned.clips, batch=planned.batch, seed=config.seed
    )
    accuracy = judge_figures(find_model_folder(config.model.path, config.model.revision))
    way = next(way for way in WAYS if file_name(way) == planned.way)
    make = maker(way, models_of(measuring, [way]).get(way), measuring)
    found = measure_clips(records, settings, make, readers_of(config.model), measuring, way)
    remarks = [
        f"{planned.clips} held-out clips of {video.frames} frames, made by the model {config.model.name}, which draws "
        "StoryWorld alone.",
        "Errors are over the frames between the ends; motion is in parts of the true clip's. LPIPS and CLIPSIM are "
        "taken in the model's own small image encoder, so not comparable with others; the paper reads less change as "
        "better, but a clip that stands still would win all four.",
        _judged({name: accuracy[name] for name in READ}),
        f"Machine: {machine()}.",
    ]
    figures = {name: Figure([one["figures"][name] for one in found], BETTER[name]) for name in FIGURES}
    return Result([f"clip {one['clip']}" for one in found], figures, settings, remarks)


def _model(config: InferConfig) -> ModelConfig:
    """The model as it shall be sampled."""
    given = {name: getattr(config, name) for name in ("steps", "guidance_scale", "height", "width")}
    return replace(config.model, **given)


def _settings(config: InferConfig) -> dict[str, Any]:
    """All that the value of a subject depends on, as one level of keys: the configuration's, where it has them.

    Weights go by their checksums, not by where they lie.
    """
    model = _model(config)
    check_judged(model, config.seed)
    folder = find_model_folder(model.path, model.revision)
    judge_figures(folder)  # refuses a model without judge
    weights = judged_weights(folder)
    known: dict[str, Any] = {name: getattr(model, name) for name in ("name", "dtype", "device", "scheduler")}
    settings: dict[str, Any] = {"seed": config.seed, "model": known}
    if isinstance(config.benchmark, StoriesBenchmark):
        settings |= {name: getattr(config, name) for name in ("noise", "steps", "guidance_scale")}
        settings["csa"] = asdict(config.csa)
        weights |= compute_part_checksums("encoder", MINIATURE)
        settings["baseline"] = {"kind": None}
        if config.baseline is not None:
            weights |= checksums_of_baseline(config.baseline)
            by_weights = ("weights", "file", "image_encoder", "portraits", "words")
            known_of_it = asdict(config.baseline).items()
            settings["baseline"] = {name: value for name, value in known_of_it if name not in by_weights}
        told = {"panels": config.benchmark.panels, "checksum": get_stories(config.benchmark.panels)[1]}
    else:
        video = asdict(get_video_config(model))
        parts = {name: video.pop(name) for name in ("motion_adapter", "predictor", "image_encoder")}
        parts["interpolation"] = config.benchmark.interpolation
        control = video.pop("sparse_control")
        if config.benchmark.way == file_name(SPARSE) and control is not None:
            parts["sparse_control"] = control["weights"]
            video |= {"sparse_control_scale": control["scale"], "boundary_frames": "free"}
        for part, source in parts.items():
            weights |= compute_part_checksums(part, source) if source else {}
        known["video"] = {name: value for name, value in video.items() if name != "fps"}
        told = {"way": config.benchmark.way}
    known["weights"] = weights
    return flat({**settings, "benchmark": {"kind": config.benchmark.kind, **told}})


def _count(planned: StoriesBenchmark | TransitionsBenchmark) -> dict[str, int]:
    """Of subjects: more of them go on from the records of fewer."""
    if isinstance(planned, StoriesBenchmark):
        return {"benchmark.stories": planned.stories}
    return {"benchmark.clips": planned.clips}


def _make_room(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """With `overwrite`, removes what is finished or of other settings; what was stopped goes on."""
    from storydiffusion.evaluation.result import FILE

    if overwrite and ((folder / FILE).exists() or not are_of(folder / RECORDS, settings)):
        (folder / FILE).unlink(missing_ok=True)
        (folder / RECORDS).unlink(missing_ok=True)


def _judged(accuracy: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} {100 * share:.1f}" for name, share in accuracy.items())
    return f"Pictures are read by the model's judge, whose own accuracy on held-out renders is, in %: {told}."


def _summary(result: "Result") -> list[str]:
    from storydiffusion.evaluation.statistics import estimate

    found = {name: list(result.values(name).values()) for name in result.figures}
    means = {name: estimate(values) for name, values in found.items() if len(values) > 1}
    return [f"{name} {one.mean:.3f} ± {one.standard_error:.3f} (n {one.count})" for name, one in means.items()]
