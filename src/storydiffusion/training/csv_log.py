"""metrics.csv of a resumable run, and a summary of its losses."""

import csv
import statistics
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from storydiffusion.files.atomic import write_atomically

METRICS = "metrics.csv"


def read_mean_losses(folder: Path) -> dict[str, float]:
    """Return the mean training loss over the first and last tenth of a run's log; empty without a log."""
    rows = _read_rows(folder / METRICS) if (folder / METRICS).exists() else []
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    tenth = max(1, len(losses) // 10)
    parts = {"loss, first tenth of the log": losses[:tenth], "loss, last tenth": losses[-tenth:]}
    return {name: statistics.fmean(part) for name, part in parts.items() if part}


class CSVLog(CSVLogger):
    """CSVLogger that extends `folder`/metrics.csv when a run resumes; Lightning's deletes it.

    Rows of steps that are trained again, because the run stopped after its last checkpoint, are replaced by new ones.
    Until the first new row is written, a copy keeps the earlier rows, so a run killed before or during that write loses
    none.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._file = Path(folder) / METRICS
        self._copy = self._file.with_name(".metrics.before.csv")
        if self._file.exists() and not self._copy.exists():
            write_atomically(self._copy, self._file.read_bytes())
        self._earlier = _read_rows(self._copy) if self._copy.exists() else []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        if self._earlier and step is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")  # a deletion that does not happen
                self.experiment.metrics = [row for row in self._earlier if row["step"] < step]
            self._earlier = []
        super().log_metrics(metrics, step)
        self._copy.unlink(missing_ok=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._copy.exists():  # no new row was written
            self._copy.replace(self._file)


def _read_rows(file: Path) -> list[dict[str, float]]:
    """Read all rows except an incomplete last one."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = lines if not lines or lines[-1].endswith("\n") else lines[:-1]
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(whole)]
