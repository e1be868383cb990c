"""Strangers' configuration files and overrides: Hydra calls nothing that they name, and each is refused by name."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from storydiffusion.config.hydra_settings import COMMAND_LINE_MAY_SET, FILES_MAY_SET
from tests.conftest import Outcome, run_verb

CALL = "{_target_: planted.Evil}"
HANDLER = "{version: 1, root: {handlers: [e]}, handlers: {e: {class: planted.Evil}}}"

FILES = {
    "callbacks": ("hydra.callbacks", f"hydra: {{callbacks: {{e: {CALL}}}}}"),
    "job_logging": ("hydra.job_logging", f"hydra: {{job_logging: {HANDLER}}}"),
    "hydra_logging": ("hydra.hydra_logging", f"hydra: {{hydra_logging: {HANDLER}}}"),
    "factory": (
        "hydra.job_logging",
        "hydra: {job_logging: {root: {handlers: [e]}, handlers: {e: {(): planted.Evil}}}}",
    ),
    "stream": (
        "hydra.job_logging",
        "hydra: {job_logging: {root: {handlers: [e]}, handlers: "
        "{e: {class: logging.StreamHandler, stream: 'ext://planted.Evil'}}}}",
    ),
    "hidden handler": (
        "hydra.job_logging",
        "hydra: {job_logging: {root: {handlers: [e]}, handlers: {e: {class: planted.Evil}, "
        "e.class: logging.NullHandler}}}",
    ),
    "launcher": ("hydra.launcher._target_", f"hydra: {{launcher: {CALL}}}"),
    "launcher's setting": ("experiment/evil.yaml", f"hydra: {{launcher: {{e: {CALL}}}}}"),
    "sweeper": ("hydra.sweeper._target_", f"hydra: {{sweeper: {CALL}}}"),
    "params": ("hydra.sweeper.params", f"hydra: {{sweeper: {{params: {{seed: {CALL}}}}}}}"),
    "params by reference": (
        "experiment=evil",
        "hydra: {sweeper: {params: {seed: '${oc.create:{_target_: planted.Evil}}'}}}",
    ),
    "swept callbacks": ("hydra", "hydra: {sweeper: {params: {+hydra.callbacks.e._target_: planted.Evil}}}"),
    "swept search path": ("hydra.searchpath", "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://planted]'}}}"),
    "search path": ("experiment", "hydra: {searchpath: ['pkg://planted']}"),
    "environment": ("hydra.job.env_set", "hydra: {job: {env_set: {PYTHONSTARTUP: planted.py}}}"),
    "working directory": ("hydra.job.chdir", "hydra: {job: {chdir: true}}"),
    "model": ("model._target_", f"model: {CALL}"),
    "any value": ("font._target_", f"font: {CALL}"),
    "factory in any value": ("font.()", "font: {(): planted.Evil}"),
    "group": ("hydra.callbacks", "defaults: [/evil@hydra.callbacks.e: call]"),
    "group of logging": ("hydra.job_logging", "defaults: [override /hydra/job_logging: evil]"),
    "group of launchers": ("hydra.launcher", "defaults: [override /hydra/launcher: evil]"),
    "Hydra's launcher": ("hydra.launcher", "defaults: [override /hydra/launcher: submitit_local]"),
    "alias": ("x.e._target_", f"x: &a {{e: {CALL}}}\nhydra: {{callbacks: *a}}"),
}
"""What a file does → the name in the refusal, and the file's text."""

IN_SWEEPS = ("params by reference", "swept callbacks", "swept search path")
"""Cases that act in the jobs of a sweep alone."""

WAYS = ("", "-m", "-m seed=1,2", "--cfg hydra", "--help")


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """A folder of configuration files; importing or calling what they name creates the file `harm`."""
    for name, text in {
        "planted.py": f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Evil:\n    def __init__(self, *a, **k): pass\n",
        "theirs/evil/call.yaml": "_target_: planted.Evil\n",
        "theirs/hydra/job_logging/evil.yaml": HANDLER,
        "theirs/hydra/launcher/evil.yaml": "_target_: planted.Evil\n",
        "theirs/hydra/launcher/submitit_slurm.yaml": "_target_: planted.Evil\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return tmp_path / "theirs"


@pytest.fixture
def refused(planted, capsys) -> Callable[..., None]:
    """`storydiffusion infer OVERRIDES` ends with one sentence that contains `name`, and nothing was imported."""

    def check(name: str, *overrides: str) -> None:
        outcome = run_verb("infer", ["story=/nowhere.yaml", *overrides], capsys)
        assert outcome.code == 1, outcome
        assert len(outcome.sentences) == 1, outcome.err
        assert name in outcome.err
        assert not (planted.parent / "harm").exists()
        assert "planted" not in sys.modules

    return check


def write_experiment(folder: Path, content: str, name: str = "evil") -> None:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")


def test_the_harm_would_be_done(planted):
    """The premise of the other tests."""
    import planted as module  # pyright: ignore[reportMissingImports]

    assert module.Evil
    assert (planted.parent / "harm").exists()


@pytest.mark.parametrize(
    ("case", "way"), [(case, way) for case in FILES for way in WAYS if case not in IN_SWEEPS or way.startswith("-m")]
)
def test_an_experiment_that_names_code(planted, refused, case, way):
    name, content = FILES[case]
    write_experiment(planted, content)
    refused(name, f"--config-dir={planted}", "experiment=evil", *way.split())


def test_experiments_that_are_swept_are_checked_each(planted, refused):
    write_experiment(planted, "seed: 3", "good")
    for case in ("job_logging", "environment"):
        write_experiment(planted, FILES[case][1])
        refused(FILES[case][0], f"--config-dir={planted}", "experiment=evil,good", "-m")


@pytest.mark.parametrize(
    "override",
    [
        f"+hydra.callbacks.e={CALL}",
        f"++hydra.callbacks={{e: {CALL}}}",
        "+hydra.callbacks.e._target_=planted.Evil",
        "hydra/callbacks=evil",
        "+evil@hydra.callbacks.e=call",
        f"hydra.job_logging={HANDLER}",
        "++hydra.job_logging.handlers={e: {class: planted.Evil}}",
        "++hydra.hydra_logging.handlers={e: {(): planted.Evil}}",
        "hydra/job_logging=evil",
        "hydra/launcher=evil",
        "hydra/launcher=submitit_slurm",
        "hydra/sweeper=evil",
        f"hydra.launcher={CALL}",
        "hydra.launcher._target_=planted.Evil",
        f"++hydra.launcher.e={CALL}",
        "++hydra.launcher.e._target_=planted.Evil",
        "hydra.sweeper._target_=planted.Evil",
        f"++hydra.sweeper.params={{seed: {CALL}}}",
        "hydra.searchpath=[pkg://planted]",
        "+hydra.searchpath=[pkg://planted]",
        "hydra.job.env_set={A: b}",
        "hydra.job.chdir=true",
        "~hydra.callbacks",
        "hydra={}",
        f"+model.e={CALL}",
        f"font={CALL}",
        "font={(): planted.Evil}",
    ],
)
def test_an_override_that_names_code(planted, refused, override):
    for flags in ((), ("-m", "seed=1,2")):
        refused("", f"--config-dir={planted}", override, *flags)


@pytest.mark.parametrize("flag", ["--config-path={}", "--config-name=evil", "--experimental-rerun={}/x.pickle"])
def test_a_flag_that_replaces_the_configuration(planted, refused, flag):
    (planted / "evil.yaml").write_text(FILES["callbacks"][1])
    refused(flag.partition("=")[0], flag.format(planted))


def test_a_configuration_beside_the_user_is_not_used(planted, refused):
    """Only --config-dir leads to files outside the package."""
    for folder in (planted.parent, planted.parent / "conf"):
        folder.mkdir(exist_ok=True)
        write_experiment(folder, "seed: 3")
        (folder / "infer.yaml").write_text("seed: 3")
    refused("experiment has no choice 'evil'", "experiment=evil")


def test_a_folder_that_is_not_there_and_files_that_are_no_configuration(planted, refused):
    refused("--config-dir=nowhere", "--config-dir=nowhere")
    for content in ("[", "a: 1\na: 2", "\x00", "x: !!python/object:planted.Evil {}", "a: &a [*a]", "[" * 30 + "]" * 30):
        write_experiment(planted, content)
        refused("evil.yaml", f"--config-dir={planted}", "experiment=evil")
    bomb = "\n".join(["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])
    write_experiment(planted, bomb)
    refused("evil.yaml", f"--config-dir={planted}", "experiment=evil")


ALLOWED = {
    "run.dir": "out",
    "sweep.dir": "out/${hydra.job.name}",
    "sweep.subdir": "${hydra.job.num}",
    "sweeper.max_batch_size": 2,
    "sweeper.params": {"seed": "1,2"},
    "output_subdir": "settings",
    "verbose": True,
    "help": {"template": "text"},
    "hydra_help": {"template": "text"},
}


def nested(values: dict[str, object]) -> dict:
    found: dict = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return {"hydra": found}


def test_the_allowed_settings_of_a_file_are_accepted(planted, capsys):
    assert set(ALLOWED) == set(FILES_MAY_SET)
    write_experiment(planted, yaml.safe_dump(nested(ALLOWED)))
    outcome = run_verb("infer", [f"--config-dir={planted}", "experiment=evil", "--cfg", "hydra"], capsys)
    assert outcome.code == 0, outcome.err
    shown = yaml.safe_load(outcome.out)["hydra"]
    assert (shown["run"]["dir"], shown["output_subdir"], shown["verbose"]) == ("out", "settings", True)
    assert shown["sweeper"]["params"] == {"seed": "1,2"}


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=out",
        "hydra.sweep.dir=out",
        "hydra.sweep.subdir=x",
        "hydra.sweeper.max_batch_size=2",
        "hydra.output_subdir=settings",
        "hydra.verbose=true",
        "hydra.job.name=mine",
        "hydra/launcher=slurm",
        "hydra/launcher=submitit_local",
        "hydra/launcher=basic",
        "hydra/job_logging=default",
        "hydra/hydra_logging=disabled",
    ],
)
def test_the_allowed_settings_of_the_command_line_are_accepted(capsys, override):
    assert any(override.startswith(name.replace("KEY", "")) for name in COMMAND_LINE_MAY_SET)
    outcome = run_verb("infer", [override, "--cfg", "hydra"], capsys)
    assert outcome.code == 0, outcome.err


def sweep(capsys, *overrides: str) -> Outcome:
    """Sweep over a story that does not exist: each job ends with the same sentence."""
    return run_verb("infer", ["story=/nowhere.yaml", "-m", *overrides], capsys)


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=1"]])
def test_launchers_run_the_jobs_of_an_allowed_file(planted, capfd, launcher):
    write_experiment(
        planted, yaml.safe_dump(nested({"sweep.dir": str(planted / "sweep"), "sweeper.params": {"seed": "1,2"}}))
    )
    outcome = sweep(capfd, f"--config-dir={planted}", "experiment=evil", *launcher)
    assert outcome.code == 1
    assert "/nowhere.yaml" in outcome.err
    assert (planted / "sweep" / "multirun.yaml").exists()
