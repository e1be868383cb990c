"""Captions are legible: tesseract reads them back from the page, in every script of the bundled fonts."""

import json
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storydiffusion import commands
from storydiffusion.output.drawing import Line, rasterize
from storydiffusion.output.manifest import read_manifest
from storydiffusion.output.page import PagePanel, comic_page, compose_page
from storydiffusion.output.page_settings import DEFAULT_PAGE, LAYOUTS
from tests.conftest import SMALL

CAPTIONS = (
    "Pip had a letter. It said to come and find the bear.",
    "Far away, somebody practised looking easy to find.",
    "Over the hill she went, with cold toes and a warm letter in her pocket, and she did not look back even once.",
    "Bruno waited. He was rather good at waiting.",
    "There he was, under the old tree.",
    "You took your time, said Bruno, and could not stop hopping.",
)
SPEECH = "Here is your letter!"
LEAST = 0.99  # share of words, or of characters
TEXTS = {
    "eng": ("Pip had a letter. It said to come and find the bear.",
            "Over the hill she went, with cold toes and a warm letter in her pocket.", SPEECH),
    "rus": ("У Пип было письмо. В нём говорилось: приходи и найди медведя.",
            "Она шла через холм с тёплым письмом в кармане и ни разу не оглянулась.", "Вот твоё письмо!"),
    "ell": ("Η Πιπ είχε ένα γράμμα. Έλεγε να έρθει και να βρει την αρκούδα.",
            "Πέρασε πάνω από τον λόφο με ένα ζεστό γράμμα στην τσέπη της.", "Ορίστε το γράμμα σου!"),
    "kor": ("고양이는 편지를 받았습니다. 곰을 찾아오라는 편지였습니다.",
            "고양이는 따뜻한 편지를 주머니에 넣고 언덕을 넘어갔습니다.", "여기 편지가 있어요!"),
    "jpn": ("ねこは手紙を受け取りました。くまを探しに来てくださいと書いてありました。",
            "ねこは温かい手紙をポケットに入れて、丘を越えて行きました。", "手紙をどうぞ！"),
    "chi_sim": ("小猫收到一封信，信上说请你来找小熊。",
                "小猫把温暖的信放进口袋，翻过山坡，一次也没有回头。", "小熊，这是你的信！"),
}  # fmt: skip
"""tesseract's name of a language → two captions and what is said in the second panel"""
WITHOUT_SPACES = ("jpn", "chi_sim")
LEAST_OF = {"chi_sim": 0.94}
"""lower bounds: at any size tesseract takes 熊, which is as plain as the others, for 态"""


def read_words(image: Image.Image, scratch: Path, language: str = "eng", mode: int = 11) -> list[str]:
    """Return the words, or characters, that tesseract finds; mode 11 looks anywhere, 6 reads one block of lines."""
    image.save(scratch / "page.png")
    command = ["tesseract", str(scratch / "page.png"), "-", "-l", language, "--psm", str(mode)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    return split(found, language)


def split(text: str, language: str) -> list[str]:
    """Return words, or characters where there are no spaces between words."""
    plain = unicodedata.normalize("NFKC", text).lower()  # tesseract writes the micro sign for the Greek letter
    return re.findall(r"[^\W_]" if language in WITHOUT_SPACES else r"[^\W_]+", plain)  # _ is an edge of a balloon


def find_missing(expected: Sequence[str], found: list[str]) -> list[str]:
    """Return the words that were not found as often as they are expected."""
    return [word for word in expected if word not in found or found.remove(word)]


def crop_lines(page: Image.Image, lines: Sequence[Line]) -> Image.Image:
    """Return the page's pixels of some lines, below each other and enlarged to the size that tesseract reads best.

    Left to itself, tesseract finds lines of Chinese and Japanese in pictures and frames, and overlooks balloons.
    """
    space, crops = 24, []
    for line in lines:
        size = line.lettering.size
        right = line.x + line.lettering.width(line.text)
        crops.append(
            page.crop(
                (
                    int(line.x - size / 3),
                    int(line.baseline - size),
                    int(right + size / 3),
                    int(line.baseline + size / 3.5),
                )
            )
        )
    width, height = max(crop.width for crop in crops) + 2 * space, sum(crop.height + space for crop in crops) + space
    column, top = Image.new("RGB", (width, height), "white"), space
    for crop in crops:
        column.paste(crop, (space, top))
        top += crop.height + space
    return column.resize((width * 3 // 2, height * 3 // 2), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_captions_title_and_speech_are_read_back(layout: str, tmp_path: Path):
    if shutil.which("tesseract") is None:
        pytest.skip("tesseract is not installed")
    images = [Image.new("RGB", (128, 128), (60 + 20 * number, 150, 190)) for number in range(len(CAPTIONS))]
    says = [SPEECH, "", "", "", "", ""]
    page = comic_page(images, CAPTIONS, "A cat and a bear", says=says, settings=replace(DEFAULT_PAGE, layout=layout))
    expected = re.findall(r"\w+", " ".join([*CAPTIONS, SPEECH, "A cat and a bear"]).lower())
    found = read_words(page, tmp_path)
    missing = find_missing(expected, found)
    assert len(missing) <= (1 - LEAST) * len(expected), missing


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a story with two panels in each language, the images of which are noise."""
    folder = tmp_path_factory.mktemp("languages")
    panels = []
    for first, second, says in TEXTS.values():
        panels += [
            {"prompt": "[Pip] runs", "caption": first},
            {"prompt": "[Pip] runs", "caption": second, "says": says},
        ]
    story = {"title": "A cat and a bear", "characters": {"Pip": "a red cat"}, "panels": panels}
    (folder / "story.yaml").write_text(json.dumps(story))
    given = [f"story={folder}/story.yaml", f"model.path={tiny_model}", *SMALL, "steps=2", f"run_dir={folder}/run"]
    commands.run_verb("infer", given, "infer.py")
    return folder / "run"


@pytest.mark.parametrize("language", TEXTS)
def test_every_script_is_read_back_from_the_page_of_a_run(run: Path, language: str, tmp_path: Path):
    if shutil.which("tesseract") is None:
        pytest.skip("tesseract is not installed")
    languages = subprocess.run(["tesseract", "--list-langs"], check=True, capture_output=True, text=True).stdout
    if language not in languages.split():
        pytest.skip(f"tesseract has no {language}")
    manifest = read_manifest(run / "manifest.json")
    panels = [PagePanel(Image.open(run / each.file), each.caption, each.says) for each in manifest.panels]
    drawing, page = compose_page(panels, manifest.title, (), DEFAULT_PAGE), Image.open(run / "page.png")
    assert np.array_equal(rasterize(drawing), page)  # so the lines are where the drawing says
    letters = "".join("".join(text.split()) for text in TEXTS[language])
    lines = [each for each in drawing.elements if isinstance(each, Line) and "".join(each.text.split()) in letters]
    assert sum(len("".join(line.text.split())) for line in lines) == len(letters)
    expected = split(" ".join(line.text for line in lines), language)
    missing = find_missing(expected, read_words(crop_lines(page, lines), tmp_path, language, mode=6))
    assert len(missing) <= (1 - LEAST_OF.get(language, LEAST)) * len(expected), missing
