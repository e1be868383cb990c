"""Compare the results of a sweep's jobs, item by item, with one of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydiffusion.config.sweep import PlannedSweep, planned_sweep
from storydiffusion.errors import UserError
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.evaluation.records import RECORDS
from storydiffusion.evaluation.result import FILE, Result, load_result
from storydiffusion.evaluation.statistics import Estimate, PairedDifference

STARTED = (RECORDS, "metrics.csv")
"""Files of a job that started"""
WEIGHTS = "model.weights."
"""Settings that identify a model; jobs of a training, or of a sweep over models, may differ in them"""
TRADE_OFF = ("alignment", "consistency")
"""Two metrics that are also plotted against each other"""


@dataclass(frozen=True)
class Cell:
    """One metric of one job: its mean, and its difference to the baseline; None where there are too few values."""

    mean: Estimate | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class Comparison:
    """The results of a sweep, side by side.

    Attributes:
        name: the sweep's folder.
        keys: the swept settings.
        baseline: the job that the others are compared with.
        results: job → result, in order.
        labels: job → the swept values, of all jobs, in order.
        missing: job → why it has no result.
        deviating: job → the settings in which it differs although they are not swept.
    """

    name: str
    keys: tuple[str, ...]
    baseline: str
    results: Mapping[str, Result]
    labels: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    deviating: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that a job has, in the order of the registry."""
        return [name for name in METRICS if any(name in result.metrics for result in self.results.values())]

    @property
    def problems(self) -> list[str]:
        """Sentences on jobs that are missing or deviate."""
        return [f"{job} {why}" for job, why in {**self.missing, **self.deviating}.items()]

    def get_cell(self, metric: str, job: str) -> Cell:
        """Return that metric of that job, compared with the baseline."""
        if job not in self.results:
            return Cell(None, None)
        mean = self.get_mean(metric, job)
        return Cell(mean, None if job == self.baseline else self.get_difference(metric, job, self.baseline))

    def get_mean(self, metric: str, job: str, group: str | None = None) -> Estimate | None:
        """Return the mean of a metric over a job's items, or those of one group; None for fewer than two values."""
        from storydiffusion.evaluation.statistics import estimate

        result = self.results[job]
        groups = dict(zip(result.items, result.groups, strict=True)) if group is not None else {}
        values = [value for item, value in result.values(metric).items() if group is None or groups[item] == group]
        return estimate(values) if len(values) > 1 else None

    def get_difference(self, metric: str, job: str, other: str) -> PairedDifference | None:
        """Return a metric of one job minus the same of another, paired by the items' names.

        None for fewer than two pairs, or where the values come from different networks.
        """
        from storydiffusion.evaluation.statistics import paired_difference

        if not {job, other} <= set(self.results) or not self._have_same_network(metric, job, other):
            return None
        values, baseline = self.results[job].values(metric), self.results[other].values(metric)
        both = [item for item in values if item in baseline]
        if len(both) < 2:
            return None
        return paired_difference([values[item] for item in both], [baseline[item] for item in both])

    def _have_same_network(self, metric: str, *jobs: str) -> bool:
        found = [self.results[job].metrics.get(metric) for job in jobs]
        return len({one.network for one in found if one is not None}) <= 1


def compare_jobs(folder: Path, baseline: str | None = None) -> Comparison:
    """Load the results of the jobs that the sweep's multirun.yaml planned, and of earlier ones in the same folder.

    Args:
        baseline: a job's folder, by name; None: the first planned.

    Raises:
        UserError: there is no sweep, no result, or the baseline is not a job of it.
    """
    planned = planned_sweep(folder)
    jobs = _sort_jobs([*planned.jobs, *sorted(_find_started(folder) - set(planned.jobs))], planned.keys)
    results, missing = {}, {}
    for job in jobs:
        try:
            results[job] = load_result(folder / job / FILE)
        except UserError:
            missing[job] = _explain_missing(folder / job)
    if not results:
        raise UserError(f"{folder} holds no result: {'; '.join(f'{job} {why}' for job, why in missing.items())}")
    if baseline is not None and baseline not in jobs:
        raise UserError(f"baseline_job={baseline} is not a job of {folder}. Choose one of {'; '.join(jobs)}")
    return Comparison(
        name=folder.name,
        keys=planned.keys,
        baseline=planned.jobs[0] if baseline is None else baseline,
        results=results,
        labels={job: _get_label(job, planned.keys) for job in jobs},
        missing=missing,
        deviating=_find_deviating(results, planned),
    )


def write_report(comparison: Comparison) -> str:
    """Return a Markdown table per metric, then tables per group, missing or deviating jobs, and remarks."""
    from storydiffusion.evaluation.tables import escape_markdown, markdown_table

    names = {job: escape_markdown(label) for job, label in comparison.labels.items()}
    key = ", ".join(comparison.keys)
    header = [key or "job", "mean", f"minus {names[comparison.baseline]}", "p", "n"]
    parts = [f"## {escape_markdown(comparison.name)}"]
    for metric in comparison.metrics:
        rows = [[name, *_format_cells(comparison, metric, job)] for job, name in names.items()]
        parts.append(f"**{METRICS[metric].title}**\n\n{markdown_table(header, rows).rstrip()}")
    if table := _write_group_table(comparison):
        parts.append(f"<details><summary>Means by group</summary>\n\n{table}\n</details>")
    problems = {**comparison.missing, **comparison.deviating}
    notes = [f"**{names[job]} {escape_markdown(why)}.**" for job, why in problems.items()]
    remarks = dict.fromkeys(remark for result in comparison.results.values() for remark in result.remarks)
    statistics = "Mean ± standard error over items; differences are of the same items, p of a paired t-test."
    return "\n\n".join([*parts, *notes, " ".join([statistics, *map(escape_markdown, remarks)])]) + "\n"


def plot_comparison(comparison: Comparison, metrics: Sequence[str], labels: Mapping[str, str], swept: str) -> bytes:
    """Return a PNG of these metrics over the jobs of `labels`: job → label on the axis; `swept` names the axis."""
    from storydiffusion.evaluation.plots import plot_sweep

    means = {
        METRICS[metric].title: {
            label: mean for job, label in labels.items() if (mean := comparison.get_cell(metric, job).mean)
        }
        for metric in metrics
    }
    trade_off = (METRICS[TRADE_OFF[0]].title, METRICS[TRADE_OFF[1]].title) if set(TRADE_OFF) <= set(metrics) else None
    return plot_sweep(means, swept, trade_off)


def to_data(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data."""
    return {
        "sweep": comparison.name,
        "keys": list(comparison.keys),
        "baseline": comparison.baseline,
        "metrics": {
            metric: {
                "direction": METRICS[metric].direction,
                "jobs": {job: asdict(comparison.get_cell(metric, job)) for job in comparison.results},
            }
            for metric in comparison.metrics
        },
        "settings": {job: result.settings for job, result in comparison.results.items()},
        "missing": dict(comparison.missing),
        "deviating": dict(comparison.deviating),
        "remarks": {job: result.remarks for job, result in comparison.results.items()},
    }


def _parse_number(label: str) -> float | None:
    """Return a label as a number; None where it is none."""
    try:
        return float(label)
    except ValueError:
        return None


def _format_cells(comparison: Comparison, metric: str, job: str) -> list[str]:
    from storydiffusion.evaluation.tables import format_difference, format_mean, format_p

    if job in comparison.missing:
        return ["missing", "–", "–", "–"]
    cell = comparison.get_cell(metric, job)
    if cell.mean is None:
        return ["–", "–", "–", str(len(comparison.results[job].values(metric)))]
    difference, pairs = format_difference(cell.difference), ""
    if cell.difference is not None and cell.difference.count != cell.mean.count:
        pairs = f" ({cell.difference.count} pairs)"
    return [format_mean(cell.mean), difference + pairs, format_p(cell.difference), str(cell.mean.count)]


def _write_group_table(comparison: Comparison) -> str:
    """Return the means of all metrics by group of items; empty where items are not grouped."""
    from storydiffusion.evaluation.tables import escape_markdown, markdown_table

    groups = sorted({group for result in comparison.results.values() for group in result.groups})
    rows = []
    for group in groups:
        for metric in comparison.metrics:
            means = [
                comparison.get_mean(metric, job, group) if comparison.results[job].groups else None
                for job in comparison.results
            ]
            if counts := [mean.count for mean in means if mean]:
                cells = ("–" if mean is None else f"{mean.mean:.3f}" for mean in means)
                rows.append([escape_markdown(group), METRICS[metric].title, str(max(counts)), *cells])
    labels = [escape_markdown(comparison.labels[job]) for job in comparison.results]
    return markdown_table(["group", "metric", "n", *labels], rows) if rows else ""


def _find_started(folder: Path) -> set[str]:
    """Return the folders of jobs that started, relative to the sweep's."""
    files = (file for name in (FILE, *STARTED) for file in folder.rglob(name))
    return {file.parent.relative_to(folder).as_posix() for file in files if "=" in str(file.parent.relative_to(folder))}


def _sort_jobs(jobs: Sequence[str], keys: tuple[str, ...]) -> list[str]:
    """Sort by number where all labels are numbers; otherwise keep the planned order."""
    numbers = {job: _parse_number(_get_label(job, keys)) for job in jobs}
    return sorted(jobs, key=lambda job: numbers[job] or 0.0) if None not in numbers.values() else list(jobs)


def _get_label(job: str, keys: tuple[str, ...]) -> str:
    """Return what a job sets: the value only, where one key is swept."""
    return job.removeprefix(f"{keys[0]}=") if len(keys) == 1 else job


def _explain_missing(folder: Path) -> str:
    if (folder / FILE).exists():
        return f"is missing: its {FILE} cannot be read"
    if (folder / "export").exists():
        return "is missing: it is trained but not measured; run experiment=trained"
    if any((folder / name).exists() for name in STARTED):
        return "is missing: it started but did not finish"
    return "is missing: it did not start"


def _find_deviating(results: Mapping[str, Result], planned: PlannedSweep) -> dict[str, str]:
    """Return the jobs that differ from most others in settings that are not swept; on a tie the first is the norm."""
    compares_models = planned.trains or any(key == "model" or key.startswith("model.") for key in planned.keys)
    free = tuple(f"{key}." for key in planned.keys) + ((WEIGHTS,) if compares_models else ())
    names = dict.fromkeys(name for result in results.values() for name in result.settings)
    found: dict[str, list[str]] = {}
    for name in names:
        if name in planned.keys or name.startswith(free):
            continue
        values = {job: str(result.settings.get(name)) for job, result in results.items()}
        usual = Counter(values.values()).most_common(1)[0][0]
        for job, value in values.items():
            if value != usual:
                found.setdefault(job, []).append(f"{name} {value}, the others {usual}")
    return {job: f"was measured with {'; '.join(differences)}" for job, differences in found.items()}
