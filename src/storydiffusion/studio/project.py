"""A project of the studio: a run folder, read without a model.

Its story is story.yaml in the folder, which the studio writes, or else the one that the manifest records; its settings
are those of studio.json, or else of the manifest, or else the studio's.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from storydiffusion.config import InferConfig
from storydiffusion.config.loading import load_plain
from storydiffusion.errors import UserError
from storydiffusion.files.bounded_yaml import parse_yaml
from storydiffusion.files.json_file import build
from storydiffusion.output.manifest import Manifest, PanelRecord, read_manifest
from storydiffusion.story import Story, load_story, panel_prompts, story_from_dict
from storydiffusion.story.saved_characters import find_kept_file
from storydiffusion.studio.entries import FILE, Entries, read_entries
from storydiffusion.studio.look import Look
from storydiffusion.writer.story_file import format_story

STORY = "story.yaml"
MANIFEST = "manifest.json"
NAME = re.compile(r"\w[\w.-]*")
LONGEST_NAME = 60  # characters
LONGEST_SCRIPT = 200_000  # characters
GENERATE_FIRST = "generate the story with storydiffusion infer, which copies the file, and remove story.yaml"
NOT_OF_STORY = ("run_dir", "overwrite", "story", "idea", "text", "emotion", "panels", "language", "retake", "take",
                "extend", "candidates", "exports", "paper", "writer", "script")  # fmt: skip
"""settings of a manifest that say what one command did, and not how the story looks"""


@dataclass(frozen=True)
class Project:
    """A run folder as it is now.

    Attributes:
        config: the settings that `generate_story` takes for it, apart from `look`.
        manifest: None before anything was generated.
    """

    folder: Path
    story: Story
    config: InferConfig
    manifest: Manifest | None
    entries: Entries

    @property
    def look(self) -> Look:
        """The settings that the page shows."""
        return self.entries.look or Look.read(self.config)

    @property
    def script(self) -> str:
        """The story in YAML, as it is in the folder or would be. Raises UserError."""
        return format_story(self.story, self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def records(self) -> list[PanelRecord | None]:
        """The image that each panel of the story shows, None where it has none; see `match_panels`."""
        if self.manifest is None:
            return [None] * len(self.story.panels)
        return match_panels(self.story, self.manifest.panels or self.manifest.earlier)


def find_project(root: Path, name: str) -> Path:
    """Return the folder of a project in `root`.

    Raises:
        UserError: a name that is not valid, such as one with a path, or of no run folder.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise UserError(f"{name[:LONGEST_NAME]!r} is not the name of a project: use letters, digits, - and _")
    folder = root / name
    if not is_project(folder):
        raise UserError(f"{root} contains no project {name}: choose one of the list")
    return folder


def is_project(folder: Path) -> bool:
    """Return whether a folder contains a story."""
    return any((folder / file).is_file() for file in (STORY, MANIFEST))


def list_projects(root: Path) -> list[str]:
    """Return the names of the projects in `root`, the latest first."""
    if not root.is_dir():
        return []
    found = [each for each in root.iterdir() if NAME.fullmatch(each.name) and each.is_dir() and is_project(each)]
    return [each.name for each in sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def free_name(root: Path, words: str) -> str:
    """Return a name from words, such as those of an idea, that no folder in `root` has."""
    stem = "-".join(re.findall(r"[^\W_]+", words.lower()))[: LONGEST_NAME - 8].strip("-") or "story"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 10**6))]
    return next(name for name in names if not (root / name).exists())


def read_project(folder: Path, defaults: InferConfig) -> Project:
    """Read a run folder; what it does not say is as in `defaults`.

    Raises:
        UserError: a damaged file, settings of another version, or a folder that is not a story.
    """
    file = folder / MANIFEST
    manifest = read_manifest(file) if file.exists() else None
    if manifest is not None and manifest.config.get("frames"):
        raise UserError(f"{folder} is a video of given images, without a story to edit: choose another project")
    own = {} if manifest is None else {k: v for k, v in manifest.config.items() if k not in NOT_OF_STORY}
    config = load_config(own, defaults, folder)
    if (folder / STORY).exists():
        story = load_story(folder / STORY)
        if outer := [each for each in story.characters if each.file is not None and not _is_inside(each.file, folder)]:
            raise UserError(f"{folder / STORY} names a file of {outer[0].name} elsewhere: {GENERATE_FIRST}")
    else:
        assert manifest is not None
        story = read_script(manifest, folder)
    return Project(folder, story, config, manifest, _read_entries(folder, config))


def _read_entries(folder: Path, config: InferConfig) -> Entries:
    """Return what is entered. Raises UserError for settings that are none."""
    entries = read_entries(folder)
    try:
        if entries.look is not None:
            entries.look.apply(config)
    except UserError as error:
        raise UserError(f"{folder / FILE} is damaged ({error}): remove it") from error
    return entries


def load_config(own: Mapping[str, Any], defaults: InferConfig, folder: Path) -> InferConfig:
    """Return the settings of a run folder, checked as those of a command line. Raises UserError."""
    base = asdict(defaults) | {"run_dir": str(folder), "story": str(folder / STORY)}
    try:
        return load_plain(InferConfig, _merge(base, own))
    except UserError as error:
        raise UserError(f"{folder} has settings of another version: {error}") from error


def read_script(manifest: Manifest, folder: Path) -> Story:
    """Return the story that a manifest records.

    Raises:
        UserError: a story of another version, or without the files of its saved characters.
    """
    checksums = manifest.config.get("script", {}).get("character_files", {})
    kept = {name: find_kept_file(folder, sha256) for name, sha256 in checksums.items()}
    if missing := [file for file in kept.values() if not file.is_file()]:
        raise UserError(f"{missing[0]} of a saved character is missing: generate the story with storydiffusion infer")
    known = [each.name for each in fields(Story)]
    script = {name: value for name, value in manifest.config.get("script", {}).items() if name in known}
    try:
        story = build(Story, {"title": manifest.title, **script})
        characters = [
            replace(each, file=str(kept[each.name])) if each.name in kept else each for each in story.characters
        ]
        return replace(story, characters=tuple(characters))
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST} has a story of another version ({error}): generate it again") from error


def parse_script(text: str, folder: Path | None = None) -> Story:
    """Return the story of a script in YAML, which may name no files but the character files of its project.

    Args:
        folder: of the project; None: a new one.

    Raises:
        UserError: what `load_story` refuses, or a script that names a file outside the project.
    """
    if len(text) > LONGEST_SCRIPT:
        raise UserError(f"the script has {len(text)} characters: write at most {LONGEST_SCRIPT}")
    data = parse_yaml(text, "the script")
    characters = data.get("characters") if isinstance(data, dict) else None
    described = characters.values() if isinstance(characters, dict) else ()
    if any(isinstance(each, dict) and not _names_own_file(each, folder) for each in described):
        raise UserError("the script names character files, which the studio does not read: use storydiffusion infer")
    story = story_from_dict(data, "the script", folder=folder)
    if any(panel.pose for panel in story.panels):
        raise UserError("the script names pose files, which the studio does not read: use storydiffusion infer")
    return story


def _names_own_file(character: Mapping[str, Any], folder: Path | None) -> bool:
    """Return whether a character of a script names a file that its project keeps."""
    file = character.get("file")
    return folder is not None and isinstance(file, str) and _is_inside(folder / file, folder / "characters")


def _is_inside(file: str | Path, folder: Path) -> bool:
    """Return whether a file lies in a folder, links followed."""
    return Path(file).resolve().is_relative_to(folder.resolve())


def match_panels(story: Story, records: "tuple[PanelRecord, ...]") -> list[PanelRecord | None]:
    """Return the record that each panel shows: of the same prompt, in its place if possible, or that of its place."""
    prompts = [each.prompt for each in panel_prompts(story)]
    found: list[PanelRecord | None] = [None] * len(prompts)
    left = dict(enumerate(records))
    for number, prompt in enumerate(prompts):
        if number in left and left[number].prompt == prompt:
            found[number] = left.pop(number)
    for number, prompt in enumerate(prompts):
        if found[number] is None:
            same = next((place for place, record in left.items() if record.prompt == prompt), None)
            found[number] = left.pop(same) if same is not None else None
    if len(prompts) == len(records):
        for number in range(len(prompts)):
            if found[number] is None and number in left:
                found[number] = left.pop(number)
    return found


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings, where those of `own` replace those of `base`."""
    merged = dict(base)
    for name, value in own.items():
        before = merged.get(name)
        if name == "rate" and isinstance(value, Mapping):  # JSON keeps the numbers of grids as text
            merged[name] = {int(grid): rate for grid, rate in value.items()}
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = _merge(before, value)
        else:
            merged[name] = value
    return merged
