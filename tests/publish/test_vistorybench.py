"""The ViStoryBench layout of handmade run folders."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_image
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import Manifest, PanelRecord, read_manifest, write_manifest
from storydiffusion.publish.vistorybench import export
from tests.conftest import compose_config

CONFIG = {"steps": 4, "model": {"name": "m", "video": {"frames": 8}}, "csa": {"rate": 0.5}}


def make_run(folder: Path, panels: int, **config: object) -> Path:
    """Write a run folder with panels of different colours."""
    records = []
    for number in range(1, panels + 1):
        file = f"panels/{number:03d}.png"
        write_image(folder / file, Image.new("RGB", (8, 8), (20 * number, panels, 0)))
        records.append(PanelRecord(file, "a cat", "", "", number, compute_sha256(folder / file)))
    manifest = Manifest(f"Story of {panels}", "m", "miniature", {**CONFIG, **config}, tuple(records), complete=True)
    write_manifest(folder / "manifest.json", manifest)
    return folder


def run(*overrides: str) -> None:
    export(compose_config("export-vistorybench", *overrides))


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_shots_are_where_the_benchmark_reads_them(tmp_path):
    first = make_run(tmp_path / "runs/a", 11, seed=1, story="a")
    second = make_run(tmp_path / "runs/b", 2, seed=2, story="b")
    run(f"runs=[{first},{second}]", "stories=[07,12]", f"out={tmp_path}/out", "timestamp=20250819_091354", "mode=rate")
    found = files(tmp_path / "out")
    place = "storydiffusion/rate/en/20250819_091354"
    assert set(found) == {
        *(f"{place}/07/shots/shot_{n:02d}.png" for n in range(11)),
        *(f"{place}/12/shots/shot_{n:02d}.png" for n in range(2)),
    }
    for run_folder, story in ((first, "07"), (second, "12")):
        ordered = sorted(name for name in found if f"/{story}/" in name)  # numeric order, as in the benchmark
        panels = sorted((run_folder / "panels").iterdir())
        assert [found[name].read_bytes() for name in ordered] == [panel.read_bytes() for panel in panels]


def test_story_numbers_default_to_folder_names_and_the_time_to_the_manifests(tmp_path):
    runs = [make_run(tmp_path / "3", 1), make_run(tmp_path / "42", 1)]
    os.utime(runs[0] / "manifest.json", (0, 0))
    os.utime(runs[1] / "manifest.json", (86_400 * 365, 86_400 * 365))
    for _ in range(2):  # idempotent
        run(f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path}/out", "language=ch", "method=ours")
    place = "ours/base/ch/19710101_000000"
    assert set(files(tmp_path / "out")) == {f"{place}/03/shots/shot_00.png", f"{place}/42/shots/shot_00.png"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("stories=[1]",), "1 numbers for 2 runs"),
        (("stories=[1,1]",), "a number of its own"),
        (("stories=[1,1000]",), "a number of its own"),
        ((), "a is not named by a story number"),
        (("stories=[1,2]", "language=de"), "language=de is not one of en, ch"),
        (("stories=[1,2]", "method=../up"), "method='../up' is not a valid folder name"),
        (("stories=[1,2]", "mode=en"), "mode='en' is not a valid folder name"),
        (("stories=[1,2]", "timestamp=20251341_000000"), "is not a time"),
        (("stories=[1,2]", "timestamp=2025081_091354"), "is not a time"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, overrides, sentence):
    runs = [make_run(tmp_path / name, 1) for name in "ab"]
    with pytest.raises(UserError, match=re.escape(sentence)):
        run(f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path}/out", *overrides)
    assert not (tmp_path / "out").exists()


def test_one_mode_requires_one_configuration(tmp_path):
    runs = [make_run(tmp_path / "1", 1), make_run(tmp_path / "2", 1, csa={"rate": 0.7})]
    with pytest.raises(UserError, match="another csa"):
        run(f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path}/out")
    make_run(tmp_path / "2", 1, model={"name": "m", "video": {"frames": 16}}, fps=12, seed=9)  # affects no panel
    run(f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path}/out")


def test_changed_or_missing_panels_are_refused(tmp_path):
    folder = make_run(tmp_path / "1", 2)
    write_image(folder / "panels/002.png", Image.new("RGB", (8, 8)))
    with pytest.raises(UserError, match=r"002\.png is missing or has changed"):
        run(f"runs=[{folder}]", f"out={tmp_path}/out")
    write_manifest(folder / "manifest.json", replace(read_manifest(folder / "manifest.json"), panels=()))
    with pytest.raises(UserError, match="has no panels yet"):
        run(f"runs=[{folder}]", f"out={tmp_path}/out")


def test_leftover_shots_of_a_longer_story_are_refused(tmp_path):
    arguments = (f"out={tmp_path}/out", "timestamp=20250819_091354")
    run(f"runs=[{make_run(tmp_path / '1', 3)}]", *arguments)
    make_run(tmp_path / "1", 2)
    with pytest.raises(UserError, match=r"already contains shot_02\.png"):
        run(f"runs=[{tmp_path / '1'}]", *arguments)
