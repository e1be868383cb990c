"""Resumable measurements: a JSON file with one record per item, updated after every batch of items."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes, read_object

RECORDS = "records.json"
"""The name of a benchmark's file"""

Item = TypeVar("Item")


def measure_all(
    file: Path,
    settings: Mapping[str, Any],
    items: Sequence[Item],
    measure: Callable[[Sequence[Item]], Sequence[Mapping[str, Any]]],
    batch: int,
    label: str,
    unit: str,
) -> list[dict[str, Any]]:
    """Return one record per item: what `measure` returns for `batch` items at a time, and the `seconds` it took.

    Items whose records `file` already holds are skipped.

    Raises:
        UserError: `file` holds records of other settings.
    """
    from tqdm import tqdm

    content = _load(file, settings)
    done: list[dict[str, Any]] = content["records"]
    total = len(items)
    with tqdm(desc=label, unit=unit, total=total, initial=min(len(done), total)) as bar:
        for first in range(len(done), total, batch):
            part = items[first : first + batch]
            clock = time.perf_counter()
            found = measure(part)
            seconds = round((time.perf_counter() - clock) / len(part), 3)
            done += [{**record, "seconds": seconds} for record in found]
            write_atomically(file, json_bytes(content))
            bar.update(len(part))
    return done[:total]


def can_resume(file: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether `file` is missing or holds records of these settings."""
    try:
        _load(file, settings)
    except UserError:
        return False
    return True


def _load(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not file.exists():
        return {"settings": dict(settings), "records": []}
    try:
        content = read_object(file)
        before, done = content["settings"], content["records"]
        if not isinstance(before, dict) or not isinstance(done, list) or not all(isinstance(one, dict) for one in done):
            raise ValueError("no records")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} holds no records. Delete it or choose another run_dir") from error
    if other := [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"{file} was measured with {other[0]} {before.get(other[0])}, not {settings[other[0]]}. "
            "Pass overwrite=true or choose another run_dir"
        )
    return content
