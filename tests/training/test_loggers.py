"""The id of a run in Weights & Biases."""

from pathlib import Path

import pytest

from storydiffusion.errors import UserError
from storydiffusion.training.loggers import RUN_ID, load_run_id
from tests.helpers.processes import run_processes


def write_run_id(rank: int, run: Path, out: Path) -> None:
    (out / str(rank)).write_text(load_run_id(run))


def test_all_processes_of_a_run_read_one_id(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    for folder in (run, out):
        folder.mkdir()
    assert run_processes(write_run_id, 4, run, out) == [0] * 4
    assert {file.read_text() for file in out.iterdir()} == {load_run_id(run)}
    assert [file.name for file in run.iterdir()] == [RUN_ID]


@pytest.mark.parametrize("content", [b"", b"0123", b"0123456g", b"\xff" * 8, bytes(8)])
def test_a_damaged_id_is_named(tmp_path, content):
    (tmp_path / RUN_ID).write_bytes(content)
    with pytest.raises(UserError, match="not the id of a wandb run: remove it"):
        load_run_id(tmp_path)
    assert (tmp_path / RUN_ID).read_bytes() == content
