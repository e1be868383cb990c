"""The page in a real browser: from an idea to a PDF, at the width of a desktop and of a phone."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.output.test_report import EVIL
from tests.studio.conftest import SMALL

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MOST_STEPS = 30
PATIENCE = 100_000  # milliseconds
SHOTS = os.environ.get("STUDIO_SCREENSHOTS")
"""a folder for screenshots to look at"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[str, Path]]:
    """A studio in a process of its own: its address and its folder."""
    folder = tmp_path_factory.mktemp("studio")
    settings = ["folder=runs", "port=0", f"model.path={tiny_model}", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "storydiffusion", "studio", *settings],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert address
    yield address[0], folder / "runs"
    process.terminate()
    process.wait(60)


class User:
    """Acts on the page and counts the steps."""

    def __init__(self, browser: Any, address: str, size: str) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.size, self.steps = size, 0
        self.page.goto(address)
        self.page.wait_for_selector("#idea textarea")

    def click(self, selector: str) -> None:
        self.steps += 1
        self.page.click(selector)

    def fill(self, selector: str, text: str) -> None:
        self.steps += 1
        self.page.fill(selector, text)
        self.page.locator(selector).blur()

    def wait(self, text: str) -> None:
        """Wait until the progress says this."""
        self.page.wait_for_selector(f"#progress >> text={text}")

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=f"{SHOTS}/{self.size}-{name}.png", full_page=True)

    def is_wider_than_the_window(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


@pytest.fixture
def new_user(browser, server) -> Iterator[Any]:
    users = []

    def make(size: str = "desktop", query: str = "") -> User:
        users.append(User(browser, server[0] + query, size))
        return users[-1]

    yield make
    for user in users:
        user.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_a_story_from_an_idea_to_a_pdf(new_user, server, size):
    user, (address, runs) = new_user(size), server
    user.shoot("start")
    user.fill("#idea textarea", f"a cat finds a ball on a {size}")
    user.click("#write")
    user.page.wait_for_selector("#caption-3 textarea")
    name = f"a-cat-finds-a-ball-on-a-{size}"
    assert (runs / name / "story.yaml").exists()
    user.fill("#caption-1 textarea", EVIL)
    user.click("#generate")
    user.page.wait_for_selector("#panel-1 img")
    user.wait("generated all")
    user.shoot("generated")
    user.page.reload()
    user.page.wait_for_selector("#panel-1 img")
    assert user.page.input_value("#caption-1 textarea") == EVIL
    user.click("#retakes-2 button")
    user.page.locator("#candidates-2 input[type=number]").fill("2")
    user.steps += 1
    user.click("#retake-2")
    user.wait("2 new takes of panel 2")
    user.click("#take-2 input >> nth=1")
    user.wait("panel 2 shows take 1")
    user.shoot("taken")
    user.click("#export")
    user.wait("exported story.pdf")
    with user.page.expect_download() as download:
        user.click("#results a:has-text('story.pdf')")
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
    assert download.value.suggested_filename == f"{name}-story.pdf"
    assert user.steps <= MOST_STEPS
    assert user.errors == []
    assert not user.is_wider_than_the_window()
    assert {url.split("/")[2] for url in user.requests if url.startswith("http")} == {address.split("/")[2]}
    user.shoot("exported")
