"""What a fresh machine relies on: the lock, the environment files, the size of what is in git, and the experiments."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from storydiffusion.config import InferConfig, TrainConfig, load, training_schema
from storydiffusion.config.sweep import expand

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 15 * 2**20  # bytes
TOP_LEVEL = {
    "train.py", "infer.py", "conf", "src", "data", "tests", "slurm", "environment.yml", "README.md", "LICENSE",
    "pyproject.toml", "Makefile", "requirements.lock", ".ci", ".gitignore", "examples", "benchmarks", "RESULTS.md",
    "results", "docs", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".github", "weights",
}  # fmt: skip


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def pins(lock) -> dict[str, Requirement]:
    """Return every locked package; each is a line continued by its hashes."""
    found = [Requirement(line.rstrip(" \\")) for line in lock.splitlines() if re.match(r"\w", line)]
    return {canonicalize_name(pin.name): pin for pin in found}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_the_lock_satisfies_what_the_project_asks_for(project, pins):
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(line)
        pin = pins[canonicalize_name(wanted.name)]
        version = str(pin.specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} but {pin} is locked: make lock"
        assert (pin.marker is None) == (wanted.marker is None), f"{wanted} but {pin} is locked: make lock"


def test_every_pin_is_exact_and_has_hashes(lock, pins):
    blocks = re.split(r"\n(?=\w)", lock)
    assert len(blocks) == len(pins) + 1  # the header before
    for block in blocks[1:]:
        assert re.match(r"[\w.-]+==[\w.+]+ ", block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_lock_names_no_place(lock):
    assert not re.search(
        r"://|(?<![\w.-])/\w|\b[\w-]+\.(com|org|net|io|dev|internal|local)\b|index-url|find-links", lock
    )


def test_what_must_not_be_locked_is_not(pins):
    assert str(pins["lightning"].specifier) not in ("==2.6.2", "==2.6.3")  # malware


def test_packages_of_one_platform_are_locked_for_it(pins):
    for name in ("decord", "deepspeed"):
        assert "x86_64" in str(pins[name].marker)


def test_conda_gets_the_same_environment(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python=") + ".0")
    assert {"pip": ["--requirement requirements.lock"]} in environment["dependencies"]


def test_files_in_git_are_small_and_where_they_belong(tracked):
    for name in tracked:
        assert (ROOT / name).stat().st_size < LARGEST_FILE, name
        assert name.split("/")[0] in TOP_LEVEL, name


EXPERIMENTS = {
    file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
}
NEEDED = {
    "paper": ["data.shards=somewhere"],
    "sd15_tokens": ["data.shards=somewhere"],
    "trained": ["run_dir=runs/trained"],
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_of_every_experiment_composes(name):
    """By the command it belongs to, which is infer.py's where it takes a benchmark, or is a baseline."""
    content = EXPERIMENTS[name]
    is_measured = any("override /benchmark" in each for each in content["defaults"])
    entry = "infer" if is_measured or name.startswith("baseline_") else "train"
    _, jobs = expand(content.get("hydra", {}).get("sweeper", {}).get("params", {}), NEEDED.get(name, []))
    assert (len(jobs) > 1) == name.startswith("ablation_")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in jobs:
            composed = compose(entry, [f"experiment={name}", *overrides])
            config = load(training_schema(composed) if entry == "train" else InferConfig, composed)
            assert name.removeprefix("storyworld_") == Path(str(config.run_dir)).name
            if isinstance(config, TrainConfig):
                assert config.recipe.part in name


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("ablation_")])
def test_a_sweep_writes_its_plan_beside_its_jobs(name):
    content = EXPERIMENTS[name]
    beside = content["hydra"].get("sweep", {}).get("dir")
    group = next((each["override /benchmark"] for each in content["defaults"] if "override /benchmark" in each), None)
    if group is not None:
        beside = yaml.safe_load((ROOT / "conf" / "benchmark" / f"{group}.yaml").read_text())["hydra"]["sweep"]["dir"]
    assert beside == "${run_dir}"


@pytest.mark.slow
def test_a_wheel_answers_in_any_directory(tracked, tmp_path):
    """Built from what git tracks; configuration and example stories are inside."""
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    for arguments, needed in ((["--help"], "make-shards"), (["infer", "--cfg", "job"], "package://examples/mia.yaml")):
        done = subprocess.run(
            [sys.executable, "-m", "storydiffusion", *arguments],
            cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert needed in done.stdout
    assert {file.name for file in (site / "storydiffusion" / "examples").iterdir()} == {
        file.name for file in (ROOT / "examples" / "stories").iterdir()
    }
    assert not list(empty.iterdir())
