"""From folders of generated items to study.html and key.json."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_image
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord, write_manifest
from storydiffusion.output.video_file import write_video
from storydiffusion.user_study.files import load_key
from storydiffusion.user_study.study import find_items, user_study
from tests.conftest import compose_config, run_verb
from tests.user_study.test_page import content


def write_shade(file: Path, shade: int = 0) -> Path:
    write_image(file, Image.new("RGB", (8, 8), (shade, 0, 0)))
    return file


def make_run(folder: Path, prompts: list[str], video: bool = False, complete: bool = True) -> Path:
    """Write a run folder as infer.py does."""
    files = [write_shade(folder / f"panels/{n:03d}.png", n).relative_to(folder).as_posix() for n in range(len(prompts))]
    panels = tuple(PanelRecord(file, prompt, "", "", 0, "") for file, prompt in zip(files, prompts, strict=True))
    record = VideoRecord("video.mp4", {}, {}) if video else None
    if video:
        write_video(folder / "video.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3, 8)
    write_manifest(
        folder / "manifest.json", Manifest("T", "m", "miniature", {}, panels, video=record, complete=complete)
    )
    return folder


def run(*overrides: str) -> None:
    user_study(compose_config("user-study", *overrides))


def two(tmp_path: Path) -> tuple[str, str, str]:
    """Return overrides that compare the folders a and b."""
    return (f"methods.one={tmp_path}/a", f"methods.two={tmp_path}/b", f"out={tmp_path}/out")


def test_run_folders_make_a_page_and_its_key(tmp_path, monkeypatch, capsys):
    for method in "ab":
        make_run(tmp_path / method / "mia", ["a girl", "a girl runs"])
        make_run(tmp_path / method / "bolt", ["a robot"])
    arguments = [*two(tmp_path), "questions=[overall,text,'Really?']", "per_person=3", "title=T"]
    outcome = run_verb("user-study", arguments, capsys)
    assert outcome.code == 0
    assert "3 of 6 comparisons" in outcome.out
    html, key = (tmp_path / "out/study.html").read_text(encoding="utf-8"), load_key(tmp_path / "out/key.json")
    assert (key.methods, key.per_person, len(key.comparisons)) == (["one", "two"], 3, 6)
    assert key.questions["Really?"] == "Really?"
    assert {(one.item, one.question) for one in key.comparisons.values()} == {
        (item, question) for item in ("mia", "bolt") for question in ("overall", "text", "Really?")
    }
    shown = content(html)
    assert sorted(shown["texts"].values()) == [["a girl", "a girl runs"], ["a robot"]]
    assert sorted(len(sources) for sources in shown["media"].values()) == [1, 1, 2, 2]
    before = (tmp_path / "out/key.json").read_bytes()
    run(*arguments)  # idempotent
    assert (tmp_path / "out/key.json").read_bytes() == before
    assert (tmp_path / "out/study.html").read_text(encoding="utf-8") == html


def test_the_key_of_another_study_is_not_overwritten(tmp_path):
    for method in "ab":
        write_shade(tmp_path / method / "x.png")
    run(*two(tmp_path))
    before = (tmp_path / "out/key.json").read_bytes()
    with pytest.raises(UserError, match="holds the key of another study"):
        run(*two(tmp_path), "questions=[character]")
    assert (tmp_path / "out/key.json").read_bytes() == before


def test_items_are_run_folders_images_or_folders_of_images(tmp_path):
    make_run(tmp_path / "a/tale", ["1", "2"])
    for number in (9, 10):  # in the order of the numbers
        write_shade(tmp_path / f"b/tale/shot{number}.png")
    write_shade(tmp_path / "a/single.png")
    write_shade(tmp_path / "b/single.jpg")
    (tmp_path / "b/single.txt").write_text("what it shows\n")
    (tmp_path / "b/notes.md").write_text("no item\n")
    tale, single = sorted(
        find_items({"one": tmp_path / "a", "two": tmp_path / "b"}, "images"), key=lambda item: -len(item.text)
    )
    assert (tale.name, single.name) == ("tale", "single")
    assert (tale.text, single.text) == (("1", "2"), ("what it shows",))
    assert [file.name for file in tale.media["one"]] == ["000.png", "001.png"]
    assert [file.name for file in tale.media["two"]] == ["shot9.png", "shot10.png"]
    assert [file.name for file in single.media["two"]] == ["single.jpg"]


def test_videos_come_from_run_folders_or_files(tmp_path):
    make_run(tmp_path / "a/tale", ["1", "2"], video=True)
    write_video(tmp_path / "b/tale.mp4", [np.full((16, 16, 3), 9, np.uint8)] * 3, 8)
    (item,) = find_items({"one": tmp_path / "a", "two": tmp_path / "b"}, "video")
    assert item.media == {"one": (tmp_path / "a/tale/video.mp4",), "two": (tmp_path / "b/tale.mp4",)}
    assert item.text == ("1", "2")
    run(*two(tmp_path), "media=video", "questions=[smooth,natural]")
    make_run(tmp_path / "a/tale", ["1", "2"], video=True, complete=False)
    with pytest.raises(UserError, match="tale has no video"):
        find_items({"one": tmp_path / "a", "two": tmp_path / "b"}, "video")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("methods={one: a}",), "1 methods cannot be compared"),
        (("media=sound",), "media=sound is not one of images, video"),
        (("questions=[]",), "must hold one or more, each once"),
        (("questions=[overal]",), "'overal' is unknown: choose from overall, character"),
        (("questions=[smooth]",), "'smooth' applies to videos only"),
        (("questions=[text]",), "write it to x.txt"),
        (("per_person=0",), "per_person=0 is outside"),
        (("methods.two=nowhere",), "nowhere is not a folder"),
        (("methods.two=empty",), "empty contains no run folders, images or videos"),
        (("methods.two=less",), "less has no 'y', but a has"),
        (("methods.two=longer",), "a/x.png and longer/x have 1 and 2 images"),
        (("methods.two=twice",), "twice/x.jpg and twice/x.png have the same name"),
        (("methods.one=cat", "methods.two=dog"), "have different prompts"),
        (("media=video",), "a/x.png has no video"),
        (("methods.one=damaged", "methods.two=damaged"), "cannot read the image damaged/x.png"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, monkeypatch, overrides, sentence):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b", "less", "twice"):
        write_shade(Path(folder, "x.png"))
    for file in (
        "a/y.png",
        "b/y.png",
        "longer/y.png",
        "twice/y.png",
        "twice/x.jpg",
        "longer/x/1.png",
        "longer/x/2.png",
    ):
        write_shade(Path(file))
    make_run(Path("cat/t"), ["a cat"])
    make_run(Path("dog/t"), ["a dog"])
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/x.png").write_bytes(b"\x89PNG")
    given = overrides if overrides[0].startswith("methods={") else ("methods.one=a", "methods.two=b", *overrides)
    with pytest.raises(UserError, match=re.escape(sentence)):
        run(*given, "out=out")
    assert not Path("out").exists()


def test_a_page_beyond_the_size_limit_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    for method in "ab":
        write_image(tmp_path / method / "x.png", Image.fromarray(noise))
    with pytest.raises(UserError, match=r"the page would be \d MB, more than limit_mb=1: .*largest_side"):
        run(*two(tmp_path), "limit_mb=1", "largest_side=700")
    assert not (tmp_path / "out").exists()
    run(*two(tmp_path), "limit_mb=1", "largest_side=100")
    assert json.loads((tmp_path / "out/key.json").read_text())["format"] == 1
