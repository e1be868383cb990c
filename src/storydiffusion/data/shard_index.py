"""The index of a folder of shards: the place and checksum of each sample's bytes. Training reads only through it.

`FOLDER/index/shards.json` has a line for each shard, all that is read to open an index; `index/NAME.tar.npy` has a row
for each sample, read with the shard's first sample. A tar read as a stream would hide a missing end, which indexing
refuses.
"""

import hashlib
import os
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from storydiffusion.data.shard_members import UnreadableShardError, read_members
from storydiffusion.data.shards import (
    EXTENSIONS,
    INDEX,
    SUMMARY,
    IndexRecord,
    ShardRecord,
    format_summary,
    read_manifest,
    read_summary,
)
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_sha256

BLOCK = tarfile.BLOCKSIZE
MAX_BYTES = 2**32 - 1  # of a sample
SAVE_EVERY = 10  # seconds, the most work that an interruption repeats

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sample(NamedTuple):
    """A sample's key and the bytes of its members by kind: `mp4` (a video of any format), `txt` and `json`."""

    key: str
    members: dict[str, bytes]


class ShardIndex:
    """Shards by their number among `paths`, read by offset; opening reads one line a shard and none of the shards.

    `counts` has the samples in each shard, `fingerprint` is one hash of all contents and their order.

    Raises:
        UserError: on construction, if shards have no index or a damaged one; on reading, if a shard's rows are missing
            or damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        summaries = {folder: read_summary(folder) for folder in {path.parent for path in paths}}
        missing = [path for path in paths if path.name not in summaries[path.parent]]
        if missing:
            raise UserError(f"{missing[0]} is in no index: storydiffusion index-shards shards={missing[0].parent}")
        self.records = [summaries[path.parent][path.name] for path in paths]
        self.counts = np.array([record.samples for record in self.records], dtype=np.int64)
        self.fingerprint = hashlib.sha256("".join(record.sha256 for record in self.records).encode()).hexdigest()

    def rows(self, shard: int) -> np.ndarray:
        """Load the rows of a shard's samples: key, offset, size, crc32, and start and size of each member."""
        path = _get_rows_file(self.paths[shard])
        try:
            data = path.read_bytes()
            if zlib.crc32(data) != self.records[shard].rows_crc32:
                raise ValueError("its checksum does not match")
            return np.load(BytesIO(data), allow_pickle=False)
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise UserError(
                f"{path} cannot be read ({reason}): delete {path.parent} and index the shards again"
            ) from error

    def read(self, shard: int, row: np.void) -> Sample:
        """Read the sample at a row of `rows(shard)`, in one read.

        Raises UnreadableShardError if its bytes, headers included, differ from those indexed.
        """
        size = int(row["size"])
        try:
            with open(self.paths[shard], "rb") as file:
                data = os.pread(file.fileno(), size, int(row["offset"]))
        except OSError as error:
            raise UnreadableShardError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
        if len(data) < size:
            raise UnreadableShardError(f"its shard breaks off {size - len(data):,} bytes before its end")
        if zlib.crc32(data) != row["crc32"]:
            raise UnreadableShardError("its bytes have changed since they were indexed")
        places = zip(EXTENSIONS, row["members"].tolist(), strict=True)
        members = {extension: data[start : start + size] for extension, (start, size) in places if start}
        return Sample(row["key"].decode(), members)


def index_shards(paths: Sequence[Path], workers: int = 0) -> list[IndexRecord]:
    """Index the shards that have no index or changed since, with `workers` threads, 0: one for each core.

    An interrupted run resumes. Shards of these folders that no longer exist are removed from the index.

    Raises UserError that names every unusable shard with the reason; the others are indexed.
    """
    known = {folder: read_summary(folder) for folder in {path.parent for path in paths}}
    for folder, records in known.items():
        known[folder] = {name: record for name, record in records.items() if (folder / name).is_file()}
    stale = [path for path in paths if not is_indexed(path, known[path.parent].get(path.name))]
    _index(stale, known, workers)
    return [known[path.parent][path.name] for path in paths]


def index_missing(paths: Sequence[Path], workers: int = 0) -> None:
    """Index the shards that have no index. Existing entries stay: they reveal later damage.

    Raises UserError as `index_shards`.
    """
    known = {folder: read_summary(folder) for folder in {path.parent for path in paths}}
    if missing := [path for path in paths if path.name not in known[path.parent]]:
        _index(missing, known, workers)


def verify_shards(paths: Sequence[Path], workers: int = 0) -> None:
    """Compare all shards with their indexed checksums, with `workers` threads, 0: one for each core.

    Raises UserError that names every missing or changed shard.
    """
    index = ShardIndex(paths)
    results = _run_all(range(len(paths)), lambda shard: _verify(index, shard), workers, "verifying")
    _raise_if_unusable({paths[shard]: result for shard, result in results if isinstance(result, Exception)}, len(paths))


def is_indexed(shard: Path, record: IndexRecord | None) -> bool:
    """Return whether `record` and its rows are up to date with the shard, by size and age as make does."""
    try:
        tar, rows = shard.stat(), _get_rows_file(shard).stat()
    except FileNotFoundError:
        return False
    return record is not None and tar.st_size == record.bytes and tar.st_mtime_ns <= rows.st_mtime_ns


def write_index(shard: Path) -> IndexRecord:
    """Write the rows of one shard beside it; return its record for the summary.

    Raises UnreadableShardError if the shard violates the contract or is incomplete.
    """
    try:
        with open(shard, "rb") as file:
            rows, size, digest = _scan(file)
    except OSError as error:
        raise UnreadableShardError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
    buffer = BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    write_atomically(_get_rows_file(shard), buffer.getvalue())
    return IndexRecord(shard.name, len(rows), size, digest, zlib.crc32(buffer.getvalue()))


def write_summary(folder: Path, records: Iterable[IndexRecord]) -> None:
    """Write the summary of a folder's index; its rows exist already."""
    text = format_summary(sorted(records, key=lambda record: record.name))
    write_atomically(folder / INDEX / SUMMARY, text.encode())


def _index(paths: Sequence[Path], known: dict[Path, dict[str, IndexRecord]], workers: int) -> None:
    """Index `paths`, add them to the known records of each folder and write these, also periodically."""
    stated = {folder: _read_stated_shards(folder) for folder in known}
    for folder in {path.parent for path in paths}:
        if not os.access(folder, os.W_OK):
            raise UserError(
                f"the index of {folder} cannot be written beside its shards: link them into a folder of yours, or "
                "ask the owner to index them"
            )
    bad: dict[Path, Exception] = {}
    saved = time.monotonic()
    make = lambda path: _write_checked_index(path, stated[path.parent].get(path.name))  # noqa: E731
    try:
        for path, result in _run_all(paths, make, workers, "indexing"):
            if isinstance(result, Exception):
                bad[path] = result
                known[path.parent].pop(path.name, None)
            else:
                known[path.parent][path.name] = result
            if time.monotonic() - saved > SAVE_EVERY:
                _save(known)
                saved = time.monotonic()
    finally:
        _save(known)
    _raise_if_unusable(bad, len(paths))


def _save(known: Mapping[Path, Mapping[str, IndexRecord]]) -> None:
    for folder, records in known.items():
        if records or read_summary(folder):
            write_summary(folder, records.values())


def _write_checked_index(path: Path, stated: ShardRecord | None) -> IndexRecord:
    record = write_index(path)
    if stated is not None and (stated.sha256, stated.samples) != (record.sha256, record.samples):
        raise UnreadableShardError(
            f"it differs from its manifest, which says {stated.samples} samples and SHA-256 {stated.sha256[:12]}…"
        )
    return record


def _read_stated_shards(folder: Path) -> dict[str, ShardRecord]:
    manifest = read_manifest(folder)
    return {shard.name: shard for shard in manifest.shards} if manifest else {}


def _verify(index: ShardIndex, shard: int) -> None:
    path, record = index.paths[shard], index.records[shard]
    index.rows(shard)
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise UnreadableShardError(f"it has {size:,} bytes, not {record.bytes:,}")
        if compute_sha256(path) != record.sha256:
            raise UnreadableShardError("its SHA-256 differs from its index")
    except OSError as error:
        raise UnreadableShardError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error


def _run_all(
    items: Iterable[Item], function: Callable[[Item], Result], workers: int, what: str
) -> Iterator[tuple[Item, Result | UnreadableShardError]]:
    """Yield each shard's result or error as it completes; threads suffice, since hashing releases the GIL."""
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in tqdm(as_completed(futures), f"{what} shards", len(futures), unit="shard", delay=1):
            error = future.exception()
            if error is not None and not isinstance(error, UnreadableShardError):
                raise error
            yield futures[future], error or future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _raise_if_unusable(bad: Mapping[Path, Exception], count: int) -> None:
    if bad:
        named = "; ".join(f"{path}: {reason}" for path, reason in sorted(bad.items(), key=lambda item: str(item[0])))
        raise UserError(
            f"{len(bad)} of {count} shards cannot be used: {named}; copy or write them again, or leave them out"
        )


def _get_rows_file(shard: Path) -> Path:
    return shard.parent / INDEX / f"{shard.name}.npy"


def _scan(file: BinaryIO) -> tuple[np.ndarray, int, str]:
    """Return a shard's rows, size and SHA-256, from one pass over its headers and one over all bytes."""
    samples, end = read_members(file)
    offsets = [next(iter(members.values())).offset for members in samples.values()]
    width = max((len(key.encode()) for key in samples), default=1)
    rows = np.zeros(len(samples), _get_row_type(width))
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(offsets[0] if offsets else end))
    for row, (key, members), begin, stop in zip(rows, samples.items(), offsets, [*offsets, end][1:], strict=True):
        if stop - begin > MAX_BYTES:
            raise UnreadableShardError(f"its sample {key} has {stop - begin:,} bytes, the limit is {MAX_BYTES:,}")
        data = file.read(stop - begin)
        digest.update(data)
        row["key"], row["offset"], row["size"], row["crc32"] = key.encode(), begin, len(data), zlib.crc32(data)
        for number, extension in enumerate(EXTENSIONS):
            if extension in members:
                row["members"][number] = members[extension].offset_data - begin, members[extension].size
    size = end
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise UnreadableShardError(f"it is damaged at byte {end:,}: what follows is neither a member nor the end")
        digest.update(rest)
        size += len(rest)
    if size - end < 2 * BLOCK:  # the end-of-archive marker
        raise UnreadableShardError(f"it breaks off after byte {end:,}")
    return rows, size, digest.hexdigest()


def _get_row_type(width: int) -> np.dtype:
    """Return the dtype of rows; a member's start is relative to the sample's offset, 0 for a missing member."""
    return np.dtype(
        [("key", f"S{width}"), ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("members", "<u4", (3, 2))]
    )
