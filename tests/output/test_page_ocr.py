"""Captions are legible: tesseract reads them back from the page."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from storydiffusion.output.page import comic_page
from storydiffusion.output.page_settings import DEFAULT_PAGE, LAYOUTS

CAPTIONS = (
    "Pip had a letter. It said to come and find the bear.",
    "Far away, somebody practised looking easy to find.",
    "Over the hill she went, with cold toes and a warm letter in her pocket, and she did not look back even once.",
    "Bruno waited. He was rather good at waiting.",
    "There he was, under the old tree.",
    "You took your time, said Bruno, and could not stop hopping.",
)
SPEECH = "Here is your letter!"
LEAST = 0.99  # share of words


def read_words(image: Image.Image, scratch: Path) -> list[str]:
    """Return the words that tesseract finds anywhere on an image."""
    image.save(scratch / "page.png")
    command = ["tesseract", str(scratch / "page.png"), "-", "-l", "eng", "--psm", "11"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    return re.findall(r"\w+", found.lower())


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_captions_title_and_speech_are_read_back(layout: str, tmp_path: Path):
    if shutil.which("tesseract") is None:
        pytest.skip("tesseract is not installed")
    images = [Image.new("RGB", (128, 128), (60 + 20 * number, 150, 190)) for number in range(len(CAPTIONS))]
    says = [SPEECH, "", "", "", "", ""]
    page = comic_page(images, CAPTIONS, "A cat and a bear", says=says, settings=replace(DEFAULT_PAGE, layout=layout))
    expected = re.findall(r"\w+", " ".join([*CAPTIONS, SPEECH, "A cat and a bear"]).lower())
    found = read_words(page, tmp_path)
    missing = [word for word in expected if word not in found or found.remove(word)]
    assert len(missing) <= (1 - LEAST) * len(expected), missing
