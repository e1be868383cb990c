"""What is evaluated: the pictures of stories with their texts, and clips; from run folders or any folder of files.

Everything that can be known to be missing or damaged without decoding it is refused here, before networks are loaded.

Shapes: F frames, H × W pixels.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from storydiffusion.data.video_reader import UnreadableVideoError, Video
from storydiffusion.errors import UserError, first_line
from storydiffusion.evaluation.metrics.clips import Box
from storydiffusion.evaluation.result import FILE
from storydiffusion.output.film_strip import open_strip
from storydiffusion.output.manifest import Manifest, read_manifest
from storydiffusion.story.given_images import read_image

Script = list[tuple[tuple[str, ...], bool]]
"""of each panel the characters, and whether the video cuts to it"""

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO = ".mp4"
LARGEST_CLIP = 4e9  # bytes of decoded frames
ALL = ("all",)
"""the characters of pictures of which nobody says whom they show: all show the same"""


@dataclass(frozen=True)
class Picture:
    """One picture of a story.

    Attributes:
        text: what it should show; None where nobody says.
        characters: whom it shows; none in a landscape.
        box: about the character, where somebody says.
    """

    name: str
    file: Path
    text: str | None
    characters: tuple[str, ...] = ALL
    box: Box | None = None

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return np.asarray(read_image(self.file))


@dataclass(frozen=True)
class Clip:
    """One clip; `ends` reads the two pictures that it should lead from and to, `true` the true clip.

    Each reader returns uint8 (F, H, W, 3), two frames of `ends`; and raises UserError for what it cannot read.
    """

    name: str
    read: Callable[[], np.ndarray]
    ends: Callable[[], np.ndarray] | None = None
    true: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Inputs:
    """Stories, by name, of pictures whose names differ; clips; and what a reader of the figures must know of them.

    `settings` are plain data: what these were made with, as far as it is known. `are_miniature` tells whether all were
    drawn by the miniature.
    """

    stories: dict[str, list[Picture]] = field(default_factory=dict)
    clips: list[Clip] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    are_miniature: bool = False


def inputs_of_runs(folder: Path) -> Inputs:
    """The panels and transitions of a run folder, or of the run folders directly inside `folder`.

    Stories are named by title and seed, so that the same story, told in two ways, is compared with itself.

    Raises:
        UserError: no run folder, an unfinished one, one whose files are missing; or one story twice with one seed.
    """
    runs = (
        [folder]
        if (folder / "manifest.json").exists()
        else sorted(file.parent for file in folder.glob("*/manifest.json"))
    )
    if not runs:
        raise UserError(f"run={folder} is no run folder and holds none: give one that infer.py has written")
    found, places, miniature = Inputs(), {}, []
    for run in runs:
        manifest = read_manifest(run / "manifest.json")
        script = _script(run, manifest)
        if not manifest.complete:
            raise UserError(f"run={run} is not finished: give its command again, then evaluate it")
        story = f"{manifest.title} (seed {manifest.config.get('seed')})"
        if story in places:
            raise UserError(
                f"{places[story]} and {run} tell the same story with the same seed: evaluate them one by one"
            )
        places[story] = run
        found.stories[story] = list(_panels(run, manifest, story, script))
        found.clips.extend(_transitions(run, manifest, story, script, found.remarks))
        found.settings[story] = _settings(manifest)
        miniature.append(manifest.origin == "miniature")
    return replace(found, are_miniature=all(miniature))


def inputs_of_pictures(folder: Path, captions: Path | None, boxes: Path | None) -> Inputs:
    """The pictures directly in `folder`, one story; or those in the folders directly inside it, a story each.

    Their texts are the lines of `captions`, in the order of their names, or those in NAME.txt beside each NAME.png;
    `boxes` is a JSON object, picture → [x0, y0, x1, y1] in pixels, x1 and y1 being the first ones outside.

    Raises:
        UserError: no pictures, texts of only some, a number of captions or a box that does not fit.
    """
    files = {folder.name: _files(folder, PICTURES)}
    if not files[folder.name]:
        inside = sorted(path for path in folder.glob("*/") if not (path / FILE).exists()) if folder.is_dir() else []
        files = {path.name: found for path in inside if (found := _files(path, PICTURES))}
    if not files:
        raise UserError(f"images={folder} holds no pictures ({', '.join(PICTURES)}), nor do folders in it")
    every = [file for found in files.values() for file in found]
    names = [file.relative_to(folder).as_posix() for file in every]
    texts, about = _texts(every, captions), _boxes(boxes, names)
    pictures = {
        file: Picture(name, file, text, box=about.get(name))
        for file, name, text in zip(every, names, texts, strict=True)
    }
    return Inputs({story: [pictures[file] for file in found] for story, found in files.items()})


def inputs_of_videos(folder: Path, reference: Path | None, frames: int | None) -> Inputs:
    """The .mp4 files in `folder`; with `reference`, each with its true clip of the same name there.

    Args:
        frames: the first so many of each; None: all.

    Raises:
        UserError: no videos, one that cannot be opened or is too short or too large, or one without a reference.
    """
    files = _files(folder, (VIDEO,))
    if not files:
        raise UserError(f"videos={folder} holds no {VIDEO} files")
    clips = []
    for file in files:
        true = None if reference is None else reference / file.name
        if true is not None and not true.is_file():
            raise UserError(
                f"reference={reference} has no {file.name}, which videos={folder} has: put the true one there"
            )
        clips.append(Clip(file.stem, _video(file, frames), true=true and _video(true, frames)))
    return Inputs(clips=clips)


def _script(run: Path, manifest: Manifest) -> Script:
    try:
        script = [(tuple(panel["characters"]), bool(panel["cut"])) for panel in manifest.config["script"]["panels"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / 'manifest.json'} does not tell its script: make the story again") from error
    if manifest.complete and len(script) != len(manifest.panels):
        raise UserError(
            f"{run / 'manifest.json'} tells of {len(script)} panels and has {len(manifest.panels)}: make it again"
        )
    return script


def _panels(run: Path, manifest: Manifest, story: str, script: Script) -> Iterator[Picture]:
    given = manifest.config.get("frames") is not None
    for panel, (characters, _) in zip(manifest.panels, script, strict=True):
        file = run / panel.file
        if not file.is_file():
            raise UserError(f"{file} is missing: make the story again with overwrite=true")
        yield Picture(f"{story} {file.stem}", file, panel.prompt or None, ALL if given else characters)


def _transitions(run: Path, manifest: Manifest, story: str, script: Script, remarks: list[str]) -> Iterator[Clip]:
    """From the film strips; where they were removed, the whole video as one clip."""
    if manifest.video is None:
        return
    strips = sorted((run / "transitions").glob("[0-9][0-9][0-9]-[0-9][0-9][0-9].png"))
    count, panels = int(manifest.video.settings["frames"]), {Path(p.file).stem: run / p.file for p in manifest.panels}

    def strip(file: Path) -> Clip:
        start, end = (panels[name] for name in file.stem.split("-"))
        return Clip(
            f"{story} {file.stem}",
            lambda: open_strip(file, count),
            ends=lambda: np.stack([np.asarray(read_image(panel)) for panel in (start, end)]),
        )

    yield from (strip(file) for file in strips)
    if not strips and any(not cut for _, cut in script[1:]):
        remarks.append(
            f"{run} has no film strips: its video counts as one clip, standing panels and captions included."
        )
        yield Clip(f"{story} {manifest.video.file}", _video(run / manifest.video.file, None))


def _settings(manifest: Manifest) -> dict[str, Any]:
    names = ("seed", "steps", "guidance_scale", "csa", "noise")
    return {
        "model": manifest.model,
        "origin": manifest.origin,
        **{name: manifest.config[name] for name in names if name in manifest.config},
        "video": manifest.video and manifest.video.settings,
    }


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder here: name an existing one")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())


def _texts(files: Sequence[Path], captions: Path | None) -> list[str | None]:
    if captions is not None:
        lines = _read(captions, "captions").splitlines()
        if len(lines) != len(files):
            raise UserError(f"captions={captions} has {len(lines)} lines for {len(files)} pictures: write one for each")
        return [line.strip() or None for line in lines]
    beside = [file.with_suffix(".txt") for file in files]
    have = [text for text in beside if text.is_file()]
    if not have:
        return [None] * len(files)
    if len(have) < len(files):
        missing = next(text for text in beside if not text.is_file())
        raise UserError(f"{missing} is missing, while other pictures have such a text: write it, or give captions=FILE")
    return [_read(text, "the text").strip() or None for text in beside]


def _boxes(file: Path | None, names: Sequence[str]) -> dict[str, Box]:
    if file is None:
        return {}
    text = _read(file, "boxes")
    try:
        boxes = json.loads(text)
        found = {name: (int(a), int(b), int(c), int(d)) for name, (a, b, c, d) in boxes.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'boxes={file} cannot be read: write {{"NAME.png": [x0, y0, x1, y1], …}} there') from error
    for name, (x0, y0, x1, y1) in found.items():
        if name not in names:
            raise UserError(f"boxes={file} names {name}, which is no picture in the folder")
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise UserError(f"boxes={file} gives {name} the box {[x0, y0, x1, y1]}: x0 < x1 and y0 < y1, from 0")
    return found


def _read(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {key} {file}: {getattr(error, 'strerror', None) or 'it is no text'}") from error


def _video(file: Path, frames: int | None) -> Callable[[], np.ndarray]:
    """Opens a video, and returns what decodes its first `frames` frames, or all."""

    def opened() -> Video:
        try:
            return Video(file.read_bytes())
        except UnreadableVideoError as error:
            raise UserError(f"{file}: {error}; leave it out, or give another") from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {first_line(error)}") from error

    info = opened().info
    count = info.frames if frames is None else frames
    if count > info.frames:
        raise UserError(f"{file} has {info.frames} frames, not frames={frames}: ask for fewer")
    if count * info.height * info.width * 3 > LARGEST_CLIP:
        raise UserError(f"{file} has {count} frames of {info.width} × {info.height} pixels, too many: take frames=16")

    def read() -> np.ndarray:
        try:
            return opened().read(range(count), "pyav")
        except UnreadableVideoError as error:
            raise UserError(f"{file}: {error}; leave it out, or give another") from error

    return read
