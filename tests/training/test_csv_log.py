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


ROWS = b"step,train/loss\r\n1,0.5\r\n2,0.25\r\n3,0.125\r\n"
DAMAGES = {
    "a zeroed block": (ROWS.replace(b"0.25", bytes(40)), [1, 3]),
    "a block of two lines": (ROWS.replace(b"0.5\r\n2", bytes(7)), [3]),
    "a letter in a number": (ROWS.replace(b"0.25", b"x.25"), [1, 3]),
    "a step without its number": (ROWS.replace(b"2,0.25", b",0.25"), [1, 3]),
    "too many values": (ROWS.replace(b"0.25", b"0.25,1"), [1, 3]),
    "too few values": (ROWS.replace(b"2,0.25", b"2"), [1, 3]),
    "an empty line": (ROWS.replace(b"2,0.25", b""), [1, 3]),
    "other text": (ROWS.replace(b"0.25", b"\xff\xfe"), [1, 3]),
    "a lost header": (bytes(16) + ROWS[16:], []),
    "no text at all": (b"\xff\xfe\n1,2\n", []),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["metrics.csv", ".metrics.before.csv"])
def test_readable_rows_of_a_damaged_log_continue(tmp_path, capsys, damage, name):
    content, left = DAMAGES[damage]
    (tmp_path / name).write_bytes(content)
    CSVLog(tmp_path)  # then the process is killed
    log(tmp_path, range(4, 6))
    assert [float(row["step"]) for row in rows(tmp_path)] == [*left, 4, 5]
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
    said = [line for line in capsys.readouterr().err.splitlines() if "metrics.damaged.csv" in line]
    assert len(said) == 1
    assert "unreadable lines" in said[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "metrics.damaged.csv"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log_without_new_rows_keeps_the_readable_ones(tmp_path, damage):
    content, left = DAMAGES[damage]
    (tmp_path / "metrics.csv").write_bytes(content)
    CSVLog(tmp_path).finalize("success")
    assert [float(row["step"]) for row in rows(tmp_path)] == left
    assert read_mean_losses(tmp_path).keys() == (
        {"loss, first tenth of the log", "loss, last tenth"} if left else set()
    )


def test_a_run_killed_while_a_new_column_is_written_loses_no_row(tmp_path, monkeypatch):
    log(tmp_path, range(3))
    logger = CSVLog(tmp_path)
    logger.log_metrics({"train/loss": 0.0}, 3)

    def killed(_: object) -> None:
        (tmp_path / "metrics.csv").write_text("step,tra")
        raise ConnectionAbortedError

    monkeypatch.setattr(logger.experiment, "_rewrite_with_new_header", killed)
    with pytest.raises(ConnectionAbortedError):
        logger.log_metrics({"train/other": 0.0}, 4)
    log(tmp_path, range(4, 5))
    assert [float(row["step"]) for row in rows(tmp_path)] == [0, 1, 2, 3, 4]
