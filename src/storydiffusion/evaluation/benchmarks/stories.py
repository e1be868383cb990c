"""Measures character consistency and text alignment on StoryWorld's frozen stories, for every rate of sampling.

  python -m storydiffusion.measure                       128 stories at rates 0 (off), 0.1, 0.3, 0.5, 0.7 and 1
  python -m storydiffusion.measure readme=README.md      and puts the table into the README
  python -m storydiffusion.measure rates=[0,0.5] stories=16 out=runs/quick
  python -m storydiffusion.measure model.path=FOLDER     another model of StoryWorld, with its judge/ and training.json

OUT gets rate-R.json (what the judge read off every picture), results.json and table.md. A measurement that was stopped
goes on at the next batch of stories when the same command is given again. Further settings: seed, batch (stories told
at once; each is told as if alone), and the model's: model.steps, model.guidance_scale, model.device, …

Story n is told with seed + n, at every rate the same. Each figure is a mean over stories with its standard error:
- consistency: share of a story's pairs of pictures that agree in an attribute, averaged over the attributes that its
  prompts leave open and that its character has. A hat's colour counts in those pairs where both pictures show a hat.
- kind, action, place, object: share of the story's pictures that show what was told, no object being told as none.
- named attire: share of the named parts of the attire that the pictures show as told (of stories that name any);
  named shirt: the same of the shirt's colour alone.
- difference: consistency less that of the same stories without sharing; p of the paired t-test.
"""

import json
import statistics as quantiles
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storydiffusion.config import ModelConfig
from storydiffusion.config.module_command import run
from storydiffusion.errors import UserError
from storydiffusion.loaders.checksums import compute_checksums
from storydiffusion.loaders.resolve import find_weights, resolve_model
from storydiffusion.loaders.text_to_image import StoryModel, load_story_model
from storydiffusion.output.files import write_atomically
from storydiffusion.storyworld.stories import FILE, FrozenStory, existing, load_stories

if TYPE_CHECKING:
    from PIL import Image

    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.pipelines.conditioning import Conditions
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier

SECTION = "consistency"
TOLD = ("kind", "action", "place")
ALIGNED = (*TOLD, "object")
FIGURES = ("consistency", *ALIGNED, "named attire", "named shirt")
JUDGED_SIZE = 128  # pixels

Measured = dict[str, float | None]
"""The FIGURES of one story, `neighbours` and `alignment`; None where its prompts name no such thing"""

Shown = TypeVar("Shown")

Readings = list[dict[str, str]]
"""Attribute → value of each picture of a story"""


def check_judged(model: ModelConfig, seed: int) -> None:
    """Raises UserError for a seed out of range, or pictures of a size that the judge does not read."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed={seed} is outside 0…{2**31 - 1}")
    if (model.height, model.width) != (JUDGED_SIZE, JUDGED_SIZE):
        raise UserError(f"the judge reads {JUDGED_SIZE} × {JUDGED_SIZE}: leave model.height and model.width there")


@dataclass
class MeasureConfig:
    """The command's settings."""

    model: ModelConfig
    out: str = "runs/measure"
    readme: str | None = None  # a document with the markers of `evaluation.table.replace_section`
    stories: int = 128
    rates: list[float] = field(default_factory=lambda: [0, 0.1, 0.3, 0.5, 0.7, 1.0])
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stories < 2 or self.batch < 1:
            raise UserError(f"stories={self.stories} and batch={self.batch}: measure 2 stories or more, tell 1 or more")
        if len(set(self.rates)) < len(self.rates) or 0 not in self.rates or not all(0 <= r <= 1 for r in self.rates):
            raise UserError(f"rates={self.rates}: give different numbers in [0, 1], 0 (no sharing) among them")
        check_judged(self.model, self.seed)


def measure(config: MeasureConfig) -> None:
    """Tells, reads and writes everything; see the head of this file."""
    from storydiffusion.attention.config import ConsistentSelfAttentionConfig
    from storydiffusion.evaluation.records import json_bytes
    from storydiffusion.evaluation.tables import replace_section
    from storydiffusion.storyworld.attribute_classifier import AttributeClassifier

    readme = Path(config.readme) if config.readme else None
    if readme:
        replace_section(read_text(readme), SECTION, "")  # refuses before hours of work, not after
    stories = load_stories()
    if config.stories > len(stories):
        raise UserError(f"stories={config.stories}, but there are {len(stories)} frozen stories: give at most so many")
    resolved = resolve_model(config.model)
    folder = resolved.folder
    figures = judge_figures(folder)
    model = load_story_model(resolved)
    settings = settings_of(config, folder)
    classifier = AttributeClassifier.load(folder / "attribute_classifier")

    readings = {}
    for rate in sorted(config.rates):
        attention = ConsistentSelfAttentionConfig(rate=rate, seed=config.seed)

        def read(told: Sequence[FrozenStory], attention: "ConsistentSelfAttentionConfig" = attention) -> list[Readings]:
            return read_by(classifier, told, tell(model, config.model, told, attention, config.seed))

        file, label = Path(config.out) / f"rate-{rate:g}.json", f"rate {rate:g}"
        known = {**settings, "rate": rate}
        readings[rate] = read_stories(file, known, stories[: config.stories], read, config.batch, label)
    results = {
        "settings": settings,
        "attribute_classifier": figures,
        "stories": config.stories,
        "rates": summarize(readings, stories),
    }
    write_atomically(Path(config.out) / "results.json", json_bytes(results))
    table = report(results)
    write_atomically(Path(config.out) / "table.md", table.encode())
    if readme:
        write_atomically(readme, replace_section(read_text(readme), SECTION, table).encode())
    print(table)


def tell(
    model: StoryModel,
    config: ModelConfig,
    stories: Sequence[FrozenStory],
    attention: "ConsistentSelfAttentionConfig",
    seed: int,
    noise: str = "own",
    conditions: "Conditions | None" = None,
) -> list["Image.Image"]:
    """The pictures of several stories told in one batch, story by story; each comes out as if told alone.

    `noise` is that of `panel_seeds`; `conditions` are of all their panels, None being the text alone.
    """
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.pipelines.panels import panel_seeds

    sizes = [len(story.panels) for story in stories]
    groups = [PanelGroup(size, key=story.number) for story, size in zip(stories, sizes, strict=True)]
    seeds = [s for story in stories for s in panel_seeds(seed + story.number, [("hero",)] * len(story.panels), noise)]
    prompts = [panel.prompt for story in stories for panel in story.panels]
    return paint(model, config, prompts, seeds, attention, groups, conditions)


def paint(
    model: StoryModel,
    config: ModelConfig,
    prompts: list[str],
    seeds: list[int],
    attention: Any,
    groups: list[Any] | None,
    conditions: "Conditions | None" = None,
) -> list["Image.Image"]:
    """One picture for each prompt and seed; `groups` of them share attention as `attention` says, None being one."""
    from storydiffusion.attention.plugin import consistent_self_attention
    from storydiffusion.pipelines.conditioning import text_conditions
    from storydiffusion.pipelines.panels import starting_noise

    told = conditions or text_conditions(model.pipe, prompts, [""] * len(prompts))
    noise, generators = starting_noise(model.pipe, seeds, config.height, config.width)
    pipe: Any = model.pipe
    with consistent_self_attention(pipe, attention, groups) as state:

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return told.at_step_end(step, state.on_step_end(pipe, step, timestep, tensors))

        return pipe(
            **told.arguments,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            height=config.height,
            width=config.width,
            latents=noise.to(model.dtype),
            generator=generators,
            callback_on_step_end=on_step_end,
        ).images


def read_stories(
    file: Path,
    settings: Mapping[str, Any],
    stories: Sequence[FrozenStory],
    read: Callable[[Sequence[FrozenStory]], list[Readings]],
    batch: int,
    label: str,
) -> list[dict[str, Any]]:
    """What `read` reads off the stories, one record each: number, readings, seconds.

    `file` is kept up to date after every batch; what it holds already is not told again.
    Raises UserError where it holds readings of other settings.
    """
    from storydiffusion.evaluation.records import measure_all

    def records(told: Sequence[FrozenStory]) -> list[dict[str, Any]]:
        return [{"number": s.number, "readings": reading} for s, reading in zip(told, read(told), strict=True)]

    return measure_all(file, settings, stories, records, batch, label, "story")


def summarize(readings: Mapping[float, Sequence[Mapping[str, Any]]], stories: Sequence[FrozenStory]) -> dict[str, Any]:
    """For each rate the estimate of each figure, its paired difference to rate 0, and the median seconds a story.

    Figures of fewer than two stories, of which no spread can be told, are left out.
    """
    from storydiffusion.evaluation.statistics import estimate, paired_difference

    measured = {
        rate: [figures_of(stories[one["number"]], one["readings"]) for one in told] for rate, told in readings.items()
    }
    summary = {}
    for rate, told in readings.items():
        figures = {}
        for name in FIGURES:
            values, baseline = ([value for one in measured[r] if (value := one[name]) is not None] for r in (rate, 0))
            if len(values) >= 2:
                difference = asdict(paired_difference(values, baseline))
                figures[name] = {**asdict(estimate(values)), "difference_to_off": difference}
        seconds = quantiles.median(one["seconds"] for one in told)
        summary[f"{rate:g}"] = {"figures": figures, "seconds_per_story": round(seconds, 3)}
    return summary


def figures_of(story: FrozenStory, readings: Sequence[Mapping[str, str]]) -> Measured:
    """The FIGURES of one story, as defined at the head of this file; `neighbours` is consistency of these alone,
    `alignment` the mean of kind, action and place.
    """
    from storydiffusion.evaluation.metrics.attribute_agreement import alignment, consistency

    shown, told = [existing(reading) for reading in readings], [panel.prompted for panel in story.panels]
    named = sorted(set(told[0]) - set(ALIGNED))
    return {
        "consistency": consistency(shown, story.open),
        "neighbours": consistency(shown, story.open, reach=1),
        "alignment": alignment(shown, told, TOLD),
        **{name: alignment(shown, told, [name]) for name in ALIGNED},
        "named attire": alignment(shown, told, named),
        "named shirt": alignment(shown, told, ["shirt"]),
    }


def report(results: Mapping[str, Any]) -> str:
    """The table in Markdown, and under it what it was measured on, how, by which judge and where."""
    from storydiffusion.evaluation.statistics import Estimate, PairedDifference
    from storydiffusion.evaluation.tables import markdown_table, p_value, percent, points

    def cells(rate: str, measured: Mapping[str, Any]) -> Iterator[str]:
        yield "off" if rate == "0" else rate
        for name in FIGURES:
            entry = dict(measured["figures"].get(name) or {})
            difference = entry.pop("difference_to_off", None)
            yield percent(Estimate(**entry)) if entry else "–"
            if name == "consistency":
                against = PairedDifference(**difference)
                yield from ("–", "–") if rate == "0" else (points(against), p_value(against))
        yield f"{measured['seconds_per_story']:.1f}"

    header = ["rate", "consistency, %", "above off, points", "p", *(f"{name}, %" for name in FIGURES[1:]), "s / story"]
    settings = results["settings"]
    accuracy = ", ".join(f"{name} {100 * share:.1f}" for name, share in results["attribute_classifier"].items())
    return (
        markdown_table(header, [list(cells(rate, measured)) for rate, measured in results["rates"].items()])
        + f"\nThese are figures of the model {settings['model']}, which draws StoryWorld alone: {results['stories']} "
        f"frozen stories of 4 panels (checksum {settings['frozen stories'][:12]}), {settings['steps']} steps, guidance "
        f"{settings['guidance_scale']:g}, the same seeds at every rate; mean ± standard error over stories, p of a "
        "paired t-test. Consistency: pairs of pictures that agree, averaged over the attributes that prompts leave "
        f"open. Pictures are read by its judge, whose own accuracy on held-out renders is, in %: {accuracy}. "
        f"Time: {settings['machine']}, {settings['dtype']}, {settings['batch']} stories at once, reading included.\n"
    )


def settings_of(config: MeasureConfig, folder: Path) -> dict[str, Any]:
    """What the readings depend on: a measurement goes on only where all of it is the same."""
    from storydiffusion.training.record import machine

    model = config.model
    return {
        "model": model.name,
        **{name: getattr(model, name) for name in ("dtype", "device", "scheduler", "steps", "guidance_scale")},
        "seed": config.seed,
        "batch": config.batch,
        "machine": machine(),
        "frozen stories": json.loads(FILE.read_text(encoding="utf-8"))["sha256"],
        "weights": judged_weights(folder),
    }


def judged_weights(folder: Path) -> dict[str, str]:
    """The SHA-256 of a model's files of weights and of its judge's."""
    weights = find_weights(folder) | {"attribute_classifier": folder / "attribute_classifier" / "model.safetensors"}
    return compute_checksums(weights)


def judge_figures(folder: Path) -> dict[str, float]:
    """The accuracy of each attribute that the folder's judge reached on held-out renders."""
    from storydiffusion.training.record import RECORD

    try:
        figures = json.loads((folder / RECORD).read_text(encoding="utf-8"))["attribute_classifier"]["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / RECORD} does not tell the accuracy of a judge: train and export one there"
        ) from error
    for name in ("config.json", "model.safetensors"):
        if not (folder / "attribute_classifier" / name).exists():
            raise UserError(f"{folder / 'judge'} has no {name}: train and export a judge there")
    return figures


def read_by(
    classifier: "AttributeClassifier", stories: Sequence[FrozenStory], pictures: Sequence["Image.Image"]
) -> list[Readings]:
    """What the judge reads off the pictures of several stories, which `tell` has told."""
    return by_story(stories, rows(classifier.read(pixels(pictures))))


def pixels(pictures: Sequence["Image.Image"]) -> Any:
    """(B, 3, H, W) float32 in [−1, 1], as the judge takes them."""
    import numpy as np

    from storydiffusion.storyworld.images import to_tensor

    return to_tensor(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))


def rows(columns: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Attribute → value of every picture, turned into one reading for each picture."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def by_story(stories: Sequence[FrozenStory], panels: Sequence[Shown]) -> list[list[Shown]]:
    """One list for each story, of what runs through the panels of them all: readings, pictures."""
    rest = iter(panels)
    return [[next(rest) for _ in story.panels] for story in stories]


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


if __name__ == "__main__":
    run(MeasureConfig, measure, __doc__)
