"""RESULTS.md and results/: the section, plot and numbers of each claim, and the summary of all verdicts."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError, first_line
from storydiffusion.evaluation.compare import Cell, Comparison, plot_comparison, to_data
from storydiffusion.evaluation.metrics.registry import METRICS
from storydiffusion.evaluation.records import RECORDS
from storydiffusion.experiments.claims import CLAIMS
from storydiffusion.experiments.judging import Claim, Verdict
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import build, json_bytes, read_object

DOCUMENT, FOLDER, SUMMARY = "RESULTS.md", "results", "summary"
KEYS = re.compile(r"(^|,)[\w.]+=")
"""The keys in a job's name, as in csa.rate=0.5,csa.sampler=uniform"""


@dataclass(frozen=True)
class _Metric:
    direction: str
    jobs: dict[str, Cell]


@dataclass(frozen=True)
class _Numbers:
    """What is read again of a claim's file in results/."""

    verdict: Verdict
    seconds: dict[str, float]
    metrics: dict[str, _Metric]
    edition: int = 1  # that of files without it


def update_document(
    claim: Claim, comparison: Comparison, sweep_folder: Path, out: Path, template: Path, edition: int
) -> None:
    """Write a claim's plot, numbers and section, and the summary of all verdicts.

    Args:
        sweep_folder: the folder of the sweep's jobs.
        out: the folder of RESULTS.md and results/.
        template: the document to start from where `out` has none.
        edition: of StoryWorld that the model draws.
    """
    from storydiffusion.evaluation.tables import replace_section

    verdict, labels = claim.judge(comparison), get_shown_labels(claim, comparison)
    files = out / FOLDER
    seconds = read_seconds(sweep_folder, comparison)
    numbers = {"verdict": asdict(verdict), "seconds": seconds, "edition": edition, **to_data(comparison)}
    before = files / f"{claim.name}.json"
    if before.exists():
        print(compare_with_earlier(read_numbers(before), numbers, claim, labels), flush=True)
    write_atomically(before, json_bytes(numbers))
    plot = plot_comparison(comparison, claim.shown, labels, _list_keys(comparison))
    write_atomically(files / f"{claim.name}.png", plot)
    document = (out / DOCUMENT if (out / DOCUMENT).exists() else template).read_text("utf-8")
    for name, content in ((claim.name, write_section(claim, comparison, verdict)), (SUMMARY, write_summary(files))):
        document = replace_section(document, name, content)
    write_atomically(out / DOCUMENT, document.encode())
    print(f"{claim.name}, edition {edition}: {verdict.status}. {verdict.sentence}", flush=True)


def write_section(claim: Claim, comparison: Comparison, verdict: Verdict) -> str:
    """Return verdict, table, plot and remarks in Markdown."""
    from storydiffusion.evaluation.tables import escape_markdown

    remarks = dict.fromkeys(remark for result in comparison.results.values() for remark in result.remarks)
    return "\n\n".join(
        [
            f"**{verdict.status[0].upper()}{verdict.status[1:]}.** {verdict.sentence}",
            write_table(claim, comparison).rstrip(),
            f"![{claim.name}]({FOLDER}/{claim.name}.png)",
            " ".join(map(escape_markdown, remarks)),
        ]
    )


def write_table(claim: Claim, comparison: Comparison) -> str:
    """Return a table with one row per metric, one column per job, and differences to the baseline where compared."""
    from storydiffusion.evaluation.tables import format_difference, format_mean, format_p, markdown_table

    labels = get_shown_labels(claim, comparison)

    def rows() -> Iterator[list[str]]:
        for name in claim.shown:
            means = [comparison.get_cell(name, job).mean for job in labels]
            counts = {mean.count for mean in means if mean}
            title = f"{METRICS[name].title} (n {', '.join(map(str, sorted(counts)))})"
            yield [title, *(format_mean(mean) for mean in means)]
        for name in claim.compared:
            found, label = [comparison.get_cell(name, job).difference for job in labels], METRICS[name].label
            baseline = _strip_keys(comparison.labels[comparison.baseline])
            yield [f"{label}, minus {baseline}", *(format_difference(one) for one in found)]
            yield [f"{label}, p", *(format_p(one) for one in found)]

    return markdown_table([_list_keys(comparison), *labels.values()], list(rows()))


def write_summary(files: Path) -> str:
    """Return the verdict of each measured claim, the edition of StoryWorld, and the time of the measurements."""
    from storydiffusion.evaluation.tables import markdown_table

    found = {claim: read_numbers(file) for claim in CLAIMS if (file := files / f"{claim.name}.json").exists()}
    rows = [[claim.name, one["verdict"]["status"], str(one["edition"])] for claim, one in found.items()]
    seconds = sum({claim.sweep.name: sum(one["seconds"].values()) for claim, one in found.items()}.values())
    time = f"The jobs took {seconds / 60:.0f} minutes in total, without loading."
    return f"{markdown_table(['claim', 'verdict', 'edition'], rows)}\n{time}"


def read_numbers(file: Path) -> dict[str, Any]:
    """Read the numbers of a claim. Raises UserError for a file without them."""
    try:
        content = read_object(file)
        names = [each.name for each in fields(_Numbers) if each.name in content or each.name != "edition"]
        return asdict(build(_Numbers, {name: content.get(name) for name in names}))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} holds no numbers of a claim ({first_line(error)}): delete it") from error


def compare_with_earlier(before: Mapping[str, Any], now: Mapping[str, Any], claim: Claim, jobs: Collection[str]) -> str:
    """Return how many means lie within two standard errors of the earlier ones, and which do not."""
    far, count = [], 0
    for name in claim.shown:
        earlier, later = (one["metrics"].get(name, {}).get("jobs", {}) for one in (before, now))
        for job in jobs:
            old, new = (measured.get(job, {}).get("mean") for measured in (earlier, later))
            if old and new:
                count += 1
                if abs(new["mean"] - old["mean"]) > 2 * old["standard_error"]:
                    far.append(f"{METRICS[name].label} of {job} {old['mean']:.3f} → {new['mean']:.3f}")
    line = f"{claim.name}: {count - len(far)} of {count} means lie within two standard errors of the earlier ones"
    return f"{line}; not {'; '.join(far)}" if far else line


def read_seconds(folder: Path, comparison: Comparison) -> dict[str, float]:
    """Return how long each job took, without loading."""

    def seconds(job: str) -> float:
        file = folder / job / RECORDS
        try:
            return sum(one["seconds"] for one in read_object(file)["records"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} holds no records ({first_line(error)}): delete it and run the job again"
            ) from error

    return {job: round(seconds(job), 1) for job in comparison.results}


def get_shown_labels(claim: Claim, comparison: Comparison) -> dict[str, str]:
    """Return job → the values that it sets, of the jobs that the claim shows."""
    jobs = comparison.labels if claim.jobs is None else claim.jobs
    return {job: _strip_keys(comparison.labels[job]) for job in jobs}


def _strip_keys(label: str) -> str:
    return KEYS.sub(" ", label).strip()


def _list_keys(comparison: Comparison) -> str:
    """Return the swept keys in the order in which jobs name them."""
    return ", ".join(sorted(comparison.keys))
