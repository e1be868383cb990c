"""The contract of a shard, a plain tar of KEY.mp4, KEY.txt and KEY.json in WebDataset's layout, and finding shards.

Two records may exist beside shards: manifest.json, written by the command that made them, and the index used for
reading (`shard_index.py`). A shard named by either belongs to the data even if its file is missing.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.bounded_text import read_text
from storydiffusion.files.json_file import LARGEST, build, parse_object, read_object

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index"  # folder beside the shards
SUMMARY = "shards.json"  # in INDEX
VIDEO, CAPTION, RECORD = EXTENSIONS = ("mp4", "txt", "json")
UNSAFE_NAME = re.compile(r"[\x00-\x1f\x7f/\\|]|://|^pipe:|^\.", re.IGNORECASE)
"""File names of shards that other tools may execute."""


@dataclass(frozen=True)
class ShardRecord:
    """One shard of a manifest: file name, samples in it, size in bytes and SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """A folder of shards: their source, and an entry for each. `complete`: all have been written."""

    source: dict[str, Any]
    complete: bool = False
    samples: int = 0
    rejected: int = 0
    shards: tuple[ShardRecord, ...] = field(default=())


@dataclass(frozen=True)
class IndexRecord(ShardRecord):
    """One shard of an index; `rows_crc32` is the checksum of the file with its members' places."""

    rows_crc32: int


@dataclass(frozen=True)
class _Summary:
    shards: tuple[IndexRecord, ...]


def format_manifest(manifest: ShardManifest) -> str:
    """Return the text of manifest.json."""
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> ShardManifest | None:
    """Read the manifest of a folder of shards; return None if it has none.

    Raises UserError if it is damaged or has another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        data = read_object(path)
        if data.pop("format", None) != FORMAT:
            raise ValueError("another format")
        manifest = build(ShardManifest, data)
        for shard in manifest.shards:
            _checked(shard.name)
        return manifest
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a manifest of shards ({error}): write the shards again") from error


def format_summary(records: Sequence[IndexRecord]) -> str:
    """Return the text of an index's summary: a line for each shard, and a checksum of the lines."""
    lines = ",\n".join(json.dumps(vars(record), ensure_ascii=False) for record in records)
    return f'{{"format": {FORMAT}, "sha256": "{_digest(lines)}", "shards": [\n{lines}\n]}}\n'


def _digest(lines: str) -> str:
    return hashlib.sha256(lines.encode()).hexdigest()


def read_summary(folder: Path) -> dict[str, IndexRecord]:
    """Read the index summary of a folder of shards, by file name; empty if there is no index.

    Raises UserError if it is damaged or has another format.
    """
    path = folder / INDEX / SUMMARY
    if not path.exists():
        return {}
    try:
        text = read_text(path, LARGEST)
        data = parse_object(text)
        if data.get("format") != FORMAT:
            raise ValueError("another format")
        if data.get("sha256") != _digest(text.partition("[\n")[2].rpartition("\n]}")[0]):
            raise ValueError("its checksum does not fit")
        records = build(_Summary, {"shards": data.get("shards")}).shards
        return {_checked(record.name): record for record in records}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as an index of shards ({error}): delete {folder / INDEX} and index them again"
        ) from error


def find_shards(patterns: str | Sequence[str]) -> list[Path]:
    """Return the shards named by folders, files and brace patterns: `shards`, `a/{000000..000099}.tar`, or a list.

    A folder gives the shards of its manifest, or without one its *.tar files and those of its index, sorted.

    Raises:
        UserError: a command or a remote address, a file that neither exists nor is in an index, or no shard at all.
    """
    import braceexpand

    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    paths: list[Path] = []
    for pattern in patterns:
        check_local(pattern)
        try:
            expanded = list(braceexpand.braceexpand(pattern))
        except ValueError as error:  # braces that do not match
            raise UserError(f"shards={pattern} cannot be expanded: {error}") from error
        paths += [found for path in expanded for found in _expand(Path(path))]
    if not paths:
        raise UserError(
            f"no shards match {', '.join(patterns) or 'an empty list'}: give a folder of .tar files, or files"
        )
    if unsafe := [path for path in paths if UNSAFE_NAME.search(path.name)]:
        raise UserError(f"the shard {str(unsafe[0])!r} has an unsafe name, which other tools may execute: rename it")
    if len(set(paths)) < len(paths):
        raise UserError(f"{next(path for path in paths if paths.count(path) > 1)} is named twice among the shards")
    missing = [path for path in paths if not path.is_file()]
    indexed = {folder: read_summary(folder) for folder in {path.parent for path in missing}}
    if unknown := [path for path in missing if path.name not in indexed[path.parent]]:
        raise UserError(f"no shards match {unknown[0]}: there is no such file")
    return paths


def check_local(pattern: str) -> None:
    """Raise UserError if a pattern is a command (`pipe:…`) or a remote address."""
    if pattern.strip().lower().startswith("pipe:") or "://" in pattern or "|" in pattern:
        raise UserError(f"shards={pattern} is not a local path: shards are read from local files only; copy them here")


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    manifest = read_manifest(path)
    if manifest is None:
        return sorted({*path.glob("*.tar"), *(path / name for name in read_summary(path))})
    if not manifest.complete:
        raise UserError(f"the shards in {path} are not finished: run the command that writes them again")
    return [path / shard.name for shard in manifest.shards]


def _checked(name: str) -> str:
    if not name or UNSAFE_NAME.search(name):
        raise ValueError(f"{name!r} is not the name of a shard")
    return name
