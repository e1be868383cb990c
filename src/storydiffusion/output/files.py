"""Atomic file writes (temporary file, then rename) and checksums."""

import hashlib
import os
from io import BytesIO
from pathlib import Path

from PIL import Image

from storydiffusion.errors import UserError

CHECKSUMS = "SHA256SUMS"


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


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compute_folder_sha256(folder: str | Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """Map the path (relative, with `/`) of every matching file under `folder` to its SHA-256, sorted."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): compute_sha256(path) for path in files}


def write_checksums(folder: str | Path) -> None:
    """Write `folder`/SHA256SUMS for all files under it, in the format of `sha256sum --check`."""
    folder = Path(folder)
    lines = [f"{digest}  {name}\n" for name, digest in compute_folder_sha256(folder, "*").items() if name != CHECKSUMS]
    write_atomically(folder / CHECKSUMS, "".join(lines).encode())


def check_checksums(folder: str | Path, part: str = "") -> None:
    """Verify `folder`, or its subfolder `part`, against its SHA256SUMS.

    Raises:
        UserError: no SHA256SUMS, or a file that is missing, has changed, or is not listed.
    """
    folder = Path(folder)
    prefix = f"{part}/" if part else ""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a release (no readable {CHECKSUMS}): give a released folder") from error
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name.startswith(prefix)}
    found = {prefix + name: digest for name, digest in compute_folder_sha256(folder / part, "*").items()}
    found.pop(CHECKSUMS, None)
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) != found.get(name):
            problem = "is missing" if name not in found else "was added" if name not in stated else "has changed"
            raise UserError(
                f"{folder / name} {problem} since {folder / CHECKSUMS} was written: download the release again"
            )
