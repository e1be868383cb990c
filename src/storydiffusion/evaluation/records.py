"""Measurements that go on: a JSON file with one record a subject, kept up to date after every batch of subjects."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from storydiffusion.errors import UserError
from storydiffusion.output.files import write_atomically

RECORDS = "records.json"
"""the file of a benchmark"""

CharacterReference = TypeVar("CharacterReference")


def measure_all(
    file: Path,
    settings: Mapping[str, Any],
    subjects: Sequence[CharacterReference],
    measure: Callable[[Sequence[CharacterReference]], Sequence[Mapping[str, Any]]],
    batch: int,
    label: str,
    unit: str,
) -> list[dict[str, Any]]:
    """What `measure` makes of the subjects, `batch` at a time: one record each, with the `seconds` that it took.

    What `file` holds already, of the first subjects, is not measured again.

    Raises:
        UserError: where it holds records of other settings.
    """
    from tqdm import tqdm

    content = _stored(file, settings)
    done: list[dict[str, Any]] = content["records"]
    total = len(subjects)
    with tqdm(desc=label, unit=unit, total=total, initial=min(len(done), total)) as bar:
        for first in range(len(done), total, batch):
            part = subjects[first : first + batch]
            clock = time.perf_counter()
            found = measure(part)
            seconds = round((time.perf_counter() - clock) / len(part), 3)
            done += [{**record, "seconds": seconds} for record in found]
            write_atomically(file, json_bytes(content))
            bar.update(len(part))
    return done[:total]


def are_of(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `file` is not there yet, or holds records of these settings."""
    try:
        _stored(file, settings)
    except UserError:
        return False
    return True


def json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _stored(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not file.exists():
        return {"settings": dict(settings), "records": []}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        before, _ = content["settings"], content["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no records: delete it or choose another folder") from error
    if other := [name for name in settings if before.get(name) != settings[name]]:
        raise UserError(
            f"{file} was measured with {other[0]} {before.get(other[0])}, not {settings[other[0]]}: "
            "delete it or choose another folder"
        )
    return content
