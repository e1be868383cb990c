"""Verbs that write a folder for long refuse one that another process owns, and change nothing in it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Outcome, run_verb
from tests.helpers.folder_owner import Owner
from tests.helpers.video_model import overrides

VERBS = {
    "infer": ("story={story}", "model.path={model}", "run_dir={owned}", "video=off"),
    "infer of a benchmark": ("benchmark=stories", "benchmark.stories=2", "run_dir={owned}"),
    "train": ("run_dir={owned}",),
    "evaluate": ("images={images}", "out={owned}"),
    "reproduce": ("runs={owned}", "most=2"),
    "make-shards": ("source=storyworld", "clips=2", "out={owned}"),
    "export": ("run_dir={owned}",),
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("case", VERBS)
def test_a_folder_in_use_is_refused(
    case, tmp_path, capsys, monkeypatch, tiny_video_model, cache, story_file, finished_run
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.png")
    owned, verb = tmp_path / "owned", case.partition(" ")[0]
    if verb == "export":
        shutil.copytree(finished_run, owned)
    places = {"story": story_file, "model": tiny_video_model, "owned": owned, "images": tmp_path / "images"}
    given = [override.format(**places) for override in VERBS[case]]
    owner = Owner(owned)
    before = contents(owned)
    try:
        more = overrides(tiny_video_model, cache) if verb == "train" else []
        outcome: Outcome = run_verb(verb, [*more, *given], capsys)
    finally:
        owner.kill()
    assert outcome.code == 1
    assert f"{owned} is in use by process {owner.process.pid} on" in outcome.err
    assert len(outcome.sentences) == 1
    assert contents(owned) == before
