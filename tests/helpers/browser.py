"""Chromium, and what a page does in it."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync")  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE = 1000 * int(os.environ.get("BROWSER_SECONDS", "100"))  # milliseconds; more of them on a busy machine
MADE = """() => [...document.querySelectorAll("*")]
  .filter((each) => each.matches("img[src='x'], svg[onload], [autofocus]")
    || [...each.attributes].some(({ name }) => name.startsWith("on")))
  .map((each) => each.outerHTML.slice(0, 200))"""
"""the elements that `tests.output.test_report.HOSTILE` would become"""


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a Chromium of Playwright, whose event loop ends with it; skip the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        yield browser
        browser.close()


class Visit:
    """A page in a profile of its own.

    Attributes:
        errors: errors of scripts, and dialogs, such as those of an injected `alert`.
        violations: what the content security policy has blocked.
        requests: every address that was asked for.
    """

    def __init__(self, browser: Any, size: str = "desktop") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.set_default_navigation_timeout(PATIENCE)
        self.errors: list[str] = []
        self.violations: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._note)
        self.size = size

    def _note(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.violations.append(message.text)

    @property
    def is_wider_than_the_window(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")

    def wait_until(self, expression: str) -> None:
        """Wait until an expression holds; unlike Playwright, evaluate it where the page's policy has no say."""
        deadline = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never: {expression}"
            self.page.wait_for_timeout(50)

    def check_harmless(self) -> None:
        """Check that no hostile text has run or become an element."""
        assert self.errors == []
        assert self.page.evaluate(MADE) == []

    def find_outside(self, selector: str) -> list[str]:
        """Return the elements that are not wholly inside the window, none of which may be missing."""
        assert self.page.locator(selector).count()
        return self.page.evaluate(
            """(selector) => [...document.querySelectorAll(selector)].filter((each) => {
              const { top, left, bottom, right, width, height } = each.getBoundingClientRect();
              const inside = top >= 0 && left >= 0 && bottom <= innerHeight + 0.5 && right <= innerWidth + 0.5;
              return !(inside && width && height);
            }).map((each) => `${each.tagName} ${JSON.stringify(each.getBoundingClientRect())}`)""",
            selector,
        )
