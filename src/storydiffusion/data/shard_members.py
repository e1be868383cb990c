"""The members of a tar that make samples, and the members that are refused. Nothing is extracted or unpickled.

A sample's members follow each other and share a key, the path up to the last dot. The extension, in any case, says what
a member is: the video, the caption or the metadata. Members with other extensions, folders and hidden files are
skipped.
"""

import os
import re
import tarfile
from pathlib import PurePosixPath
from typing import BinaryIO

from storydiffusion.data.shards import CAPTION, RECORD, VIDEO

VIDEO_EXTENSIONS = ("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "ogv")
KINDS = {**dict.fromkeys(VIDEO_EXTENSIONS, VIDEO), CAPTION: CAPTION, RECORD: RECORD}
"""Extension → what the member is."""
PICKLE = re.compile(r".*\.(pyd|pickle|pkl|pck|pt|pth|ckpt|dill|joblib)(\.(gz|bz2|xz|zst))?", re.IGNORECASE)
"""The end of names that other tools unpickle, so that reading such a shard with them executes code."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
MAX_NAME = 1000  # bytes; every row of an index is as wide as its longest key
MAX_HEADER = 2**16  # bytes; a header that states gigabytes would be read into memory
ENDLESS_NUMBER = re.compile(rb"[0-9]{200}")  # tarfile searches headers in time quadratic in such digits
SHOWN = 3  # names in an error


class UnreadableShardError(Exception):
    """A shard or sample violates the contract; the message is the reason, to follow its name."""


def read_members(file: BinaryIO) -> tuple[dict[str, dict[str, tarfile.TarInfo]], int]:
    """Return the members of each key, by kind, in the shard's order, and the end of the last member.

    Raises:
        UnreadableShardError: a damaged header, a member that is refused, or members of which none makes a sample.
        OSError: the file cannot be read.
    """
    try:
        return _group_members(file)
    except tarfile.TarError as error:
        raise UnreadableShardError(f"it is damaged or not a tar file ({error})") from error
    except RecursionError as error:
        raise UnreadableShardError("it is damaged: too many headers precede one member") from error
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:  # tarfile checks no numbers
        reason = str(error) or type(error).__name__
        raise UnreadableShardError(f"it is damaged: a header has an impossible value ({reason})") from error


def _group_members(file: BinaryIO) -> tuple[dict[str, dict[str, tarfile.TarInfo]], int]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    skipped: list[str] = []
    size = os.fstat(file.fileno()).st_size
    last = None
    with tarfile.open(fileobj=_HeaderReader(file), mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            _check_member(member, size)
            key, kind = _split_name(member)
            if kind is None:
                skipped.append(member.name)
                continue
            members = samples.setdefault(key, {})
            if kind in members or (members and key != last):
                raise UnreadableShardError(f"it holds {member.name} twice, or the members of {key} apart")
            members[kind] = member
            last = key
        if not any(VIDEO in members and CAPTION in members for members in samples.values()):
            _check_empty([member.name for members in samples.values() for member in members.values()] + skipped)
        return samples, tar.offset


def _check_member(member: tarfile.TarInfo, size: int) -> None:
    """Refuse a member that no reader should touch; `size` is the shard's."""
    name = member.name
    if member.type not in (*REGULAR, tarfile.DIRTYPE) or member.sparse:
        raise UnreadableShardError(f"it holds {name!r}, which is not a regular file")
    if len(name.encode(errors="surrogateescape")) > MAX_NAME:
        raise UnreadableShardError(f"it holds {name[:40]!r}…, a name of more than {MAX_NAME:,} bytes")
    if not name.isprintable():
        raise UnreadableShardError(f"it holds {name!r}, a name with bytes that are not UTF-8 or control characters")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise UnreadableShardError(f"it holds {name!r}, a path out of the shard")
    if PICKLE.fullmatch(name):
        raise UnreadableShardError(f"it holds {name!r}, a pickle, which executes code in tools that load it")
    if not 0 <= member.size <= size - member.offset_data:  # a negative size would make tarfile seek backwards
        raise UnreadableShardError(f"it breaks off inside {name}")


def _split_name(member: tarfile.TarInfo) -> tuple[str, str | None]:
    """Return a member's key and kind; None for one that is skipped."""
    return ("", None) if member.isdir() else split_member_name(member.name)


def split_member_name(name: str) -> tuple[str, str | None]:
    """Return the key and the kind that a regular member's name stands for; None for one that is skipped."""
    path = PurePosixPath(name)  # drops ./ and //
    if not path.name or path.name.startswith("."):
        return "", None
    return str(path.with_suffix("")), KINDS.get(path.suffix.lower().removeprefix("."))


def _check_empty(names: list[str]) -> None:
    """Refuse members that make no sample; a shard without members is one whose videos were all rejected."""
    if names:
        rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        raise UnreadableShardError(
            f"it holds {', '.join(map(repr, names[:SHOWN]))}{rest}, but no sample of a video and a caption, such as "
            f"KEY.{VIDEO} and KEY.{CAPTION}"
        )


class _HeaderReader:
    """A file for tarfile, which reads only headers: one that is too long to be true raises an error."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek = file.tell, file.seek
        self._file = file

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise UnreadableShardError(f"it is damaged: a header of {size:,} bytes, the limit is {MAX_HEADER:,}")
        data = self._file.read(size)
        if ENDLESS_NUMBER.search(data):
            raise UnreadableShardError("it is damaged: a header has a number of more than 200 digits")
        return data
