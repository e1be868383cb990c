"""Find what is evaluated: images of stories with their texts, and clips, in run folders or any folder of files.

Everything that can be found missing or damaged without decoding is refused here, before networks are loaded.

Shapes: F frames, H × W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from storydiffusion.data.video_reader import UnreadableVideoError, Video
from storydiffusion.errors import UserError, first_line
from storydiffusion.evaluation.metrics.clips import Box
from storydiffusion.evaluation.result import FILE
from storydiffusion.files.json_file import parse_object
from storydiffusion.output.film_strip import open_strip
from storydiffusion.output.manifest import Manifest, read_manifest
from storydiffusion.story.given_images import read_image

Script = list[tuple[tuple[str, ...], bool]]
"""For each panel: its characters, and whether the video cuts to it"""

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO = ".mp4"
LARGEST_CLIP = 4e9  # bytes of decoded frames
ALL = ("all",)
"""The characters of images where they are unknown: all images count as showing the same"""


@dataclass(frozen=True)
class StoryImage:
    """One image of a story.

    Attributes:
        text: its prompt or caption; None where unknown.
        characters: their names; none in a landscape.
        box: around the character; None where unknown.
    """

    name: str
    file: Path
    text: str | None
    characters: tuple[str, ...] = ALL
    box: Box | None = None

    def pixels(self) -> np.ndarray:
        """Read the pixels, uint8 (H, W, 3)."""
        return np.asarray(read_image(self.file))


@dataclass(frozen=True)
class Clip:
    """One clip. Each reader returns uint8 (F, H, W, 3) and raises UserError for a file that it cannot read.

    Attributes:
        boundary_frames: reads the two images that the clip should lead from and to, F = 2.
        reference: reads the ground-truth clip.
    """

    name: str
    read: Callable[[], np.ndarray]
    boundary_frames: Callable[[], np.ndarray] | None = None
    reference: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Inputs:
    """What is evaluated.

    Attributes:
        stories: name → images, whose names are unique.
        settings: plain data, the settings of generation where they are known.
        remarks: sentences that a reader of the values must know.
        are_miniature: whether the miniature generated everything.
    """

    stories: dict[str, list[StoryImage]] = field(default_factory=dict)
    clips: list[Clip] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    are_miniature: bool = False


def find_runs(folder: Path) -> Inputs:
    """Find the panels and transitions of a run folder, or of the run folders directly inside `folder`.

    Stories are named by title and seed, so that two evaluations of the same story are compared with each other.

    Raises:
        UserError: there is no run folder, one is unfinished or incomplete, or two hold one story with one seed.
    """
    runs = (
        [folder]
        if (folder / "manifest.json").exists()
        else sorted(file.parent for file in folder.glob("*/manifest.json"))
    )
    if not runs:
        raise UserError(f"run={folder} contains no run folder (no manifest.json). Pass a folder created by infer.py")
    found, places, miniature = Inputs(), {}, []
    for run in runs:
        manifest = read_manifest(run / "manifest.json")
        script = _read_script(run, manifest)
        if not manifest.complete:
            raise UserError(f"run={run} is not finished. Run its command again to resume it, then evaluate it")
        story = f"{manifest.title} (seed {manifest.config.get('seed')})"
        if story in places:
            raise UserError(
                f"{places[story]} and {run} hold the same story with the same seed. Evaluate them one by one"
            )
        places[story] = run
        found.stories[story] = list(_find_panels(run, manifest, story, script))
        found.clips.extend(_find_transitions(run, manifest, story, script, found.remarks))
        found.settings[story] = _get_settings(manifest)
        miniature.append(manifest.origin == "miniature")
    return replace(found, are_miniature=all(miniature))


def find_images(folder: Path, captions: Path | None, boxes: Path | None) -> Inputs:
    """Find the images directly in `folder`, as one story, or those of the folders inside it, as a story each.

    Args:
        captions: one line of text per image, in the order of names; None: NAME.txt beside each NAME.png, if any.
        boxes: a JSON object, image → [x0, y0, x1, y1] in pixels, where x1 and y1 are the first ones outside.

    Raises:
        UserError: there are no images, only some have texts, or captions or boxes do not fit the images.
    """
    files = {folder.name: _list_files(folder, IMAGES)}
    if not files[folder.name]:
        inside = sorted(path for path in folder.glob("*/") if not (path / FILE).exists()) if folder.is_dir() else []
        files = {path.name: found for path in inside if (found := _list_files(path, IMAGES))}
    if not files:
        raise UserError(
            f"images={folder} holds no images ({', '.join(IMAGES)}), nor do folders inside it. Pass another folder"
        )
    every = [file for found in files.values() for file in found]
    names = [file.relative_to(folder).as_posix() for file in every]
    texts, found_boxes = _read_texts(every, captions), _read_boxes(boxes, names)
    images = {
        file: StoryImage(name, file, text, box=found_boxes.get(name))
        for file, name, text in zip(every, names, texts, strict=True)
    }
    return Inputs({story: [images[file] for file in found] for story, found in files.items()})


def find_videos(folder: Path, reference: Path | None, frames: int | None) -> Inputs:
    """Find the .mp4 files in `folder`.

    Args:
        reference: a folder with the ground truth under the same names.
        frames: the number of frames to take from the start of each; None: all.

    Raises:
        UserError: there are no videos, or one cannot be opened, is too short or too large, or has no reference.
    """
    files = _list_files(folder, (VIDEO,))
    if not files:
        raise UserError(f"videos={folder} holds no {VIDEO} files. Pass another folder")
    clips = []
    for file in files:
        true = None if reference is None else reference / file.name
        if true is not None and not true.is_file():
            raise UserError(
                f"reference={reference} has no {file.name}, which videos={folder} has. Put the ground truth there"
            )
        clips.append(Clip(file.stem, _open_video(file, frames), reference=true and _open_video(true, frames)))
    return Inputs(clips=clips)


def _read_script(run: Path, manifest: Manifest) -> Script:
    try:
        script = [(tuple(panel["characters"]), bool(panel["cut"])) for panel in manifest.config["script"]["panels"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / 'manifest.json'} does not contain its script. Generate the story again") from error
    if manifest.complete and len(script) != len(manifest.panels):
        raise UserError(
            f"{run / 'manifest.json'} has a script of {len(script)} panels but {len(manifest.panels)} panels. "
            "Generate the story again"
        )
    return script


def _find_panels(run: Path, manifest: Manifest, story: str, script: Script) -> Iterator[StoryImage]:
    given = manifest.config.get("frames") is not None
    for panel, (characters, _) in zip(manifest.panels, script, strict=True):
        file = run / panel.file
        if not file.is_file():
            raise UserError(f"{file} is missing. Generate the story again with overwrite=true")
        yield StoryImage(f"{story} {file.stem}", file, panel.prompt or None, ALL if given else characters)


def _find_transitions(run: Path, manifest: Manifest, story: str, script: Script, remarks: list[str]) -> Iterator[Clip]:
    """Find the film strips; where they were removed, the whole video counts as one clip."""
    if manifest.video is None:
        return
    strips = sorted((run / "transitions").glob("[0-9][0-9][0-9]-[0-9][0-9][0-9].png"))
    count, panels = int(manifest.video.settings["frames"]), {Path(p.file).stem: run / p.file for p in manifest.panels}

    def strip(file: Path) -> Clip:
        start, end = (panels[name] for name in file.stem.split("-"))
        return Clip(
            f"{story} {file.stem}",
            lambda: open_strip(file, count),
            boundary_frames=lambda: np.stack([np.asarray(read_image(panel)) for panel in (start, end)]),
        )

    yield from (strip(file) for file in strips)
    if not strips and any(not cut for _, cut in script[1:]):
        remarks.append(f"{run} has no film strips: its video counts as one clip, including held panels and captions.")
        yield Clip(f"{story} {manifest.video.file}", _open_video(run / manifest.video.file, None))


def _get_settings(manifest: Manifest) -> dict[str, Any]:
    names = ("seed", "steps", "guidance_scale", "csa", "noise")
    return {
        "model": manifest.model,
        "origin": manifest.origin,
        **{name: manifest.config[name] for name in names if name in manifest.config},
        "video": manifest.video and manifest.video.settings,
    }


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Pass an existing one")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file())


def _read_texts(files: Sequence[Path], captions: Path | None) -> list[str | None]:
    if captions is not None:
        lines = _read(captions, "captions").splitlines()
        if len(lines) != len(files):
            raise UserError(
                f"captions={captions} has {len(lines)} lines for {len(files)} images. Write one line per image"
            )
        return [line.strip() or None for line in lines]
    beside = [file.with_suffix(".txt") for file in files]
    have = [text for text in beside if text.is_file()]
    if not have:
        return [None] * len(files)
    if len(have) < len(files):
        missing = next(text for text in beside if not text.is_file())
        raise UserError(f"{missing} is missing, while other images have such a text. Write it, or pass captions=FILE")
    return [_read(text, "the text").strip() or None for text in beside]


def _read_boxes(file: Path | None, names: Sequence[str]) -> dict[str, Box]:
    if file is None:
        return {}
    text = _read(file, "boxes")
    try:
        found = {name: (int(a), int(b), int(c), int(d)) for name, (a, b, c, d) in parse_object(text).items()}
    except (ValueError, TypeError) as error:
        raise UserError(f'boxes={file} cannot be read. Write {{"NAME.png": [x0, y0, x1, y1], …}} there') from error
    for name, (x0, y0, x1, y1) in found.items():
        if name not in names:
            raise UserError(f"boxes={file} names {name}, which is not an image in the folder. Correct the name")
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise UserError(f"boxes={file} gives {name} the box {[x0, y0, x1, y1]}. Write 0 ≤ x0 < x1 and 0 ≤ y0 < y1")
    return found


def _read(file: Path, key: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {key} {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error


def _open_video(file: Path, frames: int | None) -> Callable[[], np.ndarray]:
    """Open a video, and return a reader of its first `frames` frames; None: all."""

    def open_file() -> Video:
        try:
            return Video(file.read_bytes())
        except UnreadableVideoError as error:
            raise UserError(f"{file}: {error}. Leave it out, or pass another file") from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {first_line(error)}") from error

    info = open_file().info
    count = info.frames if frames is None else frames
    if count > info.frames:
        raise UserError(f"{file} has {info.frames} frames, not frames={frames}. Pass a smaller number")
    if count * info.height * info.width * 3 > LARGEST_CLIP:
        raise UserError(f"{file} has {count} frames of {info.width} × {info.height} pixels, too many. Pass frames=16")

    def read() -> np.ndarray:
        try:
            return open_file().read(range(count), "pyav")
        except UnreadableVideoError as error:
            raise UserError(f"{file}: {error}. Leave it out, or pass another file") from error

    return read
