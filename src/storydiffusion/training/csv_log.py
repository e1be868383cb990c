"""metrics.csv of a resumable run, and a summary of its losses."""

import csv
import statistics
import sys
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from storydiffusion.files.atomic import write_atomically
from storydiffusion.output.folder_lock import is_first_process

METRICS = "metrics.csv"


def read_mean_losses(folder: Path) -> dict[str, float]:
    """Return the mean training loss over the first and last tenth of a run's log; empty without a log."""
    rows = parse_rows((folder / METRICS).read_bytes())[0] if (folder / METRICS).exists() else []
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    tenth = max(1, len(losses) // 10)
    parts = {"loss, first tenth of the log": losses[:tenth], "loss, last tenth": losses[-tenth:]}
    return {name: statistics.fmean(part) for name, part in parts.items() if part}


class CSVLog(CSVLogger):
    """CSVLogger that extends `folder`/metrics.csv when a run resumes; Lightning's deletes it.

    Rows of steps that are trained again, because the run stopped after its last checkpoint, are replaced by new ones.
    Whenever Lightning writes the file from its beginning, a copy keeps the earlier rows until that is done, so a run
    killed meanwhile loses none. Unreadable lines, as a power cut leaves, are left out; metrics.damaged.csv keeps them.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._file = Path(folder) / METRICS
        self._copy = self._file.with_name(".metrics.before.csv")
        self._earlier = self._keep_earlier_rows() if is_first_process() else []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        if self._earlier and step is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")  # a deletion that does not happen
                self.experiment.metrics = [row for row in self._earlier if row["step"] < step]
            self._earlier = []
        elif metrics.keys() - set(self.experiment.metrics_keys) and self._file.exists():  # a new column
            write_atomically(self._copy, self._file.read_bytes())
        super().log_metrics(metrics, step)
        self._copy.unlink(missing_ok=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._copy.exists():  # no new row was written
            self._copy.replace(self._file)

    def _keep_earlier_rows(self) -> list[dict[str, float]]:
        """Copy the log of the run so far and return its rows."""
        source = self._copy if self._copy.exists() else self._file
        if not source.exists():
            return []
        data = source.read_bytes()
        rows, readable, unreadable = parse_rows(data)
        if unreadable:
            damaged = self._file.with_name("metrics.damaged.csv")
            write_atomically(damaged, data)
            print(
                f"{self._file} has unreadable lines ({unreadable}): kept as {damaged}, continuing with the other rows",
                file=sys.stderr,
            )
        write_atomically(self._copy, readable)
        return rows


def parse_rows(data: bytes) -> tuple[list[dict[str, float]], bytes, int]:
    """Return the rows of a log, its readable lines, and the number of unreadable ones.

    An incomplete last line, as a killed process leaves, is neither.
    """
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    names: list[str] = []
    rows: list[dict[str, float]] = []
    readable = b""
    for line in lines:
        try:
            if names:
                rows.append(_parse_row(line, names))
            else:
                names = _parse_header(line)
        except (ValueError, csv.Error):
            continue
        readable += line
    return rows, readable, len(lines) - len(readable.splitlines())


def _parse_header(line: bytes) -> list[str]:
    names = next(csv.reader([line.decode()]))
    if "step" not in names:
        raise ValueError("no column of steps")
    return names


def _parse_row(line: bytes, names: list[str]) -> dict[str, float]:
    values = next(csv.reader([line.decode()]))
    row = {name: float(value) for name, value in zip(names, values, strict=True) if value}
    if "step" not in row:
        raise ValueError("no step")
    return row
