"""The id of a run in Weights & Biases."""

import subprocess
import sys

import pytest

from storydiffusion.errors import UserError
from storydiffusion.training.loggers import RUN_ID, load_run_id

READ = "import sys; from storydiffusion.training.loggers import load_run_id; print(load_run_id(sys.argv[1]))"


def test_all_processes_of_a_run_read_one_id(tmp_path):
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = {reader.communicate()[0].strip() for reader in readers}
    assert found == {load_run_id(tmp_path)}
    assert [file.name for file in tmp_path.iterdir()] == [RUN_ID]


@pytest.mark.parametrize("content", [b"", b"0123", b"0123456g", b"\xff" * 8, bytes(8)])
def test_a_damaged_id_is_named(tmp_path, content):
    (tmp_path / RUN_ID).write_bytes(content)
    with pytest.raises(UserError, match="not the id of a wandb run: remove it"):
        load_run_id(tmp_path)
    assert (tmp_path / RUN_ID).read_bytes() == content
