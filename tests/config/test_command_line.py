import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Small:
    number: int
    word: str
    run_dir: str = "runs/a"


CONF = """
defaults:
  - _self_
  - override hydra/job_logging: none  # else Hydra's handlers stay in this process and write into later tests
  - override hydra/hydra_logging: none
number: 1
word: a
run_dir: runs/${word}
hydra: {output_subdir: null}
"""


@pytest.fixture
def small(tmp_path, monkeypatch, capsys):
    """Makes a command of a function(config: Small), with a conf folder beside its file; returns (code, stderr)."""
    (tmp_path / "conf" / "group").mkdir(parents=True)
    (tmp_path / "conf" / "small.yaml").write_text(CONF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(function, *overrides):
        function.__code__ = function.__code__.replace(co_filename=str(tmp_path / "small.py"))
        main = command(Small, "small")(function)
        monkeypatch.setattr(sys, "argv", ["small.py", "hydra.run.dir=.", *overrides])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return call


def test_the_function_gets_the_typed_configuration(small):
    seen = []
    assert small(lambda config: seen.append(config), "number=3")[0] == 0
    assert seen == [Small(3, "a")]


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("nunber=2", ["'nunber'", "'number'"]),
        ("+wrod=2", ["'wrod'", "'word'"]),
        ("number=x", ["number", "'x'"]),
        ("number", ["'number'", "key=value"]),
        ("word='a", ["key=value"]),
        ("group=x", ["'group'"]),
    ],
)
def test_a_wrong_override_is_one_sentence(small, override, needs):
    code, err = small(lambda config: pytest.fail("reached"), override)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("small.py: ")
    for need in needs:
        assert need in err


def test_a_user_error_is_one_sentence(small):
    def fails(config):
        raise UserError(f"number={config.number} is odd: take 2")

    assert small(fails) == (1, "small.py: number=1 is odd: take 2\n")


def test_a_bug_keeps_its_traceback(small):
    def fails(config):
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        small(fails)


def test_an_interrupt_says_what_is_kept(small):
    def fails(config):
        raise KeyboardInterrupt("step 3 is kept")

    assert small(fails) == (130, "small.py: step 3 is kept\n")


def test_a_job_of_a_sweep_has_a_folder_named_after_what_is_swept(small):
    seen = []
    sweep = ("hydra.sweep.dir=.", "hydra.sweep.subdir=.", "word=b", "number=1,2")
    assert small(lambda config: seen.append(config.run_dir), *sweep, "-m")[0] == 0
    assert small(lambda config: seen.append(config.run_dir), *sweep, "run_dir=mine-${number}", "-m")[0] == 0
    assert small(lambda config: seen.append(config.run_dir), *sweep, "run_dir=mine", "-m")[0] == 0
    assert seen[:4] == ["runs/b/number=1", "runs/b/number=2", "mine-1", "mine-2"]
    assert seen[4:] == ["mine/number=1", "mine/number=2"]


def test_an_experiment_that_is_a_sweep_wants_to_be_one(small, tmp_path):
    seen = []
    content = "# @package _global_\nhydra: {sweeper: {params: {number: '1,2'}}}\n"
    (tmp_path / "conf" / "group" / "sweep.yaml").write_text(content)
    params = ("+group=sweep", "hydra.sweep.dir=.", "hydra.sweep.subdir=.")
    code, err = small(lambda config: seen.append(config.run_dir), *params)
    assert (code, err) == (1, "small.py: this experiment is a sweep over number: add -m\n")
    assert not seen
    assert small(lambda config: seen.append(config.run_dir), *params, "-m")[0] == 0
    assert small(lambda config: seen.append(config.run_dir), *params, "number=2", "-m")[0] == 0
    assert seen == ["runs/a/number=1", "runs/a/number=2", "runs/a/number=2"]


def test_a_sweep_goes_on_after_a_bad_job(small):
    seen = []

    def fails_first(config):
        seen.append(config.number)
        if config.number == 1:
            raise UserError("number=1 is odd: take 2")

    code, err = small(fails_first, "number=1,2", "hydra.sweep.dir=sweep", "-m")
    assert seen == [1, 2]
    assert code == 1
    assert err.splitlines()[-1] == "small.py: number=1 is odd: take 2"


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--help"]])
def test_questions_are_answered_without_heavy_imports(option):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['infer.py', *{option}]\n"
        "try:\n    runpy.run_path('infer.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'skia', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "csa" in done.stdout
    assert after.ru_utime - before.ru_utime < 2  # seconds of computing, so that a busy machine does not matter
