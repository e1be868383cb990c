"""report.html in Chromium, from a file: its policy, and how it looks at the width of a desktop and of a phone."""

import socket
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.output.report import write_report
from storydiffusion.output.video_file import write_video
from tests.helpers.browser import SIZES
from tests.output.test_report import EVIL, HOSTILE, VIDEO, made

LONG = "Over the hill she went, with cold toes and a warm letter in her pocket. " * 3 + "W" * 150
SHADE = (60, 150, 190)


def write(folder: Path, captions: list[str], title: str = "A tale", size: tuple[int, int] = (48, 32)) -> str:
    """Write a report with a video of one shade, where each text is that of its panel; return its address."""
    width, height = size
    write_video(folder / "video.mp4", [np.full((height, width, 3), SHADE, np.uint8)] * 8, 8)
    manifest = made(folder, captions, video=VIDEO, title=title)
    panels = tuple(
        replace(panel, says=panel.caption, prompt=panel.caption, negative_prompt=panel.caption)
        for panel in manifest.panels
    )
    write_report(folder, replace(manifest, panels=panels), {title: title})
    return (folder / "report.html").as_uri()


def receive(listener: socket.socket) -> bytes:
    """Return all that was sent; Chromium connects to where a form or a frame leads before it asks the policy."""
    listener.setblocking(False)
    received = b""
    with suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                received += connection.recv(1000)
    return received


def test_hostile_texts_are_shown_and_run_nothing(tmp_path, visit):
    visited = visit(write(tmp_path, [EVIL], EVIL))
    visited.page.hover("figure")
    visited.check_harmless()
    assert visited.violations == []
    assert visited.page.title() == visited.page.inner_text("h1") == EVIL
    assert visited.page.locator(".caption").all_inner_texts() == [EVIL, f"“{EVIL}”"]
    assert visited.page.locator("video").evaluate("(film) => film.error") is None
    assert {url.partition(":")[0] for url in visited.requests} <= {"file", "data"}


def test_what_a_fault_would_inject_is_blocked(tmp_path, visit):
    file = Path(write(tmp_path, ["a"]).removeprefix("file://"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        outside = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        injected = f"<img src={outside}><iframe src={outside}></iframe><link rel=stylesheet href={outside}>"
        injected += f"<style>h1 {{ color: red }}</style><b style='color: red'>x</b><form action={outside}></form>"
        html = file.read_text(encoding="utf-8").replace("<h1", f"{''.join(HOSTILE)}{injected}<h1", 1)
        file.write_text(html, encoding="utf-8")
        visited = visit(file.as_uri())
        visited.page.hover("figure")
        styled = visited.page.evaluate(
            "['h1', 'b'].map((each) => getComputedStyle(document.querySelector(each)).color)"
        )
        visited.page.evaluate("document.forms[0].submit()")
        visited.page.wait_for_timeout(500)
        visited.context.close()
        assert receive(listener) == b""
    assert visited.errors == []
    assert "rgb(255, 0, 0)" not in styled
    text = "\n".join(visited.violations)
    for directive in ("script", "style-src", "img-src", "form-action", "default-src"):
        assert directive in text, text


@pytest.mark.parametrize("size", SIZES)
def test_long_texts_fit_the_window(tmp_path, visit, size):
    visited = visit(write(tmp_path, [LONG, "b", LONG, "d", "e"], LONG), size)
    for details in visited.page.locator("details").all():
        details.click()
    assert not visited.is_wider_than_the_window


def test_controls_cover_nothing_of_the_frame(tmp_path, visit):
    visited = visit(write(tmp_path, ["a"], size=(512, 288)), "phone")
    video = visited.page.locator("video")
    visited.wait_until("document.querySelector('video').readyState == 4")
    video.hover()
    box = video.bounding_box()
    height = int(box["width"] * 288 / 512)
    for _ in range(20):  # while the sign of loading turns
        visited.page.wait_for_timeout(500)
        shot = np.asarray(Image.open(BytesIO(video.screenshot())).convert("RGB"), dtype=int)
        frame, bar = shot[4 : height - 4, 4:-4], shot[height + 4 :]
        if np.abs(frame - SHADE).max() <= 8:
            break
    assert np.abs(frame - SHADE).max() <= 8
    assert np.ptp(bar) > 100  # the controls are shown


@pytest.mark.parametrize("size", SIZES)
def test_a_click_shows_the_whole_image_as_large_as_the_window(tmp_path, visit, size):
    visited = visit(write(tmp_path, ["a", "b", "c"]), size)
    image = visited.page.locator("#image-2 img")
    small = image.bounding_box()
    image.click()
    assert visited.find_outside("#image-2 img") == []
    large, (width, height) = image.bounding_box(), SIZES[size]
    assert large["width"] * large["height"] > 2 * small["width"] * small["height"]
    assert min(width - large["width"], height - large["height"]) <= 64
    assert image.evaluate("(each) => getComputedStyle(each).objectFit") == "contain"
    assert (
        visited.page.evaluate(f"document.elementFromPoint({width} / 2, {height} / 2).closest('a').getAttribute('href')")
        == "#panel-2"
    )  # the next click, anywhere, closes it
    visited.page.mouse.click(width / 2, height / 2)
    assert image.bounding_box()["width"] == pytest.approx(small["width"])
