"""manifest.json: everything needed to reproduce a run folder."""

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
    """One generated panel: `file` relative to the run folder, its inputs and its checksum."""

    file: str
    prompt: str
    negative_prompt: str
    caption: str
    seed: int
    sha256: str


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
    video, and `complete` means that the run is finished.
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
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise UserError(f"{path} is damaged, it is not JSON: {remedy}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a manifest of format {FORMAT}: {remedy}")
    try:
        panels = tuple(PanelRecord(**_exact(PanelRecord, panel)) for panel in data["panels"])
        video = data.get("video") and VideoRecord(**_exact(VideoRecord, data["video"]))
        return Manifest(**{**_exact(Manifest, data), "panels": panels, "video": video})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def _exact(schema: type, data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` if it has exactly the fields of `schema`, with values of their basic types."""
    hints = get_type_hints(schema)
    for name, hint in hints.items():
        if name not in data or not isinstance(data[name], _json_types(hint)):
            raise ValueError(f"'{name}' is missing or of a wrong type")
    if unknown := set(data) - set(hints):
        raise ValueError(f"unknown keys {sorted(unknown)}")
    return data


def _json_types(hint: Any) -> tuple[type, ...]:
    """Return a field's types after JSON decoding: tuples become lists, records dictionaries."""
    if hint == VideoRecord | None:
        return (dict, NoneType)
    kind = get_origin(hint) or hint
    return (list,) if kind is tuple else (kind,)
