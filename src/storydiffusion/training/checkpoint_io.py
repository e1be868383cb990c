"""Checkpoints that always load: a run that is killed at any moment leaves its newest one whole.

    checkpoints/step-00000040.ckpt   what Lightning saves: a file of tensors and plain data; with DeepSpeed a folder
    checkpoints/step-00000040.json   its manifest: the step, and the size and SHA-256 of every file

Written beside its place → to the disk → read back → moved → the folder to the disk → its manifest last. A checkpoint
counts when its bytes are those of its manifest, or of the one that is about to take the manifest's place; so there is
no moment at which a checkpoint that counted no longer does.
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
from storydiffusion.output.files import compute_sha256, sync_folder

SUFFIX = ".ckpt"
NAME = re.compile(r"step-(\d{8,})")
TAG = "checkpoint"  # the folder inside DeepSpeed's, by Lightning's name
KEPT = 2
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class StoredFile:
    """What a manifest states of one file."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that counts; and of each newer one that does not, a clause that says why."""

    path: Path
    step: int
    passed_over: tuple[str, ...]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}{SUFFIX}"


def newest_checkpoint(folder: Path) -> Found | None:
    """The checkpoint of `folder` that a run goes on from; None where there is none at all.

    Every byte of the newest one is read.

    Raises:
        UserError: there are checkpoints, but none counts.
    """
    passed_over: list[str] = []
    for path in sorted(_checkpoints(folder), key=_step_of, reverse=True):
        fault = _fault(path)
        if fault is None:
            return Found(path, _step_of(path), tuple(passed_over))
        passed_over.append(f"{path.name} {fault}")
    if passed_over:
        raise UserError(
            f"{folder} holds no checkpoint that can be trusted ({'; '.join(passed_over)}): put a good one with its "
            "manifest back, or choose another run_dir to begin anew"
        )
    return None


def remove_older(folder: Path, step: int) -> None:
    """Removes checkpoints before `step` but the newest one, and what interrupted writing has left; no other file."""
    for draft in folder.glob(f".step-*{SUFFIX}.tmp"):
        draft.unlink()
    for draft in folder.glob(".step-*.json.tmp"):
        if not (folder / f"{draft.name[1:].partition('.')[0]}{SUFFIX}").exists():
            draft.unlink()
    older = sorted((path for path in _checkpoints(folder) if 0 <= _step_of(path) < step), key=_step_of, reverse=True)
    certified = [path for path in older if any(manifest.exists() for manifest in _manifests(path))]
    for path in older:
        if path not in certified[: KEPT - 1]:
            _remove(path)


def certify_folder(path: Path) -> None:
    """Writes the manifest of DeepSpeed's checkpoint, a folder, once all its processes have written it."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(file)
    sync_folder(path)
    final, draft = _manifests(path)
    _write_manifest(draft, path, _stored(path))
    os.replace(draft, final)
    sync_folder(path.parent)


def load_plain(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint's file, on the CPU: tensors and plain data only, so nothing in it is executed.

    Args:
        mmap: leaves the tensors' bytes in the file until they are read, for a file that stays.

    Raises:
        UserError: a file that cannot be read, or is no checkpoint.
    """
    content = _load(path, mmap)
    if not isinstance(content, dict) or "global_step" not in content:
        raise UserError(f"{path} is no checkpoint of a training: delete it, or name another run")
    return content


def check_folder(path: Path) -> None:
    """Looks through DeepSpeed's checkpoint, a folder, whose own loader executes what it unpickles.

    Raises:
        UserError: it names another folder to load, or a file of it holds more than tensors, plain data and what
            ZeRO's optimizer state is made of.
    """
    try:
        tag = (path / "latest").read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint of DeepSpeed's ({first_line(error)}): delete it") from error
    if tag != TAG:
        raise UserError(f"{path / 'latest'} names {tag!r}, not {TAG!r}, which lies beside it: delete {path}")
    with torch.serialization.safe_globals(_deepspeeds_own()):
        for file in sorted((path / TAG).rglob("*")):
            if file.is_file():
                _load(file, mmap=True)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's plugin that writes and reads the checkpoints' files; see the head of this file.

    Errors of writing are a UserError, and the checkpoints before stay as they are.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        path = Path(path)
        draft = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stored = _write(checkpoint, draft)
                load_plain(draft, mmap=True)
                final, manifest = _manifests(path)
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
                f"cannot write the checkpoint {path}: {reason}; mend that, and the same command goes on from the "
                "one before"
            ) from error

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_plain(Path(path))

    def remove_checkpoint(self, path: _PATH) -> None:
        _remove(Path(path))


def _load(path: Path, mmap: bool) -> Any:
    """What a file holds, as `load_plain` reads it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"cannot read {path} as tensors and plain data, and anything else could run code: delete it, or name "
            "another run"
        ) from error
    except UNREADABLE as error:
        raise UserError(f"cannot read {path} ({first_line(error)}): delete it, or name another run") from error


def _deepspeeds_own() -> list[Any]:
    """The classes in ZeRO's optimizer state; none of them does anything when it is made."""
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
    """All in the folder that are named as checkpoints, and those of which only a manifest is left."""
    named = {path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")}
    return sorted(named | {file.with_suffix(SUFFIX) for file in folder.glob("step-*.json")})


def _step_of(path: Path) -> int:
    """The step in its name; of foreign names -1."""
    match = NAME.fullmatch(path.stem)
    return int(match.group(1)) if match else -1


def _manifests(path: Path) -> tuple[Path, Path]:
    """Its manifest's place, and where one lies until the checkpoint itself has been moved into place."""
    name = f"{path.stem}.json"
    return path.with_name(name), path.with_name(f".{name}.tmp")


def _fault(path: Path) -> str | None:
    """Why a checkpoint does not count, as the end of a sentence about it; None where it does."""
    manifests = [manifest for manifest in _manifests(path) if manifest.exists()]
    if not manifests:
        return "has no manifest"
    if not path.exists():
        return "is missing"
    faults = [_difference(manifest, path) for manifest in manifests]
    return None if None in faults else faults[0]


def _difference(manifest: Path, path: Path) -> str | None:
    """How a checkpoint differs from what a manifest states."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        stated = {str(name): StoredFile(**stored) for name, stored in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "has an unreadable manifest"
    if content.get("step") != _step_of(path):
        return f"has the manifest of step {content.get('step')}"
    try:
        sizes = {name: file.stat().st_size for name, file in _files(path).items()}
        if sizes.keys() != stated.keys():
            name = min(sizes.keys() ^ stated.keys())
            return f"lacks {name}" if name in stated else f"has {name}, which its manifest does not name"
        for name, size in sizes.items():
            if size != stated[name].size:
                return f"has {size:,} bytes, not {stated[name].size:,}, in {name}"
        changed = [name for name, stored in _stored(path).items() if stored != stated[name]]
    except OSError as error:
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    return f"has changed bytes in {changed[0]}" if changed else None


def _files(path: Path) -> dict[str, Path]:
    """A checkpoint's files, by their names relative to the checkpoints' folder."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {file.relative_to(path.parent).as_posix(): file for file in files}


def _stored(path: Path) -> dict[str, StoredFile]:
    return {name: StoredFile(file.stat().st_size, compute_sha256(file)) for name, file in _files(path).items()}


def _write_manifest(file: Path, path: Path, files: dict[str, StoredFile]) -> None:
    content = {"step": _step_of(path), "files": {name: asdict(stored) for name, stored in files.items()}}
    with file.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    """The manifests go first: what is half removed does not count."""
    for manifest in _manifests(path):
        manifest.unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(content: dict[str, Any], file: Path) -> StoredFile:
    """Writes a file and reads it back from the disk; raises OSError where the bytes read are not those written."""
    with file.open("wb") as raw:
        stream = _HashingStream(raw)
        try:
            torch.save(content, cast(IO[bytes], stream))
        except RuntimeError as error:  # torch's words for what failed below it
            raise stream.error or error from error
        raw.flush()
        os.fsync(raw.fileno())
        if hasattr(os, "posix_fadvise"):  # not what the memory still holds of it
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stored = StoredFile(file.stat().st_size, compute_sha256(file))
    if stored != StoredFile(stream.size, stream.hash.hexdigest()):
        raise OSError(None, "the disk gives back other bytes than were written")
    return stored


class _HashingStream:
    """A file to write to that knows the hash and the size of what passed, and the first error."""

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
