"""`storydiffusion compare`: compare the jobs of a sweep with a baseline, in one table per metric and plots.

Items (stories, clips) are paired by name. conf/compare.yaml explains the settings.
"""

from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.evaluation.compare import compare_jobs, plot_comparison, to_data, write_report
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes


@dataclass
class CompareConfig:
    """The settings of the command."""

    sweep: str
    baseline_job: str | None  # null: the first planned job
    out: str | None  # null: the sweep's folder


@command(CompareConfig)
def main(config: CompareConfig) -> None:
    """Compare the jobs and write table.md, comparison.json and plot.png."""
    folder = Path(config.sweep)
    comparison = compare_jobs(folder, config.baseline_job)
    out = Path(config.out) if config.out else folder
    write_atomically(out / "comparison.json", json_bytes(to_data(comparison)))
    table = write_report(comparison)
    write_atomically(out / "table.md", table.encode())
    swept = ", ".join(comparison.keys)
    write_atomically(out / "plot.png", plot_comparison(comparison, comparison.metrics, comparison.labels, swept))
    print(table)
    if comparison.problems:
        raise UserError(f"{folder} is not a complete comparison: {'; '.join(comparison.problems)}")
