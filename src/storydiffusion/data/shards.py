"""The contract of a shard: a plain tar of KEY.mp4, KEY.txt and KEY.json, in WebDataset's layout, and how it is read.

Members of other names are not touched, nothing is unpickled, and paths are local files. A manifest.json beside the
shards, where there is one, tells how many samples each must hold: a tar alone cannot show that its end is missing.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from storydiffusion.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
VIDEO, CAPTION, RECORD = "mp4", "txt", "json"
ENDINGS = (f".{VIDEO}", f".{CAPTION}", f".{RECORD}")
MEMBER = re.compile(rf"([A-Za-z0-9_-]+)\.({VIDEO}|{CAPTION}|{RECORD})")


@dataclass(frozen=True)
class ShardRecord:
    """One shard of a manifest: file name, samples in it, size in bytes and SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """A folder of shards: what they were made from, and each of them. `complete` tells that all are there."""

    source: dict[str, Any]
    complete: bool = False
    samples: int = 0
    rejected: int = 0
    shards: tuple[ShardRecord, ...] = field(default=())


class Member(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """One key of a shard and its members by extension; a complete sample has `mp4` and `txt`."""

    key: str
    members: dict[str, Member]


def manifest_text(manifest: ShardManifest) -> str:
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> ShardManifest | None:
    """The manifest of a folder of shards, None where it has none.

    Raises UserError for one that is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        return ShardManifest(**{**data, "shards": tuple(ShardRecord(**shard) for shard in data["shards"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a manifest of shards ({error}): make the shards again") from error


def find_shards(patterns: str | Sequence[str]) -> list[Path]:
    """The shards that folders, files and brace patterns name: `shards`, `a/{000000..000099}.tar`, or a list of such.

    A folder means the shards of its manifest, or its *.tar where it has none, sorted.

    Raises:
        UserError: for a command or a remote address, a file that is not there, or no shard at all.
    """
    import braceexpand

    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    paths: list[Path] = []
    for pattern in patterns:
        if pattern.strip().lower().startswith("pipe:") or "://" in pattern or "|" in pattern:
            raise UserError(f"shards={pattern} is no local path: shards are read from files only, so copy them here")
        try:
            paths += [found for path in braceexpand.braceexpand(pattern) for found in _expand(Path(path))]
        except ValueError as error:  # braces that do not match
            raise UserError(f"shards={pattern} cannot be expanded: {error}") from error
    if not paths:
        raise UserError(
            f"no shards match {', '.join(patterns) or 'an empty list'}: name a folder of .tar files or files"
        )
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"no shards match {missing[0]}: there is no such file")
    if len(set(paths)) < len(paths):
        raise UserError(f"{next(path for path in paths if paths.count(path) > 1)} is named twice among the shards")
    return paths


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    manifest = read_manifest(path)
    if manifest is None:
        return sorted(path.glob("*.tar"))
    if not manifest.complete:
        raise UserError(f"the shards in {path} are not finished: give the command that makes them again")
    return [path / shard.name for shard in manifest.shards]


def count_samples(paths: Iterable[Path]) -> list[int]:
    """Samples in each shard: from the manifest beside it, whose size must fit, else by reading its headers."""
    manifests: dict[Path, dict[str, ShardRecord]] = {}
    counts = []
    for path in paths:
        if path.parent not in manifests:
            manifest = read_manifest(path.parent)
            manifests[path.parent] = {shard.name: shard for shard in manifest.shards} if manifest else {}
        record = manifests[path.parent].get(path.name)
        if record is not None and path.stat().st_size != record.bytes:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, its manifest says {record.bytes:,}: make or copy it again"
            )
        counts.append(record.samples if record is not None else len(index_shard(path)))
    return counts


def index_shard(path: Path) -> list[ShardSample]:
    """The samples of a shard in its order, complete or not, read from the headers alone.

    Raises:
        UserError: for a file that is not a whole, plain tar, and for .mp4, .txt or .json members that are no regular
            files, that stand in it twice, or whose keys hold more than letters, digits, - and _.
    """
    samples: dict[str, ShardSample] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            size = path.stat().st_size
            for member in tar:
                match = MEMBER.fullmatch(member.name)
                if not member.name.endswith(ENDINGS):
                    continue
                if match is None or not member.isreg():
                    raise UserError(
                        f"{path} holds {member.name!r}, an odd name or no file: make it again or leave it out"
                    )
                key, extension = match.groups()
                sample = samples.setdefault(key, ShardSample(key, {}))
                if extension in sample.members:
                    raise UserError(f"{path} holds {member.name} twice: make it again")
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} breaks off inside {member.name}: make or copy it again")
                sample.members[extension] = Member(member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is damaged or not a tar file ({error}): make it again or leave it out") from error
    return list(samples.values())


def read_member(path: Path, member: Member) -> bytes:
    with open(path, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
