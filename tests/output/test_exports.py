"""Files made from a finished run."""

import re
import shutil
import subprocess
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_image
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.exports import (
    EXPORTS,
    FinishedRun,
    check_exports,
    remove_exports,
    write_exports,
)
from storydiffusion.output.film_strip import write_strip
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord

TITLE = "Snow & <ice>"
CAPTIONS = ("Pip had a letter.", "“Come and find me,” it said.", "雪の日に、北京", "", "Ünïcödé for all")
FRAMES = np.broadcast_to(np.arange(20, 240, 40, dtype=np.uint8)[:, None, None, None], (6, 32, 48, 3)).copy()


def finished(folder: Path, has_video: bool = True, paper: str | None = None) -> FinishedRun:
    records = []
    for number, caption in enumerate(CAPTIONS, start=1):
        file = f"panels/{number:03d}.png"
        write_image(folder / file, Image.new("RGB", (48, 32), (40 * number, 90, 20)))
        says = "Found you!" if number == 4 else ""
        records.append(PanelRecord(file, "p", "", caption, number, compute_sha256(folder / file), says=says))
    (folder / "page.png").write_bytes(b"page")
    (folder / "report.html").write_bytes(b"report")
    manifest = Manifest(TITLE, "tiny", "random", {"seed": 1}, tuple(records), complete=True)
    if has_video:
        (folder / "video.mp4").write_bytes(b"video")
        write_strip(folder / "transitions" / "001-002.png", FRAMES, "key")
        write_strip(folder / "transitions" / "004-005.png", FRAMES[::-1], "key")
        manifest = replace(manifest, video=VideoRecord("video.mp4", {"frames": 6, "fps": 8}, {}))
    (folder / "manifest.json").write_text("{}")
    return FinishedRun(folder, manifest, paper=paper)


def pdf_text(data: bytes) -> str:
    """Return the characters that a PDF's glyphs stand for, in any order, each once for each font."""
    starts = [found.end() for found in re.finditer(rb"/FlateDecode[^>]*>>\s*stream\r?\n", data)]
    streams = [zlib.decompressobj().decompress(data[start:]) for start in starts]
    maps = b"".join(stream for stream in streams if b"begincmap" in stream).decode()
    text = "".join(
        bytes.fromhex(code).decode("utf-16-be") for code in re.findall(r"^<\w+> <((?:\w{4})+)>$", maps, re.MULTILINE)
    )
    for low, high, first in re.findall(r"^<(\w+)> <(\w+)> <(\w{4})>$", maps, re.MULTILINE):
        text += "".join(chr(int(first, 16) + n) for n in range(int(high, 16) - int(low, 16) + 1))
    return text


def test_every_export_is_written_inside_its_folder(tmp_path: Path):
    written = write_exports(finished(tmp_path), list(EXPORTS))
    transitions = [f"{name}.{suffix}" for suffix in ("gif", "webp", "mp4") for name in ("001-002", "004-005")]
    assert [file.name for file in written] == ["story.pdf", "story.cbz", *transitions, "story.zip"]
    assert all(file.parent == tmp_path / "exports" for file in written)
    (tmp_path / "exports" / "mine.pdf").write_bytes(b"mine")
    remove_exports(tmp_path)
    assert [file.name for file in (tmp_path / "exports").iterdir()] == ["mine.pdf"]


@pytest.mark.parametrize("names", [["pdf"], ["cbz"], ["gif", "webp", "mp4"], list(EXPORTS)])
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, names: list[str]):
    once, again = (
        [file.read_bytes() for file in write_exports(finished(tmp_path / name), names)] for name in ("a", "b")
    )
    assert once == again


def test_the_pdf_has_text_and_title(tmp_path: Path):
    write_exports(finished(tmp_path), ["pdf"])
    data = (tmp_path / "exports" / "story.pdf").read_bytes()
    assert data.count(b"/Type /Page\n") == 1
    assert b"/CreationDate" not in data
    assert set(TITLE) - {" "} <= set(pdf_text(data)) | {" "}
    for caption in CAPTIONS:
        assert set(caption) - {" "} <= set(pdf_text(data)), caption


def test_words_of_the_pdf_are_found(tmp_path: Path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    write_exports(finished(tmp_path), ["pdf"])
    command = ["pdftotext", str(tmp_path / "exports" / "story.pdf"), "-"]
    text = " ".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    for words in (TITLE, *CAPTIONS, "Found you!"):
        assert words in text


@pytest.mark.parametrize("paper", [None, "a4", "comic"])
def test_paper_divides_the_story_into_pages_of_its_shape(tmp_path: Path, paper: str | None):
    run = finished(tmp_path, paper=paper)
    run.manifest.config["page"] = {"layout": "webtoon"}
    write_exports(run, ["cbz", "pdf"])
    with zipfile.ZipFile(tmp_path / "exports" / "story.cbz") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        sizes = [Image.open(BytesIO(archive.read(name))).size for name in names]
        info = ElementTree.fromstring(archive.read("ComicInfo.xml"))
    assert names == [f"{number:03d}.png" for number in range(1, len(names) + 1)]
    assert (info.findtext("Title"), info.findtext("PageCount")) == (TITLE, str(len(names)))
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "exports" / "story.pdf").read_bytes())
    assert len(boxes) == len(names)
    if paper is None:
        assert len(names) == 1
    else:
        width, height = {"a4": (210, 297), "comic": (168, 260)}[paper]
        assert len(names) > 1
        assert {round(high / wide, 2) for wide, high in sizes} == {round(height / width, 2)}
        assert float(boxes[0][0]) == pytest.approx(width / 25.4 * 72, abs=0.5)


def test_transitions_play_in_order_at_the_speed_of_the_video(tmp_path: Path):
    run = finished(tmp_path)
    gif, _, webp, _, mp4, _ = write_exports(run, ["gif", "webp", "mp4"])
    for file, tolerance in ((gif, 2), (webp, 4)):
        with Image.open(file) as animation:
            assert animation.n_frames == 6  # pyright: ignore
            assert animation.info["loop"] == 0
            for number in range(6):
                animation.seek(number)
                difference = np.asarray(animation.convert("RGB")).astype(int) - FRAMES[number]
                assert np.abs(difference).mean() < tolerance
    with av.open(str(mp4)) as video:
        assert video.streams.video[0].average_rate == 8
        assert sum(1 for _ in video.decode(video=0)) == 6


def test_the_archive_contains_results_and_exports(tmp_path: Path):
    write_exports(finished(tmp_path), ["zip", "pdf"])
    with zipfile.ZipFile(tmp_path / "exports" / "story.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert archive.read("panels/001.png") == (tmp_path / "panels" / "001.png").read_bytes()
    panels = [f"panels/{number:03d}.png" for number in range(1, 6)]
    results = sorted([*panels, "page.png", "report.html", "video.mp4"])
    assert names == ["manifest.json", *results, "exports/story.pdf"]


@pytest.mark.parametrize(
    ("names", "paper", "part"),
    [(["odt"], None, "exports=odt"), (["pdf"], "a0", "paper=a0"), ([""], None, "pdf,")],
)
def test_unknown_exports_are_refused(names: list[str], paper: str | None, part: str):
    with pytest.raises(UserError, match=part):
        check_exports(names, paper)


def test_a_run_without_video_unfinished_or_damaged_is_refused(tmp_path: Path):
    run = finished(tmp_path, has_video=False)
    with pytest.raises(UserError, match="no video"):
        write_exports(run, ["pdf", "gif"])
    with pytest.raises(UserError, match="unfinished"):
        write_exports(replace(run, manifest=replace(run.manifest, complete=False)), ["pdf"])
    (tmp_path / "panels" / "002.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"002\.png has changed"):
        write_exports(run, ["pdf"])
    assert not (tmp_path / "exports").exists()
