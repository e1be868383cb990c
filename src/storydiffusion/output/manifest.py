"""manifest.json: everything needed to reproduce a run folder."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.files.json_file import build, read_object

FORMAT = 2
PAGE, REPORT = "page.png", "report.html"
PACKAGES = ("storydiffusion", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")
ORIGINS = ("pretrained", "miniature", "random")


@dataclass(frozen=True)
class PanelRecord:
    """One generated panel: `file` relative to the run folder, its inputs and its checksum.

    `key` is a digest of all that the image depends on, '' where it is not recorded: an edited story keeps images by it.
    `says` is the text of the panel's speech balloon, '' for none.
    """

    file: str
    prompt: str
    negative_prompt: str
    caption: str
    seed: int
    sha256: str
    key: str = ""
    says: str = ""


@dataclass(frozen=True)
class TakeRecord:
    """One image of a panel, chosen or not; `file`, inputs and checksum are as in `PanelRecord`.

    `panel` counts from 0, `number` is 0 for the panel's first image. `characters` are those of its prompt, and `reads`
    the number of the take that it read of each panel.
    """

    panel: int
    number: int
    file: str
    prompt: str
    negative_prompt: str
    seed: int
    sha256: str
    characters: tuple[str, ...] = ()
    reads: tuple[int, ...] = ()

    def seen_with(self, characters: Iterable[str], reads: Iterable[int]) -> "TakeRecord":
        """Return the record with its characters and what it reads."""
        return replace(self, characters=tuple(characters), reads=tuple(reads))


@dataclass(frozen=True)
class VideoRecord:
    """The story's video: `file` relative to the run folder, its settings and its checksum.

    `settings` are plain data; `weights` map the weight files that only the video uses to SHA-256.
    """

    file: str
    settings: dict[str, Any]
    weights: dict[str, str]
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """How a story was generated.

    `config` is the full configuration as plain data; `versions` maps packages to versions, `weights` weight files to
    SHA-256, `seconds` stages to wall time. `origin` is the kind of weights: 'pretrained', 'miniature' (trained on drawn
    images only) or 'random' (untrained). `panels` is empty until they are generated, `video` is None for runs without
    video, `results` maps every file of the run to SHA-256, and `complete` means that the run is finished. `earlier` are
    the panels of the story before an edit, until those of the edited story are made. `takes` are the images of panels
    that have more than one.
    """

    title: str
    model: str
    origin: str
    config: dict[str, Any]
    panels: tuple[PanelRecord, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    video: VideoRecord | None = None
    complete: bool = False
    results: dict[str, str] = field(default_factory=dict)
    earlier: tuple[PanelRecord, ...] = ()
    takes: tuple[TakeRecord, ...] = ()

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, not '{self.origin}'")

    @property
    def stated_results(self) -> dict[str, str]:
        """The files that the run folder must contain, with their SHA-256; '' where it is not recorded."""
        stated = {panel.file: panel.sha256 for panel in self.panels}
        if self.complete and not self.results:  # written before manifests had this field
            stated |= {PAGE: "", REPORT: ""}
        if self.complete and self.video is not None:
            stated[self.video.file] = self.video.sha256
        return stated | self.results


def find_damage(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return the results that a run folder does not contain as its manifest states them: file → what is wrong."""
    damage = {}
    for file, sha256 in manifest.stated_results.items():
        try:
            found = compute_sha256(folder / file)
        except FileNotFoundError:
            damage[file] = "is missing"
        except OSError as error:
            damage[file] = f"cannot be read ({(error.strerror or str(error)).lower()})"
        else:
            if sha256 and found != sha256:
                damage[file] = "has changed"
    return damage


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the installed packages, without importing them."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write manifest.json atomically. Raises UserError where the place cannot be written."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest. Raises UserError for a file that is missing, damaged or of another format."""
    remedy = "remove it or choose another run folder"
    try:
        data = read_object(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    if data.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a manifest of format {FORMAT}: {remedy}")
    try:
        required = [each.name for each in fields(Manifest) if each.name not in ("results", "earlier", "takes")]
        if missing := [name for name in required if name not in data]:
            raise ValueError(f"{missing[0]} is missing")
        manifest = build(Manifest, data)
        files = [*manifest.stated_results, *(each.file for each in (*manifest.earlier, *manifest.takes))]
        for file in [*files, *([manifest.video.file] if manifest.video else [])]:
            _check_inside(file)
        return manifest
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def _check_inside(file: str) -> None:
    """Check that `file` lies in the run folder, since reports and studies embed it."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not path.name or not file.isprintable():
        raise ValueError(f"the file {file!r} does not lie in the run folder")
