"""study.html in Chromium, from a file: its policy, and what fits the window of a desktop and of a phone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion.output.video_file import write_video
from storydiffusion.user_study.page import Kind, StudyItem, study_page
from tests.helpers.browser import SIZES, Visit
from tests.output.test_report import EVIL, HOSTILE

SENTENCE = "Over the hill she went, with cold toes and a warm letter in her pocket, and did not look back even once; "
LONGEST = {"desktop": 400, "phone": 150}
"""characters of the text of each of six images"""


def write(folder: Path, texts: list[str], question: str, kind: Kind = "images") -> str:
    """Write a study of one item and two methods, with an image for each text or a video; return its address."""
    if kind == "images":
        file = folder / "a.png"
        Image.new("RGB", (512, 512), (60, 150, 190)).save(file)
    else:
        file = folder / "a.mp4"
        write_video(file, [np.full((288, 512, 3), 90, np.uint8)] * 4, 8)
    media = (file,) * (len(texts) if kind == "images" else 1)
    page = study_page([StudyItem("a", tuple(texts), {"x": media, "y": media})], kind, {"q": question}, 9, question)
    (folder / "study.html").write_text(page.html, encoding="utf-8")
    return (folder / "study.html").as_uri()


def start(visited: Visit) -> None:
    visited.page.click("#start button")
    visited.page.wait_for_selector("#ask:not([hidden])")


def test_hostile_texts_are_shown_and_run_nothing(tmp_path, visit):
    visited = visit(write(tmp_path, [EVIL], EVIL))
    assert visited.page.title() == visited.page.inner_text("#start h1") == EVIL
    visited.page.fill("#code", EVIL)
    start(visited)
    visited.page.hover("#left img")
    assert visited.page.inner_text("#question") == visited.page.inner_text("#text li") == EVIL
    visited.page.wait_for_timeout(300)  # the page ignores input before
    visited.page.click("#choose-left")
    visited.page.wait_for_selector("#done:not([hidden])")
    visited.check_harmless()
    assert visited.violations == []
    assert {url.partition(":")[0] for url in visited.requests} <= {"file", "data"}


def test_what_a_fault_would_inject_is_blocked(tmp_path, visit):
    address = write(tmp_path, ["a"], "Which?")
    file = tmp_path / "study.html"
    injected = "".join(HOSTILE) + "<img src=https://localhost:9/x><iframe src=https://localhost:9/x></iframe>"
    html = file.read_text(encoding="utf-8").replace("<main>", f"{injected}<main>", 1)
    file.write_text(html, encoding="utf-8")
    visited = visit(address)
    start(visited)  # its own script runs
    assert visited.errors == []
    text = "\n".join(visited.violations)
    for directive in ("script", "img-src", "default-src"):
        assert directive in text, text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "texts"), [("images", 1), ("images", 6), ("video", 6)])
def test_text_and_images_are_wholly_inside_the_window(tmp_path, visit, size, kind, texts):
    text = (SENTENCE * 4)[: LONGEST[size]]
    address = write(tmp_path, [text] * texts, "Which of the two fits the text better?", kind)
    visited = visit(address, size)
    start(visited)
    assert visited.find_outside("#question, #text li, .media > *, .bar button:not([hidden])") == []
    bottom, top = visited.page.evaluate(
        "[['.pair', 'bottom'], ['.bar', 'top']].map(([name, edge]) =>"
        " document.querySelector(name).getBoundingClientRect()[edge])"
    )
    assert bottom <= top  # the bar of buttons covers no image
    assert visited.page.locator(".media > *").first.bounding_box()["height"] >= 50
    assert (
        float(visited.page.locator("#text li").first.evaluate("(each) => parseFloat(getComputedStyle(each).fontSize)"))
        >= 11
    )
    assert not visited.is_wider_than_the_window


@pytest.mark.parametrize("size", SIZES)
def test_a_text_that_is_too_long_scrolls_and_is_covered_by_nothing_at_its_end(tmp_path, visit, size):
    visited = visit(write(tmp_path, [SENTENCE * 12] * 6, "Which?"), size)
    start(visited)
    visited.page.mouse.wheel(0, 10**5)
    visited.wait_until("scrollY + innerHeight >= document.documentElement.scrollHeight - 1")
    assert visited.find_outside(".media img, .bar button:not([hidden])") == []
    images, buttons = (visited.page.locator(each).last.bounding_box() for each in (".media img", ".bar"))
    assert images["y"] + images["height"] <= buttons["y"]
