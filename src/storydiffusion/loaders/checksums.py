"""SHA-256 of weights files, computed once per file.

Digests are cached by path, size and modification time in a JSON file under the user's cache directory
(`$XDG_CACHE_HOME/storydiffusion/checksums.json`), so that a finished run answers without reading gigabytes again.
"""

import contextlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.files.json_file import json_bytes, read_object
from storydiffusion.loaders.sources import HUB_ID, find_part_folder, names_registered_encoder, package_path

SHA256 = re.compile(r"[0-9a-f]{64}")
SETTLED = 2 * 10**9
"""nanoseconds since a file's last change before its digest is cached: a later change has another modification time"""
ON_HUB = ("motion_adapter", "sparse_control")
"""parts that may be given as a hub id"""


def compute_checksums(files: Mapping[str, Path]) -> dict[str, str]:
    """Return name → SHA-256 of files, from the cache where a file has not changed since its digest was computed."""
    place = cache_file()
    known = _read_cache(place)
    digests: dict[str, str] = {}
    fresh: dict[str, list[Any]] = {}
    for name, file in files.items():
        real = file.resolve()
        if real.parent.name == "blobs" and SHA256.fullmatch(real.name):  # the hub's cache names large files so
            digests[name] = real.name
            continue
        status = real.stat()
        key, stamp = str(real), [status.st_size, status.st_mtime_ns]
        entry = known.get(key)
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3 and SHA256.fullmatch(str(entry[2])):
            digests[name] = entry[2]
            continue
        digests[name] = compute_sha256(real)
        if time.time_ns() - status.st_mtime_ns > SETTLED:
            fresh[key] = [*stamp, digests[name]]
    if fresh:
        _write_cache(place, {**known, **fresh})
    return digests


def compute_part_checksums(part: str, source: str) -> dict[str, str]:
    """Return the weights files of a part with their SHA-256; a part on a hub or of open_clip maps to its source.

    Raises:
        UserError: a missing part, as far as can be seen without loading it.
    """
    path = package_path(source)
    if names_registered_encoder(source):
        return {part: source}
    if part == "motion_adapter" and path.is_file():
        return compute_checksums({part: path})
    if part in ON_HUB and HUB_ID.fullmatch(source) and not path.exists():
        return {part: source}
    folder = find_part_folder(source, get_part_key(part))
    files = sorted(file for file in folder.rglob("*.safetensors") if file.is_file())
    if not files:
        raise UserError(f"{get_part_key(part)}={folder} contains no *.safetensors file: name a complete folder")
    return compute_checksums({f"{part}/{file.relative_to(folder).as_posix()}": file for file in files})


def get_part_key(part: str) -> str:
    """Return the setting that names a part of the video model."""
    return f"model.video.{part}.weights" if part == "sparse_control" else f"model.video.{part}"


def cache_file() -> Path:
    """Return the path of the cached digests."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "storydiffusion" / "checksums.json"


def _read_cache(place: Path) -> dict[str, Any]:
    """Return the cached entries, path → [size, mtime_ns, digest]; empty if there is no readable cache."""
    try:
        return read_object(place)
    except (OSError, ValueError):
        return {}


def _write_cache(place: Path, entries: Mapping[str, Any]) -> None:
    """Write the entries of files that still exist. Without a writable cache the next run computes them again."""
    kept = {path: entry for path, entry in entries.items() if os.path.exists(path)}
    with contextlib.suppress(UserError):
        write_atomically(place, json_bytes(kept))
