import csv
from pathlib import Path

import pytest

from storydiffusion.training.csv_log import CSVLog, read_mean_losses


def log(folder: Path, steps: range, **values: float) -> None:
    logger = CSVLog(folder)
    for step in steps:
        logger.log_metrics({"train/loss": step / 4, **values}, step)
    logger.finalize("success")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_resumed_run_extends_its_log(tmp_path):
    log(tmp_path, range(3))
    log(tmp_path, range(3, 5))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert [float(row["train/loss"]) for row in rows(tmp_path)] == [0, 0.25, 0.5, 0.75, 1]


def test_retrained_steps_appear_once(tmp_path):
    log(tmp_path, range(5))
    log(tmp_path, range(3, 6), again=1)
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert [row["again"] for row in rows(tmp_path)] == ["", "", "", "1", "1", "1"]


@pytest.mark.parametrize("is_opened", [False, True])
def test_run_without_new_rows_keeps_its_log(tmp_path, is_opened):
    log(tmp_path, range(2))
    before = (tmp_path / "metrics.csv").read_bytes()
    logger = CSVLog(tmp_path)
    if is_opened:
        _ = logger.experiment
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_run_killed_before_its_first_row_loses_none(tmp_path):
    log(tmp_path, range(2))
    _ = CSVLog(tmp_path).experiment  # then the process is killed
    log(tmp_path, range(2, 3))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2]


def test_run_killed_while_writing_its_first_row_loses_none(tmp_path):
    log(tmp_path, range(2))
    _ = CSVLog(tmp_path).experiment
    (tmp_path / "metrics.csv").write_text("step,train/lo")  # left by the killed process
    log(tmp_path, range(2, 3))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2]


def test_incomplete_row_is_dropped(tmp_path):
    log(tmp_path, range(3))
    file = tmp_path / "metrics.csv"
    file.write_text(file.read_text().rstrip("\n")[:-1])
    log(tmp_path, range(2, 4))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3]


def test_mean_losses_cover_both_ends_of_the_log(tmp_path):
    assert read_mean_losses(tmp_path) == {}
    log(tmp_path, range(20))
    assert list(read_mean_losses(tmp_path).values()) == [0.125, (18 + 19) / 8]
