"""Write checkpoints so that a run killed at any moment leaves its newest one intact.

    checkpoints/step-00000040.ckpt   Lightning's checkpoint: a file of tensors and plain data; with DeepSpeed a folder
    checkpoints/step-00000040.json   its manifest: the step, and the size and SHA-256 of every file

Order of writing: draft beside its final path → fsync → read back → rename → fsync of the folder → manifest last. A
checkpoint is valid if its bytes match its manifest or the manifest's draft, so a valid checkpoint stays valid at every
moment of the next save.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.types import _PATH

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import sync_folder
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.files.json_file import build, read_object

SUFFIX = ".ckpt"
NAME = re.compile(r"step-(\d{8,})")
TAG = "checkpoint"  # the folder inside DeepSpeed's, by Lightning's name
KEPT = 2
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class StoredFile:
    """A manifest's entry for one file."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """A checkpoint's step, and its files by their names relative to the checkpoint folder."""

    step: int
    files: dict[str, StoredFile]


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, and for each newer invalid one a clause that says why."""

    path: Path
    step: int
    passed_over: tuple[str, ...]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}{SUFFIX}"


def newest_checkpoint(folder: Path) -> Found | None:
    """Return the checkpoint of `folder` to resume from, or None if the folder has no checkpoints.

    Every byte of the newest one is read.

    Raises:
        UserError: there are checkpoints, but none is valid.
    """
    passed_over: list[str] = []
    for path in sorted(_checkpoints(folder), key=_get_step, reverse=True):
        fault = _find_fault(path)
        if fault is None:
            return Found(path, _get_step(path), tuple(passed_over))
        passed_over.append(f"{path.name} {fault}")
    if passed_over:
        raise UserError(
            f"{folder} contains no valid checkpoint ({'; '.join(passed_over)}): restore one with its manifest, or "
            "choose another run_dir to start from scratch"
        )
    return None


def remove_older(folder: Path, step: int) -> None:
    """Remove all checkpoints before `step` except the newest of them, and drafts of interrupted writes."""
    for draft in folder.glob(f".step-*{SUFFIX}.tmp"):
        draft.unlink()
    for draft in folder.glob(".step-*.json.tmp"):
        if not (folder / f"{draft.name[1:].partition('.')[0]}{SUFFIX}").exists():
            draft.unlink()
    older = sorted((path for path in _checkpoints(folder) if 0 <= _get_step(path) < step), key=_get_step, reverse=True)
    certified = [path for path in older if any(manifest.exists() for manifest in _get_manifests(path))]
    for path in older:
        if path not in certified[: KEPT - 1]:
            _remove(path)


def certify_folder(path: Path) -> None:
    """Write the manifest of a DeepSpeed checkpoint, a folder, after all processes have written their files."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(file)
    sync_folder(path)
    final, draft = _get_manifests(path)
    _write_manifest(draft, path, _hash_files(path))
    os.replace(draft, final)
    sync_folder(path.parent)


def load_plain(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint file onto the CPU: tensors and plain data only, so nothing in it is executed.

    Args:
        mmap: map the tensors from the file instead of reading them; the file must stay.

    Raises:
        UserError: the file cannot be read, or is not a checkpoint.
    """
    content = _load(path, mmap)
    if not isinstance(content, dict) or "global_step" not in content:
        raise UserError(f"{path} is not a training checkpoint: delete it, or choose another run")
    return content


def check_folder(path: Path) -> None:
    """Check a DeepSpeed checkpoint, a folder, before DeepSpeed's own loader unpickles and executes its content.

    Raises:
        UserError: it names another folder to load, or a file contains more than tensors, plain data and the classes of
            ZeRO's optimizer state.
    """
    try:
        tag = (path / "latest").read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a DeepSpeed checkpoint ({first_line(error)}): delete it") from error
    if tag != TAG:
        raise UserError(f"{path / 'latest'} names {tag!r} instead of {TAG!r}, the folder beside it: delete {path}")
    with torch.serialization.safe_globals(_get_deepspeed_classes()):
        for file in sorted((path / TAG).rglob("*")):
            if file.is_file():
                _load(file, mmap=True)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning plugin that writes, verifies and reads checkpoint files; see the module docstring.

    A failed write raises UserError and leaves the earlier checkpoints untouched.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        path = Path(path)
        draft = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stored = _write(checkpoint, draft)
                load_plain(draft, mmap=True)
                final, manifest = _get_manifests(path)
                _write_manifest(manifest, path, {path.name: stored})
                os.replace(draft, path)
                sync_folder(path.parent)
                os.replace(manifest, final)
                sync_folder(path.parent)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot write the checkpoint {path}: {reason}; fix this and run the same command to resume from the "
                "previous checkpoint"
            ) from error

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_plain(Path(path))

    def remove_checkpoint(self, path: _PATH) -> None:
        _remove(Path(path))


def _load(path: Path, mmap: bool) -> Any:
    """Load any file as `load_plain` does."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"cannot read {path} as tensors and plain data, and other content could run code: delete it, or choose "
            "another run"
        ) from error
    except UNREADABLE as error:
        raise UserError(f"cannot read {path} ({first_line(error)}): delete it, or choose another run") from error


def _get_deepspeed_classes() -> list[Any]:
    """Return the classes in ZeRO's optimizer state; none of them runs code when unpickled."""
    if find_spec("deepspeed") is None:
        return []
    from deepspeed.runtime.fp16.loss_scaler import (  # pyright: ignore[reportMissingImports]
        DynamicLossScaler,
        LossScaler,
    )
    from deepspeed.runtime.zero.config import ZeroStageEnum  # pyright: ignore[reportMissingImports]
    from deepspeed.utils.tensor_fragment import fragment_address  # pyright: ignore[reportMissingImports]

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _checkpoints(folder: Path) -> list[Path]:
    """List every path named like a checkpoint, and those of which only a manifest is left."""
    named = {path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")}
    return sorted(named | {file.with_suffix(SUFFIX) for file in folder.glob("step-*.json")})


def _get_step(path: Path) -> int:
    """Return the step in a checkpoint's name, or -1 for other names."""
    match = NAME.fullmatch(path.stem)
    return int(match.group(1)) if match else -1


def _get_manifests(path: Path) -> tuple[Path, Path]:
    """Return the path of a checkpoint's manifest, and that of the draft used until the checkpoint is in place."""
    name = f"{path.stem}.json"
    return path.with_name(name), path.with_name(f".{name}.tmp")


def _find_fault(path: Path) -> str | None:
    """Return why a checkpoint is invalid, as the end of a sentence about it, or None if it is valid."""
    manifests = [manifest for manifest in _get_manifests(path) if manifest.exists()]
    if not manifests:
        return "has no manifest"
    if not path.exists():
        return "is missing"
    faults = [_find_difference(manifest, path) for manifest in manifests]
    return None if None in faults else faults[0]


def _find_difference(manifest: Path, path: Path) -> str | None:
    """Return how a checkpoint differs from a manifest, or None if it matches."""
    try:
        content = build(_Manifest, read_object(manifest))
    except (OSError, ValueError):
        return "has an unreadable manifest"
    if content.step != _get_step(path):
        return f"has the manifest of step {content.step}"
    stated = content.files
    try:
        sizes = {name: file.stat().st_size for name, file in _list_files(path).items()}
        if sizes.keys() != stated.keys():
            name = min(sizes.keys() ^ stated.keys())
            return f"lacks {name}" if name in stated else f"has {name}, which its manifest does not name"
        for name, size in sizes.items():
            if size != stated[name].size:
                return f"has {size:,} bytes, not {stated[name].size:,}, in {name}"
        changed = [name for name, stored in _hash_files(path).items() if stored != stated[name]]
    except OSError as error:
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    return f"has changed bytes in {changed[0]}" if changed else None


def _list_files(path: Path) -> dict[str, Path]:
    """Return a checkpoint's files by their names relative to the checkpoint folder."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {file.relative_to(path.parent).as_posix(): file for file in files}


def _hash_files(path: Path) -> dict[str, StoredFile]:
    return {name: StoredFile(file.stat().st_size, compute_sha256(file)) for name, file in _list_files(path).items()}


def _write_manifest(file: Path, path: Path, files: dict[str, StoredFile]) -> None:
    content = {"step": _get_step(path), "files": {name: asdict(stored) for name, stored in files.items()}}
    with file.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    """Remove a checkpoint, manifests first: a half-removed one is invalid."""
    for manifest in _get_manifests(path):
        manifest.unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(content: dict[str, Any], file: Path) -> StoredFile:
    """Write a file and read it back from the disk; raise OSError if the bytes differ."""
    with file.open("wb") as raw:
        stream = _HashingStream(raw)
        try:
            torch.save(content, cast(IO[bytes], stream))
        except RuntimeError as error:  # torch hides the underlying OSError
            raise stream.error or error from error
        raw.flush()
        os.fsync(raw.fileno())
        if hasattr(os, "posix_fadvise"):  # drop the page cache, to read from the disk
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stored = StoredFile(file.stat().st_size, compute_sha256(file))
    if stored != StoredFile(stream.size, stream.hash.hexdigest()):
        raise OSError(None, "the disk returns other bytes than were written")
    return stored


class _HashingStream:
    """A writable file that tracks the hash and size of the written bytes, and the first error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.hash.update(data)
        self.size += len(data)
        return written

    def flush(self) -> None:
        self.file.flush()
