"""report.html."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_image
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import Manifest, PanelRecord, VideoRecord
from storydiffusion.output.report import NOTES, write_report
from storydiffusion.output.typefaces import FONTS, font_bytes, subset
from storydiffusion.output.video_file import write_video
from tests.output.test_html_page import check_policy

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<svg onload=alert(3)></svg>",
    '" onmouseover=alert(4) autofocus onfocus=alert(5) x="',
    "' onmouseover='alert(6)' x='",
    "</p></textarea></title></style><img src=x onerror=alert(7)>",
    "[a](javascript:alert(8)) & {{ 7 * 7 }}",
)
"""texts that run where they are not escaped; a script that is set through innerHTML does not, the next two do"""
EVIL = " ".join(HOSTILE)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes.get(name) for found, attributes in self.tags if found == tag]


def made(folder: Path, captions: list[str], origin: str = "miniature", **changes: object) -> Manifest:
    """Write a run folder with that many images."""
    records = []
    for index, caption in enumerate(captions):
        file = f"panels/{index + 1:03d}.png"
        write_image(folder / file, Image.new("RGB", (16, 16), (40 * index, 90, 20)))
        records.append(PanelRecord(file, f"prompt {index}", "", caption, index, compute_sha256(folder / file)))
    manifest = Manifest(
        "A tale", "the model", origin, {"steps": 25, "note": EVIL}, tuple(records), seconds={"panels": 2}
    )
    return replace(manifest, **changes)


def report(folder: Path, manifest: Manifest) -> tuple[str, Page]:
    write_report(folder, manifest, {"Sharing rate": 0.5, "Variant": "eq2"})
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_report_contains_story_and_settings(tmp_path: Path):
    manifest = made(
        tmp_path, ["First.", "", "雪の日"], weights={"unet.safetensors": "ab" * 32}, versions={"torch": "2.11"}
    )
    _, page = report(tmp_path, manifest)
    for part in ("A tale", "3 panels by the model", "First.", "雪の日", "prompt 0", "prompt 2", "seed 1", "steps: 25"):
        assert part in page.text
    for part in ("Sharing rate", "0.5", "eq2", "2.0 s", "unet.safetensors", "ab" * 32, "torch", "2.11"):
        assert part in page.text
    assert page.attributes("p", "class").count("caption") == 2


def test_images_are_embedded(tmp_path: Path):
    _, page = report(tmp_path, made(tmp_path, ["a", "b"]))
    sources = page.attributes("img", "src")
    assert len(sources) == 2
    for number, source in enumerate(sources, start=1):
        assert source is not None
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / f"panels/{number:03d}.png").read_bytes()


def test_texts_are_escaped(tmp_path: Path):
    manifest = made(tmp_path, [EVIL], title=EVIL)
    manifest = replace(manifest, panels=(replace(manifest.panels[0], prompt=EVIL),))
    html, page = report(tmp_path, manifest)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert page.text.count(EVIL) >= 4
    assert page.attributes("img", "alt") == [EVIL]


def test_only_its_own_style_and_embedded_files_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_film(tmp_path / "video.mp4")
    manifest = made(tmp_path, [EVIL], title=EVIL, video=VIDEO)
    policy = check_policy(report(tmp_path, manifest)[0])
    assert (policy["img-src"], policy["font-src"], policy["media-src"]) == (["data:"], ["data:"], ["data:"])
    assert "script-src" not in policy
    monkeypatch.setattr("storydiffusion.output.report.LARGEST_EMBEDDED_VIDEO", 3)
    assert check_policy(report(tmp_path, manifest)[0])["media-src"] == ["'self'", "file:"]


def test_a_file_of_another_kind_is_not_embedded(tmp_path: Path):
    manifest = made(tmp_path, ["a"])
    (tmp_path / "notes.txt").write_text("private")
    with pytest.raises(UserError, match=r"'\.txt'"):
        report(tmp_path, replace(manifest, panels=(replace(manifest.panels[0], file="notes.txt"),)))


def test_needs_no_network(tmp_path: Path):
    html, page = report(tmp_path, made(tmp_path, ["a", "雪"]))
    assert not re.search(r"https?:|//[a-z]|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert {"link", "script", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    assert all(url.startswith("data:") for url in re.findall(r"url\(\"?([^)\"]*)", html))


def test_fonts_are_embedded_as_needed(tmp_path: Path):
    latin, _ = report(tmp_path, made(tmp_path, ["plain"]))
    both, _ = report(tmp_path, made(tmp_path, ["雪"]))
    assert latin.count("@font-face") == 1
    assert both.count("@font-face") == 2
    assert len(both) < len(latin) + 10_000


@pytest.mark.parametrize("origin", NOTES)
def test_weights_that_are_not_pretrained_are_named(tmp_path: Path, origin: str):
    _, page = report(tmp_path, made(tmp_path, ["a"], origin))
    notes = page.attributes("p", "role").count("note")
    assert notes == (origin != "pretrained")
    assert origin == "pretrained" or origin in page.text


VIDEO = VideoRecord("video.mp4", {"frames": 8}, {"predictor/model.safetensors": "ef" * 32})


def write_film(path: Path) -> None:
    write_video(path, [np.zeros((24, 16, 3), np.uint8)] * 2, 8)


def test_video_is_embedded(tmp_path: Path):
    write_film(tmp_path / "video.mp4")
    manifest = made(tmp_path, ["a"])
    assert "video" not in {tag for tag, _ in report(tmp_path, manifest)[1].tags}
    _, page = report(tmp_path, replace(manifest, video=VIDEO))
    assert page.attributes("video", "src") == [
        "data:video/mp4;base64," + base64.b64encode((tmp_path / "video.mp4").read_bytes()).decode()
    ]
    assert "ef" * 32 in page.text


def test_a_large_video_stays_a_separate_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storydiffusion.output.report.LARGEST_EMBEDDED_VIDEO", 3)
    write_film(tmp_path / "video.mp4")
    _, page = report(tmp_path, made(tmp_path, ["a"], video=VIDEO))
    assert page.attributes("video", "src") == ["video.mp4"]


def test_controls_have_a_bar_below_the_frame(tmp_path: Path):
    write_film(tmp_path / "video.mp4")
    html, _ = report(tmp_path, made(tmp_path, ["a"], video=VIDEO))
    assert "height: calc(100cqw * 24 / 16 + 5rem)" in html


def test_a_file_that_is_no_video_is_named(tmp_path: Path):
    (tmp_path / "video.mp4").write_bytes(b"film")
    with pytest.raises(UserError, match=r"video\.mp4.*generate it again"):
        report(tmp_path, made(tmp_path, ["a"], video=VIDEO))


def test_every_image_opens_in_full_and_closes(tmp_path: Path):
    _, page = report(tmp_path, made(tmp_path, ["a", "b"]))
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    opening, closing = links[::2], links[1::2]
    assert [each["href"] for each in opening] == [f"#{each['id']}" for each in opening] == ["#image-1", "#image-2"]
    assert [each["href"] for each in closing] == [f"#{name}" for name in page.attributes("figure", "id")]


def test_speech_is_shown_in_quotes(tmp_path: Path):
    manifest = made(tmp_path, ["a", "b"])
    manifest = replace(manifest, panels=(manifest.panels[0], replace(manifest.panels[1], says=EVIL)))
    _, page = report(tmp_path, manifest)
    assert page.text.count("“") == 1
    assert f"“{EVIL}”" in page.text


def test_a_missing_video_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"video\.mp4"):
        report(tmp_path, made(tmp_path, ["a"], video=VIDEO))


def test_user_supplied_images_show_no_seed(tmp_path: Path):
    manifest = made(tmp_path, [""])
    manifest = replace(manifest, panels=(replace(manifest.panels[0], prompt=""),))
    assert "seed" not in report(tmp_path, manifest)[1].text


def test_a_missing_image_keeps_the_old_report(tmp_path: Path):
    manifest = made(tmp_path, ["a"])
    html, _ = report(tmp_path, manifest)
    (tmp_path / "panels/001.png").unlink()
    with pytest.raises(UserError, match=r"001\.png"):
        report(tmp_path, manifest)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize("font", FONTS)
def test_embedded_fonts_do_not_depend_on_the_time(font):
    times = [TTFont(BytesIO(data))["head"].modified for data in (font_bytes(font), subset(font, "a"))]  # type: ignore[attr-defined]
    assert times[0] == times[1]
