import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from storydiffusion.commands import VERBS
from storydiffusion.config.command_line import command, run
from storydiffusion.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Small:
    number: int
    word: str
    run_dir: str | None = "runs/a"

    def __post_init__(self) -> None:
        self.run_dir = f"runs/default-{self.word}" if self.run_dir is None else self.run_dir


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
    """Run a function(config: Small) as a command with its own conf folder; return (code, stderr)."""
    (tmp_path / "conf" / "group").mkdir(parents=True)
    (tmp_path / "conf" / "small.yaml").write_text(CONF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(function, *overrides):
        try:
            run(command(Small)(function), "small", ["hydra.run.dir=.", *overrides], "small.py", tmp_path / "conf")
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
        ("number=x", ["number=x", "whole number"]),
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


def test_a_job_of_a_sweep_has_its_own_folder_below_the_default_run_dir(small):
    seen = []
    sweep = ("hydra.sweep.dir=.", "hydra.sweep.subdir=.", "run_dir=null", "number=1,2", "-m")
    assert small(lambda config: seen.append(config.run_dir), *sweep)[0] == 0
    assert seen == ["runs/default-a/number=1", "runs/default-a/number=2"]


def test_the_whole_command_line_is_seen_while_running_and_restored(small, monkeypatch):
    """Launchers of further processes repeat it."""
    monkeypatch.setattr(sys, "argv", ["storydiffusion", "small", "number=3"])
    seen = []
    assert small(lambda config: seen.append(list(sys.argv)), "number=3")[0] == 0
    assert seen == [sys.argv] == [["storydiffusion", "small", "number=3"]]


def test_a_value_with_an_equals_sign_needs_no_quotes(small):
    seen = []
    assert small(lambda config: seen.append(config.word), "word=csa.rate=0.5,csa.sampler=uniform")[0] == 0
    assert seen == ["csa.rate=0.5,csa.sampler=uniform"]


@pytest.mark.parametrize("flag", ["--foo", "--cfg=foo", "--experimental-rerun=x.pickle"])
def test_a_wrong_flag_is_one_sentence(small, flag):
    code, err = small(lambda config: pytest.fail("reached"), flag)
    assert (code, len(err.splitlines())) == (1, 1)
    assert flag.partition("=")[0] in err


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


@pytest.mark.parametrize(
    "override",
    [
        "hydra.sweeper.max_batch_size=0",
        "hydra.verbose={a: 1}",
        "+hydra.launcher.nowhere=1",
        "hydra.sweep.dir=${nowhere}",
    ],
)
def test_a_setting_of_hydra_that_cannot_be_names_the_override(small, override):
    code, err = small(lambda config: pytest.fail("reached"), override, "number=1,2", "-m")
    assert (code, len(err.splitlines())) == (1, 1)
    assert override.lstrip("+").partition("=")[0] in err


@pytest.mark.parametrize("key", ["a" * 300, "/etc", "..", "é"])
def test_any_key_is_answered(small, key):
    for value in ("false", "1"):
        code, err = small(lambda config: pytest.fail("reached"), f"{key}={value}")
        assert (code, len(err.splitlines())) == (1, 1)


def test_flags_stand_anywhere(small):
    seen = []
    sweep = ("hydra.sweep.dir=.", "number=1", "--multirun", "word=b,c")
    assert small(lambda config: seen.append(config.word), *sweep)[0] == 0
    assert seen == ["b", "c"]


def test_a_message_is_one_line(small):
    def fails(config):
        raise UserError("word=a\nb is two lines:\r\n take one")

    assert small(fails) == (1, "small.py: word=a b is two lines: take one\n")


def test_a_sweep_continues_after_a_bad_job(small):
    seen = []

    def fails_first(config):
        seen.append(config.number)
        if config.number == 1:
            raise UserError("number=1 is odd: take 2")

    code, err = small(fails_first, "number=1,2", "hydra.sweep.dir=sweep", "-m")
    assert seen == [1, 2]
    assert code == 1
    assert err.splitlines()[-1] == "small.py: number=1 is odd: take 2"


HEAVY = {"torch", "diffusers", "transformers", "skia", "lightning", "scipy", "matplotlib", "cv2"}


def heavy_imports(*arguments: str) -> set[str]:
    """Return the heavy libraries that `storydiffusion ARGUMENTS` imports in a process of its own."""
    code = (
        f"import sys\nsys.argv = ['storydiffusion', *{arguments}]\n"
        "from storydiffusion.commands import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('imported:', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_needs_nothing_heavy(verb):
    assert not heavy_imports(verb, "--help")


@pytest.mark.parametrize("verb", ["infer", "train"])
@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["seed=x", "recipe.seed=x"], ["model.dtype=int8"], ["--foo"]])
def test_a_question_and_a_wrong_value_need_nothing_heavy(verb, arguments):
    assert not heavy_imports(verb, *arguments)
