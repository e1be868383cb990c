"""SHA-256 of files, and SHA256SUMS of a folder as `sha256sum --check` reads it."""

import hashlib
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically

CHECKSUMS = "SHA256SUMS"


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
