"""manifest.json: everything needed to know how a run folder was made, and to make it again."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any, get_origin, get_type_hints

from storydiffusion.errors import UserError
from storydiffusion.output.files import write_atomically

FORMAT = 2
PACKAGES = ("storydiffusion", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")
ORIGINS = ("pretrained", "miniature", "random")


@dataclass(frozen=True)
class PanelRecord:
    """One picture of the story: `file` relative to the run folder, what it was made from, and its checksum."""

    file: str
    prompt: str
    negative_prompt: str
    caption: str
    seed: int
    sha256: str


@dataclass(frozen=True)
class VideoRecord:
    """The story's video: `file` relative to the run folder, what it was made with, and its checksum.

    `settings` are plain data, `weights` map the files of weights that panels do without to SHA-256.
    """

    file: str
    settings: dict[str, Any]
    weights: dict[str, str]
    sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """How a story was told.

    `config` is the whole configuration as plain data, `versions` maps packages to versions, `weights` files of weights
    to SHA-256, `seconds` stages to wall time. `origin` says what the weights are: 'pretrained', 'miniature' (trained on
    drawn pictures only) or 'random' (untrained). `panels` are there once they are made, `video` where there is one to
    make; `complete` tells that nothing is left to do.
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

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, not '{self.origin}'")


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, without importing them."""
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
    """Read what `write_manifest` wrote. Raises UserError for a file that is missing, damaged or of another format."""
    mend = "remove it or choose another run folder"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise UserError(f"{path} is damaged, it is not JSON: {mend}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a manifest of format {FORMAT}: {mend}")
    try:
        panels = tuple(PanelRecord(**_exact(PanelRecord, panel)) for panel in data["panels"])
        video = data.get("video") and VideoRecord(**_exact(VideoRecord, data["video"]))
        return Manifest(**{**_exact(Manifest, data), "panels": panels, "video": video})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {mend}") from None


def _exact(schema: type, data: dict[str, Any]) -> dict[str, Any]:
    """`data` where each field of `schema` is there with a value of its basic type, and nothing else is."""
    hints = get_type_hints(schema)
    for name, hint in hints.items():
        if name not in data or not isinstance(data[name], _json_types(hint)):
            raise ValueError(f"'{name}' is missing or of a wrong type")
    if unknown := set(data) - set(hints):
        raise ValueError(f"unknown keys {sorted(unknown)}")
    return data


def _json_types(hint: Any) -> tuple[type, ...]:
    """What JSON makes of a field: tuples are lists there, records dictionaries."""
    if hint == VideoRecord | None:
        return (dict, NoneType)
    kind = get_origin(hint) or hint
    return (list,) if kind is tuple else (kind,)
