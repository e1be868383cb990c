"""Run a benchmark: generate many stories, images or clips of StoryWorld, measure them, write result.json and table.md.

records.json beside it holds every finished item, so the same command resumes where it was stopped. A sweep
(`python infer.py -m benchmark=…`) is compared by `compare`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import InferConfig, ModelConfig, flat
from storydiffusion.evaluation.benchmarks import (
    characters,
    emotion,
    image_encoder,
    stories,
    text_to_image,
    transitions,
)
from storydiffusion.evaluation.benchmarks.benchmark import Benchmark, check_readable, get_checksums, read_accuracy
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.evaluation.records import RECORDS, can_resume, measure_all
from storydiffusion.evaluation.result import FILE, MetricValues, Result, load_result, save_result
from storydiffusion.files.atomic import remove_drafts, write_atomically
from storydiffusion.loaders.resolve import ResolvedModel, resolve_model
from storydiffusion.output.folder_lock import own_folder

if TYPE_CHECKING:
    from storydiffusion.evaluation.statistics import Estimate

TABLE = "table.md"


@dataclass(frozen=True)
class Kind:
    """What `run_benchmark` needs to know of a benchmark before it is loaded."""

    get_settings: Callable[[InferConfig, ResolvedModel], dict[str, Any]]
    load: Callable[[InferConfig, ResolvedModel, Path], Benchmark]
    count: str  # the setting that says how many items


BENCHMARKS = {
    "stories": Kind(stories.get_settings, stories.load_benchmark, "stories"),
    "characters": Kind(characters.get_settings, characters.load_benchmark, "stories"),
    "transitions": Kind(transitions.get_settings, transitions.load_benchmark, "clips"),
    "image_encoder": Kind(image_encoder.get_settings, image_encoder.load_benchmark, "blocks"),
    "emotion": Kind(emotion.get_settings, emotion.load_benchmark, "stories"),
    "text2image": Kind(text_to_image.get_settings, text_to_image.load_benchmark, "images"),
}
"""By benchmark.kind"""


def run_benchmark(config: InferConfig) -> list[str]:
    """Measure the items of `config.benchmark` that are not measured yet and write result.json.

    Returns:
        Lines that summarize the result.

    Raises:
        UserError: the model has no attribute classifier, or the folder holds results of other settings.
    """
    folder, kind = Path(str(config.run_dir)), BENCHMARKS[config.benchmark.kind]
    model = resolve_model(get_model(config))
    settings = get_settings(config, model)
    # More items resume from the records of fewer, so the records' settings leave out the count.
    count = {f"benchmark.{kind.count}": getattr(config.benchmark, kind.count)}
    file = folder / FILE
    with own_folder(folder):
        remove_drafts(folder / "portraits")
        if config.overwrite:
            _remove_finished(folder, settings)
        if file.exists() and (result := load_result(file)).settings == settings | count:
            return [f"{file} is already measured; pass overwrite=true to measure again", *_summarize(result)]
        benchmark = kind.load(config, model, folder)
        records = measure_all(
            folder / RECORDS, settings, benchmark.items, benchmark.measure, config.benchmark.batch, folder.name,
            benchmark.unit,
        )  # fmt: skip
        result = build_result(benchmark, records, settings | count)
        save_result(result, folder)
        write_atomically(folder / TABLE, write_table(result).encode())
    return [f"measured: {file}", *_summarize(result)]


def get_model(config: InferConfig) -> ModelConfig:
    """Return the model with the run's sampling settings."""
    given = {name: getattr(config, name) for name in ("steps", "guidance_scale", "height", "width")}
    return replace(config.model, **given)


def get_settings(config: InferConfig, model: ResolvedModel) -> dict[str, Any]:
    """Return everything that the value of an item depends on, under the keys of the configuration where it has them.

    Weights count by their checksums, not by their paths.
    """
    check_readable(model.config, config.seed)
    read_accuracy(model.folder)  # refuses a model without an attribute classifier before the checksums take time
    own = BENCHMARKS[config.benchmark.kind].get_settings(config, model)
    shared = {name: getattr(model.config, name) for name in ("name", "dtype", "device", "scheduler")}
    weights = get_checksums(model) | own.pop("weights")
    model_settings = {**shared, **model.config.additions, **own.pop("model", {}), "weights": weights}
    benchmark = {"kind": config.benchmark.kind, **own.pop("benchmark")}
    return flat({"seed": config.seed, "model": model_settings, **own, "benchmark": benchmark})


def build_result(benchmark: Benchmark, records: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Result:
    """Gather the records of all items into one result, metrics in the order of the registry."""
    from storydiffusion.training.record import machine

    measured = [record["metrics"] for record in records]
    metrics = {
        name: MetricValues([values.get(name) for values in measured], benchmark.networks.get(str(metric.network)))
        for name, metric in METRICS.items()
        if any(values.get(name) is not None for values in measured)
    }
    remarks = [*benchmark.remarks, f"Machine: {machine()}."]
    return Result(benchmark.names, metrics, settings, remarks, benchmark.groups)


def _remove_finished(folder: Path, settings: dict[str, Any]) -> None:
    """Remove a finished result, or records of other settings; an interrupted run of the same settings stays."""
    if (folder / FILE).exists() or not can_resume(folder / RECORDS, settings):
        (folder / FILE).unlink(missing_ok=True)
        (folder / RECORDS).unlink(missing_ok=True)


def write_table(result: Result) -> str:
    """Return mean ± standard error of each metric in Markdown, its unit and n, and which values are better; remarks."""
    from storydiffusion.evaluation.tables import escape_markdown, format_mean, markdown_table

    rows = [
        [METRICS[name].title, format_mean(mean), METRICS[name].unit, str(mean.count)]
        for name, mean in _estimate(result).items()
    ]
    remarks = " ".join(map(escape_markdown, result.remarks))
    return f"{markdown_table(['metric', 'mean', 'unit', 'n'], rows)}\n{remarks}\n"


def _summarize(result: Result) -> list[str]:
    from storydiffusion.evaluation.tables import format_mean

    return [f"{METRICS[name].label} {format_mean(mean)} (n {mean.count})" for name, mean in _estimate(result).items()]


def _estimate(result: Result) -> "dict[str, Estimate]":
    """Return the mean of each metric that has two values or more."""
    from storydiffusion.evaluation.statistics import estimate

    found = {name: list(result.values(name).values()) for name in result.metrics}
    return {name: estimate(values) for name, values in found.items() if len(values) > 1}
