"""Gathers what the jobs of a sweep measured into one table, with differences to one of them, and plots.

  python -m storydiffusion.collect sweep=runs/ablation_sampling_rate
  python -m storydiffusion.collect sweep=runs/ablation_variant baseline_job=csa=eq2
  python -m storydiffusion.collect sweep=runs/ablation_video out=runs/tables

OUT (by default the sweep's folder) gets table.md, collected.json and plot.png. The baseline is a job's folder, by name;
by default the first that the sweep planned. Subjects (stories, clips) are paired by their names.

A job without a result is named in the table and on stderr, and so is one that was measured with other settings than the
rest in keys that are not swept; the exit code is then 1. None of it is averaged away. Unfinished jobs go on when the
sweep is run again. Jobs that the folder holds from an earlier sweep are gathered too.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydiffusion.config.sweep import PlannedSweep, planned_sweep
from storydiffusion.errors import UserError
from storydiffusion.evaluation.records import RECORDS, json_bytes
from storydiffusion.evaluation.result import FILE, Better, Result, load_result
from storydiffusion.evaluation.statistics import Estimate, PairedDifference
from storydiffusion.output.files import write_atomically

BEGUN = (RECORDS, "metrics.csv")
"""what a job that began has in its folder"""
WEIGHTS = "model.weights."
"""settings that tell models apart, which trainings and sweeps over models do by what they are"""
TRADED = ("alignment", "consistency")
"""what may be paid, and for what"""
ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "truth": "→ truth"}


@dataclass
class CollectConfig:
    """The command's settings."""

    sweep: str
    baseline_job: str | None = None  # null: the first planned job
    out: str | None = None  # null: the sweep's folder


@dataclass(frozen=True)
class Cell:
    """One figure of one job: its mean where that can be told, and its difference to the baseline where both have it."""

    mean: Estimate | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class Collected:
    """The results of a sweep, side by side.

    Attributes:
        name: the sweep's folder.
        keys: what was swept.
        baseline: name of the job that the others are compared with.
        results: job → its result, in order.
        labels: job → what it sets, of all jobs, in order.
        better: figure → which values are better, of all figures in order.
        missing: job → why there is no result.
        other: job → in what it differs though that is not swept.
    """

    name: str
    keys: tuple[str, ...]
    baseline: str
    results: Mapping[str, Result]
    labels: Mapping[str, str]
    better: Mapping[str, Better]
    missing: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)

    def cell(self, figure: str, job: str) -> Cell:
        """That figure of that job, compared with the baseline."""
        from storydiffusion.evaluation.statistics import estimate

        if job not in self.results:
            return Cell(None, None)
        values = self.results[job].values(figure)
        mean = estimate(list(values.values())) if len(values) > 1 else None
        return Cell(mean, None if job == self.baseline else self.difference(figure, job, self.baseline))

    def difference(self, figure: str, job: str, other: str) -> PairedDifference | None:
        """That figure of one job less the same of another, paired by the subjects' names; None without two pairs."""
        from storydiffusion.evaluation.statistics import paired_difference

        if not {job, other} <= set(self.results):
            return None
        values, baseline = self.results[job].values(figure), self.results[other].values(figure)
        both = [subject for subject in values if subject in baseline]
        if len(both) < 2:
            return None
        return paired_difference([values[name] for name in both], [baseline[name] for name in both])


def collect(config: CollectConfig) -> None:
    """Gathers, compares and writes everything; see the head of this file."""
    folder = Path(config.sweep)
    collected = gather(folder, config.baseline_job)
    out = Path(config.out) if config.out else folder
    write_atomically(out / "collected.json", json_bytes(as_data(collected)))
    table = report(collected)
    write_atomically(out / "table.md", table.encode())
    write_atomically(
        out / "plot.png", plot(collected, list(collected.better), collected.labels, ", ".join(collected.keys))
    )
    print(table)
    if problems := [f"{job} {why}" for job, why in {**collected.missing, **collected.other}.items()]:
        raise UserError(f"{folder} is not a whole comparison: {'; '.join(problems)}")


def gather(folder: Path, baseline: str | None = None) -> Collected:
    """The results below `folder`, whose multirun.yaml tells which there should be.

    Raises:
        UserError: no such sweep, no result at all, or a baseline that is no job of it.
    """
    planned = planned_sweep(folder)
    jobs = _ordered([*planned.jobs, *sorted(_begun(folder) - set(planned.jobs))], planned.keys)
    results, missing = {}, {}
    for job in jobs:
        try:
            results[job] = load_result(folder / job / FILE)
        except UserError:
            missing[job] = _why_missing(folder / job)
    if not results:
        raise UserError(f"{folder} holds no result: {'; '.join(f'{job} {why}' for job, why in missing.items())}")
    if baseline is not None and baseline not in jobs:
        raise UserError(f"baseline_job={baseline} is no job of {folder}: choose one of {'; '.join(jobs)}")
    return Collected(
        name=folder.name,
        keys=planned.keys,
        baseline=planned.jobs[0] if baseline is None else baseline,
        results=results,
        labels={job: _label(job, planned.keys) for job in jobs},
        better={name: figure.better for result in results.values() for name, figure in result.figures.items()},
        missing=missing,
        other=_other_settings(results, planned),
    )


def report(collected: Collected) -> str:
    """A table of each figure in Markdown, with what is missing and what does not go together below them."""
    from storydiffusion.evaluation.tables import markdown_table

    key = ", ".join(collected.keys)
    header = [key or "job", "mean", f"less {collected.labels[collected.baseline]}", "p", "n"]
    parts = [f"## {collected.name}"]
    for figure, better in collected.better.items():
        rows = [[label, *_cells(collected, figure, job)] for job, label in collected.labels.items()]
        parts.append(f"**{figure}** {ARROWS[better]}\n\n{markdown_table(header, rows).rstrip()}")
    notes = [f"**{collected.labels[job]} {why}.**" for job, why in {**collected.missing, **collected.other}.items()]
    remarks = dict.fromkeys(remark for result in collected.results.values() for remark in result.remarks)
    method = "Mean ± standard error over subjects; differences are of the same subjects, p of a paired t-test."
    return "\n\n".join([*parts, *notes, " ".join([method, *remarks])]) + "\n"


def plot(collected: Collected, figures: Sequence[str], labels: Mapping[str, str], swept: str) -> bytes:
    """A PNG of these figures over the jobs of `labels`, job → what stands under it; `swept` is what labels tell."""
    from storydiffusion.evaluation.plots import plot_sweep

    titles = {name: f"{name} {ARROWS[collected.better[name]]}" for name in figures}
    means = {
        title: {label: mean for job, label in labels.items() if (mean := collected.cell(name, job).mean)}
        for name, title in titles.items()
    }
    x, y = (titles.get(name) for name in TRADED)
    return plot_sweep(means, swept, (x, y) if x and y else None)


def as_data(collected: Collected) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "sweep": collected.name,
        "keys": list(collected.keys),
        "baseline": collected.baseline,
        "figures": {
            name: {"better": better, "jobs": {job: asdict(collected.cell(name, job)) for job in collected.results}}
            for name, better in collected.better.items()
        },
        "settings": {job: result.settings for job, result in collected.results.items()},
        "missing": dict(collected.missing),
        "other settings": dict(collected.other),
        "remarks": {job: result.remarks for job, result in collected.results.items()},
    }


def _cells(collected: Collected, figure: str, job: str) -> list[str]:
    from storydiffusion.evaluation.tables import p_value

    if job in collected.missing:
        return ["missing", "–", "–", "–"]
    cell = collected.cell(figure, job)
    if cell.mean is None:
        return ["–", "–", "–", str(len(collected.results[job].values(figure)))]
    told, count = f"{cell.mean.mean:.3f} ± {cell.mean.standard_error:.3f}", str(cell.mean.count)
    if cell.difference is None:
        return [told, "–", "–", count]
    less = f"{cell.difference.mean:+.3f} ± {cell.difference.standard_error:.3f}"
    pairs = "" if cell.difference.count == cell.mean.count else f" ({cell.difference.count} pairs)"
    return [told, less + pairs, p_value(cell.difference), count]


def _begun(folder: Path) -> set[str]:
    """The folders in which a job began, by name below that of the sweep."""
    files = (file for name in (FILE, *BEGUN) for file in folder.rglob(name))
    return {file.parent.relative_to(folder).as_posix() for file in files if "=" in str(file.parent.relative_to(folder))}


def _ordered(jobs: Sequence[str], keys: tuple[str, ...]) -> list[str]:
    """By number where that is all that is swept, else as planned."""
    numbers = {job: number_of(_label(job, keys)) for job in jobs}
    return sorted(jobs, key=lambda job: numbers[job] or 0.0) if None not in numbers.values() else list(jobs)


def number_of(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _label(job: str, keys: tuple[str, ...]) -> str:
    """What a job sets: the value alone where one key is swept."""
    return job.removeprefix(f"{keys[0]}=") if len(keys) == 1 else job


def _why_missing(folder: Path) -> str:
    if (folder / FILE).exists():
        return f"is missing: its {FILE} cannot be read"
    if (folder / "export").exists():
        return "is missing: it is trained and not measured, which experiment=trained does"
    if any((folder / name).exists() for name in BEGUN):
        return "is missing: it began and did not finish"
    return "is missing: it did not begin"


def _other_settings(results: Mapping[str, Result], planned: PlannedSweep) -> dict[str, str]:
    """Jobs that differ from most others in what is not swept; of equal numbers the first sets the norm."""
    compares_models = planned.trains or any(key == "model" or key.startswith("model.") for key in planned.keys)
    free = tuple(f"{key}." for key in planned.keys) + ((WEIGHTS,) if compares_models else ())
    names = dict.fromkeys(name for result in results.values() for name in result.settings)
    found: dict[str, list[str]] = {}
    for name in names:
        if name in planned.keys or name.startswith(free):
            continue
        told = {job: str(result.settings.get(name)) for job, result in results.items()}
        usual = Counter(told.values()).most_common(1)[0][0]
        for job, value in told.items():
            if value != usual:
                found.setdefault(job, []).append(f"{name} {value}, the others {usual}")
    return {job: f"was measured with {'; '.join(differences)}" for job, differences in found.items()}
