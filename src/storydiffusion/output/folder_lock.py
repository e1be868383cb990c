"""One command at a time in a run folder.

A POSIX lock on FOLDER/.lock ends with its process, however that ends, also on another machine that shares the folder.
Forked workers do not inherit it.
"""

import fcntl
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import remove_drafts
from storydiffusion.files.json_file import read_object

LOCK = ".lock"
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""variables by which torchrun, Lightning's launcher and srun number the processes of one training"""
SECONDS_BETWEEN_TRIES = 0.5
SECONDS_TO_SIGN = 2.0  # within which an owner has written its name into the lock


@contextmanager
def own_folder(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Own a folder, created if missing, until the block ends; a new folder that is still empty then is removed.

    Drafts in the folder, which killed processes left there, are removed.

    Args:
        wait: until the folder's owner has ended, instead of refusing; for folders that several runs share.

    Raises:
        UserError: another process owns the folder, or the folder cannot be written or locked.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        descriptor = _lock(folder)
        if descriptor is None:
            owner = _name_owner(folder / LOCK)
            if not wait:
                raise UserError(f"{folder} is in use by {owner}: wait until it ends, or choose another folder")
            print(f"waiting until {owner} releases {folder}", file=sys.stderr)
            while (descriptor := _lock(folder)) is None:
                time.sleep(SECONDS_BETWEEN_TRIES)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot lock {folder / LOCK}: {reason}; choose a folder on a disk with locks that you may write"
        ) from error
    try:
        remove_drafts(folder)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before the lock ends, so that no other process owns this file
        if is_new:
            with suppress(OSError):  # it contains results
                folder.rmdir()
        os.close(descriptor)


def is_first_process() -> bool:
    """Return whether this process owns the folder of a training: the first of its launcher, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def _lock(folder: Path) -> int | None:
    """Return the descriptor that holds the lock, or None while another process owns the folder. Raises OSError."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last owner has just removed the empty folder
            continue
        except FileExistsError:  # removed between mkdir's attempt and its check that this is a folder
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(folder.lstat().st_mode):
                    raise
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_in_place(descriptor, folder / LOCK):
                _sign(descriptor)
                return descriptor
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner has just removed the file


def _is_in_place(descriptor: int, file: Path) -> bool:
    """Return whether `file` is still the file of `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _name_owner(file: Path) -> str:
    """Return who signed a lock; a new owner takes a moment to sign."""
    deadline = time.monotonic() + SECONDS_TO_SIGN
    while time.monotonic() < deadline:
        try:
            owner = read_object(file, largest=4096)
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError):
            time.sleep(0.05)
    return "another process"
