"""The page in a real browser: from an idea to a PDF, at the width of a desktop and of a phone."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storydiffusion.output.manifest import read_manifest
from storydiffusion.studio.entries import Entries, read_entries
from storydiffusion.studio.look import Look
from tests.helpers.browser import PATIENCE, SIZES, Visit
from tests.output.test_report import EVIL, HOSTILE
from tests.studio.conftest import run_server

MOST_STEPS = 30
SHOTS = os.environ.get("STUDIO_SCREENSHOTS")
"""a folder for screenshots to look at"""


class User(Visit):
    """Acts on the page and counts the steps."""

    def __init__(self, browser: Any, address: str, size: str) -> None:
        super().__init__(browser, size)
        self.steps = 0
        self.page.goto(address)
        self.page.wait_for_selector("#idea textarea")

    def click(self, selector: str) -> None:
        self.steps += 1
        self.page.click(selector)

    def fill(self, selector: str, text: str) -> None:
        self.steps += 1
        self.page.fill(selector, text)
        self.page.locator(selector).blur()

    def wait(self, text: str, patience: int = PATIENCE) -> None:
        """Wait until the progress says this."""
        self.page.wait_for_selector(f"#progress >> text={text}", timeout=patience)

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=f"{SHOTS}/{self.size}-{name}.png", full_page=True)


@pytest.fixture
def new_user(browser, server) -> Iterator[Any]:
    users = []

    def make(size: str = "desktop", query: str = "") -> User:
        users.append(User(browser, server.address + query, size))
        return users[-1]

    yield make
    for user in users:
        user.context.close()


@pytest.mark.parametrize("size", ["desktop", pytest.param("phone", marks=pytest.mark.slow)])
def test_a_story_from_an_idea_to_a_pdf(new_user, server, size):
    user, runs = new_user(size), server.runs
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
    for width, height in SIZES.values():
        user.page.set_viewport_size({"width": width, "height": height})
        assert not user.is_wider_than_the_window
    assert {url.split("/")[2] for url in user.requests if url.startswith("http")} == {server.address.split("/")[2]}
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
def test_a_job_continues_without_its_page_and_is_cancelled_and_resumed(browser, tmp_path, tiny_model):
    with run_server(tmp_path, tiny_model, "steps=500") as (server, _):
        user = User(browser, server.address, "desktop")
        user.click("#example")
        user.page.wait_for_selector("#panel-4")
        user.click("#generate")
        user.wait("denoising the panels, step")
        user.page.reload()
        user.wait("denoising the panels, step")
        user.click("#cancel")
        user.page.wait_for_selector("#progress .sd-cancelled >> text=/^interrupted after step [0-9]+,/")
        assert user.page.locator("#panel-1 img").count() == 0
        (project,) = server.runs.iterdir()
        assert (project / ".progress.safetensors").exists()
        user.click("#generate")
        user.wait("generated all 4 panels", 5 * PATIENCE)
        user.page.wait_for_selector("#panel-4 img")
        assert not (project / ".progress.safetensors").exists()
        user.context.close()


def test_what_is_entered_outlives_a_reload(new_user, server):
    user = new_user()
    user.fill("#idea textarea", "a bear & a <b>hat</b>")
    user.page.wait_for_function("location.hash")
    user.page.reload()
    user.page.wait_for_function("document.querySelector('#idea textarea')?.value === 'a bear & a <b>hat</b>'")
    user.click("#write")
    user.page.wait_for_selector("#caption-3 textarea")
    project = server.runs / "a-bear-a-b-hat-b"
    user.fill("#seed input", "17")
    user.click("#video input")
    user.click("#page-layout input")
    user.click("[role=option]:has-text('webtoon')")
    user.fill("#idea textarea", "a bear without a hat")
    user.page.wait_for_selector("#changes >> text=Not generated yet")
    deadline = time.monotonic() + PATIENCE / 1000
    entered = Entries(Look(17, "webtoon", False), "a bear without a hat")
    while read_entries(project) != entered:
        assert time.monotonic() < deadline, read_entries(project)
        time.sleep(0.1)
    user.page.reload()
    user.page.wait_for_selector("#caption-3 textarea")
    assert user.page.input_value("#seed input") == "17"
    assert user.page.input_value("#page-layout input") == "webtoon"
    assert not user.page.is_checked("#video input")
    assert user.page.input_value("#idea textarea") == "a bear without a hat"
    user.click("#generate")
    user.wait("generated all")
    assert read_manifest(project / "manifest.json").config["seed"] == 17
    assert read_entries(project) == Entries(idea="a bear without a hat")
    assert user.errors == []


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


def test_hostile_texts_are_shown_and_run_nothing(new_user, server):
    name, plain = "".join(each for each in EVIL if each not in "[]"), "".join(HOSTILE[:3])
    story = {
        "title": EVIL,
        "characters": {name: name, "Bo": "a blue fox"},
        "panels": [
            {"prompt": f"[{name}] runs", "caption": EVIL, "says": plain},
            {"prompt": "[Bo] runs", "caption": ""},
        ],
    }
    user = new_user()
    user.click("button[role=tab]:has-text('Script')")
    user.fill("#script textarea", json.dumps(story))
    user.click("#create")
    user.page.wait_for_selector("#caption-2 textarea")
    user.fill("#character-2 textarea, #character-2 input", f"a fox {name}")
    user.fill("#says-2 textarea, #says-2 input", plain)
    user.fill("#caption-2 textarea", EVIL)
    user.click("#generate")
    user.page.wait_for_selector("#panel-2 img")
    user.wait("generated all")
    user.check_harmless()
    assert user.page.get_attribute("#panel-1 img", "alt") == EVIL
    user.page.reload()
    user.page.wait_for_selector("#panel-2 img")
    for field, text in (("title", EVIL), ("caption-1", EVIL), ("caption-2", EVIL), ("says-2", plain),
                        ("character-1", name), ("character-2", f"a fox {name}")):  # fmt: skip
        assert user.page.input_value(f"#{field} textarea, #{field} input") == text
    user.fill("#prompt-2 textarea", f"[{plain}] runs")  # an error names it
    user.page.wait_for_selector("text=names the undefined character")
    user.shoot("hostile")
    user.check_harmless()
    (report,) = (each.get_attribute("href") for each in user.page.locator("#results a:has-text('Report')").all())
    user.page.goto(server.address.rstrip("/") + report)
    assert user.page.inner_text("h1") == EVIL
    assert user.errors == []
    assert user.violations == []


def test_programs_use_the_same_projects(server):
    from gradio_client import Client

    client = Client(server.address, verbose=False)
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
    assert (server.runs / name / "page.png").exists()
    with pytest.raises(Exception, match="not the name of a project"):
        client.predict("../x", api_name="/read_script")
