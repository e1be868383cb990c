"""The content security policy of pages: what a browser would run."""

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser

from storydiffusion.output.html_page import csp_hash


def check_policy(html: str) -> dict[str, list[str]]:
    """Check that a page's policy allows its own scripts and styles and no others, and return its directives."""
    found = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    assert len(found) == 1
    assert html.index(found[0]) < min(html.index(tag) for tag in ("<title>", "<style>", "<body>"))
    policy = {name: sources for name, *sources in (part.split() for part in unescape(found[0]).split(";"))}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        sources = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert policy.get(directive, []) == [compute_hash(source) for source in sources]
    assert not [name for name in find_attributes(html) if name == "style" or name.startswith("on")]
    assert not any("unsafe" in source for sources in policy.values() for source in sources)
    return policy


def find_attributes(html: str) -> list[str]:
    """Return the names of the attributes of all elements, as a parser of HTML reads them."""
    found: list[str] = []

    class Attributes(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(name for name, _ in attrs)

    Attributes().feed(html)
    return found


def compute_hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def test_hashes_are_those_of_the_standard():
    """The example in the standard, CSP level 3, section 2.3.1's grammar: of `alert('Hello, world.');`."""
    assert csp_hash("alert('Hello, world.');") == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
