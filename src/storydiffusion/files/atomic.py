"""Atomic file writes: a temporary file, then a rename."""

import os
from io import BytesIO
from pathlib import Path

from PIL import Image

from storydiffusion.errors import UserError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` and create its folder if missing; an existing file is replaced only by a complete one.

    Raises UserError where writing fails (permissions, disk full, …) and leaves no partial file.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder, so that the move is atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path}: {reason}; make room there or choose another folder") from error


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
