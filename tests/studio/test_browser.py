"""The page in a real browser: from an idea to a PDF, at the width of a desktop and of a phone."""

import os
import re
import shutil
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_a_second_window_is_refused_until_the_first_is_closed(new_user):
    first = new_user()
    first.click("#example")
    first.page.wait_for_selector("#panel-4")
    query = first.page.url.partition("?")[2]
    second = new_user(query=f"?{query}")
    second.page.wait_for_selector("[role=alert] >> text=is open in another window")
    second.shoot("second-window")
    assert second.page.locator("#panel-1").count() == 0
    first.page.close()
    second.page.wait_for_selector("#panel-4")


@pytest.mark.slow
def test_a_job_continues_without_its_page_and_is_cancelled_from_another(new_user, server):
    user = new_user()
    user.click("#example")
    user.page.wait_for_selector("#panel-4")
    user.click("#generate")
    user.page.reload()
    user.wait("generated all 4 panels")
    user.page.wait_for_selector("#panel-4 img")


@pytest.mark.slow
def test_panels_are_locked_moved_added_and_deleted(new_user):
    user = new_user()
    user.click("#example")
    user.page.wait_for_selector("#panel-4")
    prompts = [user.page.input_value(f"#prompt-{number} textarea") for number in (1, 2, 3, 4)]
    user.click("#panel-2 button:has-text('Earlier')")
    user.page.wait_for_function("text => document.querySelector('#prompt-1 textarea')?.value === text", arg=prompts[1])
    user.click("#add-panel")
    user.page.wait_for_selector("#panel-5")
    user.click("#panel-3 button:has-text('Delete')")
    user.page.wait_for_selector("#panel-5", state="detached")
    user.click("#lock-1 input")
    user.page.wait_for_selector("#prompt-1 textarea:disabled")
    user.page.reload()
    user.page.wait_for_selector("#prompt-1 textarea:disabled")
    assert user.page.input_value("#prompt-2 textarea") == prompts[0]
    user.fill("#prompt-2 textarea", "[Nobody] runs")
    user.page.wait_for_selector("text=names the undefined character")
    user.shoot("refused")


def test_files_outside_projects_are_not_served(browser, server):
    address, runs = server
    context = browser.new_context()
    (runs.parent / "secret.png").write_bytes(b"classified")
    for path in ("projects/../secret.png", "projects/%2e%2e/secret.png", "projects/x/..%2f..%2fsecret.png",
                 f"gradio_api/file={runs.parent}/secret.png", "gradio_api/file=/etc/hostname"):  # fmt: skip
        answer = context.request.get(address + path)
        assert answer.status >= 400, path
        assert b"classified" not in answer.body()
    assert context.request.get(address, headers={"Host": "evil.example"}).status == 400
    policy = context.request.get(address).headers["content-security-policy"]
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    context.close()


def test_programs_use_the_same_projects(server):
    from gradio_client import Client

    client = Client(server[0], verbose=False)
    name = client.predict("a bear in the snow", "", 3, 0, api_name="/write")
    assert name in client.predict(api_name="/list_projects")
    client.predict(name, 1, {"caption": "A bear."}, api_name="/change_panel")
    assert "A bear." in client.predict(name, api_name="/read_script")
    client.predict(name, -1, "", False, api_name="/generate")
    deadline = time.monotonic() + PATIENCE / 1000
    while (state := client.predict(name, api_name="/status"))["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert state["state"] == "done"
    assert (server[1] / name / "page.png").exists()
    with pytest.raises(Exception, match="no name of a project"):
        client.predict("../x", api_name="/read_script")
