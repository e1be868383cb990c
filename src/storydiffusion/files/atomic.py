"""Atomic file writes: a draft beside the file, then a rename."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

from storydiffusion.errors import UserError

DRAFT = re.compile(r"\..+\.\d+\.tmp")
"""Names of drafts, which a killed process leaves behind."""


def draft_path(path: Path) -> Path:
    """Return this process's draft of `path`: in the same folder, so that the rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def draft(path: str | Path) -> Iterator[Path]:
    """Yield the path of a draft, which replaces the file `path` when the block ends, and is removed if it fails.

    The folder is created if missing. Raises UserError where the disk fails (permissions, disk full, …).
    """
    path = Path(path)
    temporary = draft_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _explain(path, error) from error


@contextmanager
def draft_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder, whose files replace those of `folder` when the block ends, each atomically.

    Other files of `folder` stay. If the block fails, nothing changes. Raises UserError where the disk fails.
    """
    folder = Path(folder).absolute()
    temporary = draft_path(folder)
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                with draft(folder / file.relative_to(temporary)) as target:
                    os.replace(file, target)
        finally:
            shutil.rmtree(temporary)
    except OSError as error:
        raise _explain(folder, error) from error


def remove_drafts(*folders: Path) -> None:
    """Remove the drafts in these folders, not below them; only their owner may call this.

    Raises UserError where the disk fails.
    """
    for folder in (folder for folder in folders if folder.is_dir()):
        try:
            for path in folder.iterdir():
                if DRAFT.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise _explain(folder, error) from error


def set_aside(file: Path) -> Path:
    """Rename a damaged file from NAME.SUFFIX to NAME.damaged.SUFFIX and return its new path."""
    kept = file.with_name(f"{file.stem}.damaged{file.suffix}")
    try:
        os.replace(file, kept)
    except OSError as error:
        raise _explain(kept, error) from error
    return kept


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` and create its folder if missing; an existing file is replaced only by a complete one.

    Raises UserError where writing fails (permissions, disk full, …) and leaves no partial file.
    """
    with draft(path) as temporary:
        temporary.write_bytes(data)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename into it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_image(path: str | Path, image: Image.Image) -> None:
    """Write an image as PNG, atomically."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _explain(path: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"cannot write {path}: {reason}; make room there or choose another folder")
