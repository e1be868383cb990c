"""The job script runs the Python of a venv, of conda or of a container; `srun` and `scontrol` are scripts here."""

import subprocess

import pytest

from tests.conftest import ROOT
from tests.helpers.programs import write_program


@pytest.fixture
def submit(tmp_path):
    """Return a function that runs the script in a repository with these environment variables."""
    write_program(tmp_path / "bin" / "srun", 'printf "%s\\n" "$@"')
    write_program(tmp_path / "bin" / "scontrol", "echo node1; echo NodeAddr=10.0.0.1 NodeHostName=node1")
    write_program(tmp_path / "conda" / "bin" / "python", "")
    write_program(tmp_path / "bin" / "apptainer", "")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "train.py").touch()

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_SUBMIT_DIR": f"{tmp_path}/repository",
            "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "17",
            "SLURM_CPUS_PER_TASK": "4", **variables,
        }  # fmt: skip
        command = ["bash", str(ROOT / "slurm" / "train.sbatch"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def words(outcome: subprocess.CompletedProcess) -> list[str]:
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.splitlines()


def test_a_venv_comes_first(submit, tmp_path):
    write_program(tmp_path / "repository" / ".venv" / "bin" / "python", "")
    found = words(submit("recipe.steps=1", CONDA_PREFIX=f"{tmp_path}/conda"))
    assert found[1:3] == [".venv/bin/python", "train.py"]
    assert found[-1] == "recipe.steps=1"
    assert "trainer=cpu" in found


def test_the_active_conda_environment_is_used_without_a_venv(submit, tmp_path):
    found = words(submit(CONDA_PREFIX=f"{tmp_path}/conda"))
    assert found[1:3] == [f"{tmp_path}/conda/bin/python", "train.py"]


def test_python_may_be_a_command_of_a_container(submit, tmp_path):
    write_program(tmp_path / "repository" / ".venv" / "bin" / "python", "")
    found = words(submit(PYTHON="apptainer exec --nv storydiffusion.sif python"))
    assert found[1:7] == ["apptainer", "exec", "--nv", "storydiffusion.sif", "python", "train.py"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [({}, "set PYTHON"), ({"PYTHON": "nowhere/python"}, "there is no nowhere/python")],
)
def test_no_environment_is_one_sentence(submit, variables, said):
    outcome = submit(**variables)
    assert outcome.returncode == 1
    assert said in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_another_folder_is_one_sentence(submit, tmp_path):
    (tmp_path / "repository" / "train.py").unlink()
    outcome = submit(CONDA_PREFIX=f"{tmp_path}/conda")
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1)
    assert "no train.py" in outcome.stderr
