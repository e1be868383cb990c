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


def test_a_resumed_run_goes_on_with_its_log(tmp_path):
    log(tmp_path, range(3))
    log(tmp_path, range(3, 5))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert [float(row["train/loss"]) for row in rows(tmp_path)] == [0, 0.25, 0.5, 0.75, 1]


def test_steps_trained_again_stand_once(tmp_path):
    log(tmp_path, range(5))
    log(tmp_path, range(3, 6), again=1)
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert [row["again"] for row in rows(tmp_path)] == ["", "", "", "1", "1", "1"]


@pytest.mark.parametrize("is_opened", [False, True])
def test_a_run_that_logs_nothing_more_keeps_its_log(tmp_path, is_opened):
    log(tmp_path, range(2))
    before = (tmp_path / "metrics.csv").read_bytes()
    logger = CSVLog(tmp_path)
    if is_opened:
        _ = logger.experiment
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_run_that_is_killed_before_its_first_row_loses_none(tmp_path):
    log(tmp_path, range(2))
    _ = CSVLog(tmp_path).experiment  # and no more: the process is gone
    log(tmp_path, range(2, 3))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2]


def test_a_run_that_is_killed_while_it_writes_its_first_row_loses_none(tmp_path):
    log(tmp_path, range(2))
    _ = CSVLog(tmp_path).experiment
    (tmp_path / "metrics.csv").write_text("step,train/lo")  # what the killed one has left of the file
    log(tmp_path, range(2, 3))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2]


def test_half_a_row_is_none(tmp_path):
    log(tmp_path, range(3))
    file = tmp_path / "metrics.csv"
    file.write_text(file.read_text().rstrip("\n")[:-1])
    log(tmp_path, range(2, 4))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3]


def test_the_losses_of_a_log_are_means_over_its_ends(tmp_path):
    assert read_mean_losses(tmp_path) == {}
    log(tmp_path, range(20))
    assert list(read_mean_losses(tmp_path).values()) == [0.125, (18 + 19) / 8]
