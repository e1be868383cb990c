"""`storydiffusion export` of a run that infer has finished, beside the exports that infer writes itself."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.conftest import run_verb


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_finished_run_is_exported_and_stays_as_it_is(run, capsys):
    before = contents(run)
    outcome = run_verb("export", ("run_dir=run", "exports=[pdf,cbz,zip]", "paper=a5"), capsys)
    assert outcome.code == 0, outcome.err
    after = contents(run)
    added = {"exports/story.pdf", "exports/story.cbz", "exports/story.zip"}
    assert after.keys() - before.keys() == added
    assert all(after[file] == content for file, content in before.items())
    assert [line for line in outcome.out.splitlines() if line.startswith("exported: ")] == [
        f"exported: run/exports/story.{suffix}" for suffix in ("pdf", "cbz", "zip")
    ]
    with zipfile.ZipFile(run / "exports" / "story.zip") as archive:
        assert archive.read("page.png") == before["page.png"]
        assert archive.read("exports/story.pdf") == after["exports/story.pdf"]


def test_infer_writes_the_same_exports(run, generate_story, capsys):
    run_verb("export", ("run_dir=run", "exports=[pdf,cbz]"), capsys)
    exported = contents(run / "exports")
    shutil.rmtree(run / "exports")
    outcome = generate_story("run_dir=run", "steps=3", "exports=[pdf,cbz]")
    assert outcome.code == 0, outcome.err
    assert "denoising" not in outcome.err
    assert contents(run / "exports") == exported


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("run_dir=nowhere",), "nowhere"),
        (("run_dir=run", "exports=[odt]"), "exports=odt is not one of pdf, cbz"),
        (("run_dir=run", "exports=[]"), "exports=[] names no file"),
        (("run_dir=run", "exports=[gif]"), "exports=gif shows transitions, and there is no video"),
        (("run_dir=run", "paper=a0"), "paper=a0 is not one of a4"),
        (("run_dir=run", "font=[nowhere.ttf]"), "nowhere.ttf"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, capsys, given, said):
    before = contents(run)
    outcome = run_verb("export", given, capsys)
    assert (outcome.code, len(outcome.sentences)) == (1, 1)
    assert said in outcome.err
    assert contents(run) == before
