"""Build a blind pairwise preference study: study.html for the participants, key.json for the experimenter.

Each method is a folder of items of the same names: run folders, images, folders of images, or videos. Pairs of methods,
questions and the sides A and B are balanced over participants; the participant's code determines the selection and its
order. `storydiffusion user-study --help` describes the settings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from storydiffusion.config.loading import check_choice, check_range
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.output.manifest import read_manifest

if TYPE_CHECKING:
    from storydiffusion.user_study.page import Kind, StudyItem

KINDS = ("images", "video")
QUESTIONS = {
    "overall": "Which one do you prefer overall?",
    "character": "In which one do the characters keep their looks better?",
    "text": "Which one fits the text better?",
    "smooth": "Which one moves more smoothly?",
    "natural": "Which one looks more natural?",
}
VIDEO_QUESTIONS = ("smooth", "natural")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm")


@dataclass
class UserStudyConfig:
    """The command's settings."""

    methods: dict[str, str]
    media: str
    questions: list[str]
    per_person: int
    title: str | None
    out: str
    largest_side: int
    limit_mb: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("media", self.media, KINDS)
        check_range("per_person", self.per_person, 1, 10_000)
        check_range("largest_side", self.largest_side, 16, 16_384)
        check_range("limit_mb", self.limit_mb, 1, 2_000)
        if len(self.methods) < 2:
            raise UserError(f"{len(self.methods)} methods cannot be compared: give at least two, methods.NAME=FOLDER")
        if not self.questions or len(set(self.questions)) < len(self.questions):
            raise UserError(f"questions={self.questions} must hold one or more, each once")
        for question in self.questions:
            if question not in QUESTIONS and not question.endswith("?"):
                raise UserError(
                    f"questions: {question!r} is unknown: choose from {', '.join(QUESTIONS)}, or write your own, "
                    "ending with a question mark"
                )
            if question in VIDEO_QUESTIONS and self.media != "video":
                raise UserError(f"questions: {question!r} applies to videos only: add media=video")


def user_study(config: UserStudyConfig) -> None:
    """Collect the methods' outputs and write the page and its key."""
    from storydiffusion.user_study.files import load_key, save_key
    from storydiffusion.user_study.page import study_page

    folders = {method: Path(folder) for method, folder in config.methods.items()}
    items = find_items(folders, cast("Kind", config.media))
    if "text" in config.questions and (textless := [item.name for item in items if not item.text]):
        raise UserError(
            f"the question 'text' needs a text, but {textless[0]!r} has none: write it to {textless[0]}.txt"
        )
    questions = {question: QUESTIONS.get(question, question) for question in config.questions}
    page = study_page(
        items, cast("Kind", config.media), questions, config.per_person, config.title, config.largest_side, config.seed
    )
    html = page.html.encode()
    if len(html) > config.limit_mb * 1e6:
        smaller = "a smaller largest_side" if config.media == "images" else "shorter videos"
        raise UserError(
            f"the page would be {len(html) / 1e6:.0f} MB, more than limit_mb={config.limit_mb}: give fewer items, "
            f"{smaller}, or a higher limit"
        )
    out = Path(config.out)
    if (out / "key.json").exists() and load_key(out / "key.json").study != page.key.study:
        raise UserError(f"{out} holds the key of another study, which its answers need: choose another out")
    save_key(page.key, out / "key.json")
    write_atomically(out / "study.html", html)
    asked, total = min(config.per_person, len(page.key.comparisons)), len(page.key.comparisons)
    print(f"{out / 'study.html'}: {len(html) / 1e6:.1f} MB, {asked} of {total} comparisons per participant")
    print(f"{out / 'key.json'}: keep it, and do not show it to participants")


def find_items(folders: Mapping[str, Path], kind: "Kind") -> list["StudyItem"]:
    """Return the items of all methods by name. Raises UserError where the methods have different items."""
    from storydiffusion.user_study.page import StudyItem

    found = {method: named_items(folder) for method, folder in folders.items()}
    methods = list(folders)
    names = set().union(*found.values())
    for method, (name, others) in ((m, (n, found)) for m in methods for n in sorted(names) if n not in found[m]):
        owner = next(other for other in methods if name in others[other])
        raise UserError(f"{folders[method]} has no {name!r}, but {folders[owner]} has: give all methods the same items")
    items = []
    for name in sorted(names):
        media = {method: find_media(found[method][name], kind) for method in methods}
        counts = {method: len(files) for method, files in media.items()}
        if other := [method for method in methods if counts[method] != counts[methods[0]]]:
            first, second = methods[0], other[0]
            raise UserError(
                f"{found[first][name]} and {found[second][name]} have {counts[first]} and {counts[second]} images: "
                "compare equal numbers"
            )
        items.append(StudyItem(name, read_prompts([found[method][name] for method in methods]), media))
    return items


def named_items(folder: Path) -> dict[str, Path]:
    """Map names to run folders, image folders, images or videos. Raises UserError for none or a duplicate name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give each method the folder of its outputs")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_item = path.is_dir() or path.suffix.lower() in IMAGES + VIDEOS
        if path.name.startswith(".") or not is_item:
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise UserError(f"{found[name]} and {path} have the same name: keep one of them")
        found[name] = path
    if not found:
        raise UserError(
            f"{folder} contains no run folders, images or videos: give each method the folder of its outputs"
        )
    return found


def find_media(path: Path, kind: "Kind") -> tuple[Path, ...]:
    """Return an item's images in order, or its one video. Raises UserError where it has none."""
    suffixes = IMAGES if kind == "images" else VIDEOS
    if path.is_file() and path.suffix.lower() in suffixes:
        return (path,)
    if (path / "manifest.json").is_file():
        manifest = read_manifest(path / "manifest.json")
        if kind == "images" and manifest.panels:
            return tuple(path / panel.file for panel in manifest.panels)
        if kind == "video" and manifest.video is not None and manifest.complete:
            return (path / manifest.video.file,)
    elif path.is_dir() and kind == "images":
        files = [file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")]
        if files:
            return tuple(sorted(files, key=lambda file: (number_key(file.stem), file.name)))
    raise UserError(f"{path} has no {kind}: generate it, or remove the item")


def number_key(name: str) -> list[int]:
    """Return the numbers in a name as a sort key, so that 10 comes after 9."""
    return [int(digits) for digits in re.findall(r"\d+", name)]


def read_prompts(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the prompts that all methods share, () where none is recorded. Raises UserError where they differ."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        beside = path.with_name(f"{path.stem if path.is_file() else path.name}.txt")
        if (path / "manifest.json").is_file():
            lines = tuple(panel.prompt for panel in read_manifest(path / "manifest.json").panels)
        elif beside.is_file():
            lines = tuple(line.strip() for line in beside.read_text(encoding="utf-8").splitlines())
        else:
            continue
        if any(lines):
            found.setdefault(lines, path)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise UserError(f"{first} and {second} have different prompts: compare outputs of the same prompts")
    return next(iter(found), ())
