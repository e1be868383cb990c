"""Write shards from a source of captioned videos: in parallel, resumable, the same bytes by any number of processes.

Shard n contains the usable ones of the source's rows n·K … (n+1)·K − 1, each with its row number as key. A complete
tar is moved into place first, then its part file (parts/000000.json: counts, checksum, rejects); an interrupted run
resumes with the shards that have no part file.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from storydiffusion.data.decoder_process import DecoderProcess
from storydiffusion.data.shard_index import is_indexed, write_index, write_summary
from storydiffusion.data.shards import (
    CAPTION,
    INDEX,
    MANIFEST,
    RECORD,
    VIDEO,
    IndexRecord,
    ShardManifest,
    ShardRecord,
    format_manifest,
    read_manifest,
)
from storydiffusion.data.sources import ClipSource, SourceClip
from storydiffusion.data.video_reader import DEFAULT_LIMITS, UnreadableVideoError, VideoLimits
from storydiffusion.errors import UserError
from storydiffusion.files.json_file import build, read_object

REJECTS = "rejects.jsonl"
PARTS = "parts"


@dataclass(frozen=True)
class WriterOptions:
    """How shards are written.

    clips_per_shard: rows of the source for each shard. workers: processes; 1 works in this one. backend: decoder that
    tries each video for at most `decode_seconds`.
    """

    clips_per_shard: int = 1000
    workers: int = 1
    backend: str = "decord"
    limits: VideoLimits = DEFAULT_LIMITS
    decode_seconds: float = 60.0


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    folder: Path
    number: int
    clips: tuple[SourceClip, ...]
    options: WriterOptions

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.number:06d}.tar"

    @property
    def part(self) -> Path:
        return self.folder / PARTS / f"{self.number:06d}.json"

    def key(self, row: int) -> str:
        return f"{self.number * self.options.clips_per_shard + row:09d}"


@dataclass(frozen=True)
class _Part:
    """The outcome of a shard's rows."""

    rows: int
    shard: IndexRecord
    rejects: list[dict[str, str]] = field(default_factory=list)


def write_shards(source: ClipSource, folder: str | Path, options: WriterOptions | None = None) -> ShardManifest:
    """Write 000000.tar, …, their index, manifest.json and rejects.jsonl into `folder`; complete shards are kept.

    Unusable videos are listed in rejects.jsonl with the reason and counted in the manifest.

    Raises:
        UserError: the folder has shards of another source or cannot be written, or no video is usable.
    """
    options = options or WriterOptions()
    folder = Path(folder)
    description = {**source.description, "clips_per_shard": options.clips_per_shard}
    _check_same_source(folder, description)
    rows = len(source)
    with _report_write_errors(folder):
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        _write(folder / MANIFEST, format_manifest(ShardManifest(description)))
    parts: dict[int, _Part] = {}
    with tqdm(total=rows, unit="clip", desc="writing shards", smoothing=0.05) as bar:
        for number, part in _run_jobs(_build_jobs(source, folder, options), options.workers):
            parts[number] = part
            bar.update(part.rows)
            bar.set_postfix(rejected=sum(len(part.rejects) for part in parts.values()), refresh=False)
    return _write_manifest(folder, description, [parts[number] for number in sorted(parts)])


def _check_same_source(folder: Path, description: dict[str, Any]) -> None:
    manifest = read_manifest(folder)
    if manifest is None:
        if folder.is_dir() and any(folder.glob("*.tar")):
            raise UserError(f"out={folder} contains .tar files without a manifest: choose another folder")
        return
    for key in description.keys() | manifest.source.keys():
        if description.get(key) != manifest.source.get(key):
            raise UserError(
                f"out={folder} contains shards with {key}={manifest.source.get(key)}, not {description.get(key)}: "
                "choose another folder"
            )


def _build_jobs(source: ClipSource, folder: Path, options: WriterOptions) -> Iterator[_Job]:
    clips = iter(source)
    number = 0
    while batch := tuple(islice(clips, options.clips_per_shard)):
        yield _Job(folder, number, batch, options)
        number += 1


def _run_jobs(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[int, _Part]]:
    """Yield each job's part as it completes; few jobs wait at a time, so memory stays constant."""
    if workers <= 1:
        for job in jobs:
            yield job.number, _write_shard(job)
        return
    # spawned, not forked: decoders and drawing libraries may hold locks of threads that a fork would not copy
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: dict[Future[_Part], int] = {}
        try:
            for job in jobs:
                running[pool.submit(_write_shard, job)] = job.number
                if len(running) >= 2 * workers:
                    yield from _collect(running)
            while running:
                yield from _collect(running)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that writes shards died, perhaps out of memory: run the same command with fewer workers; "
                "finished shards are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(running: dict[Future[_Part], int]) -> Iterator[tuple[int, _Part]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


def _write_shard(job: _Job) -> _Part:
    """Write the job's shard, or read its part file if the shard is complete."""
    part = _read_part(job)
    if part is not None:
        return part
    from webdataset.writer import TarWriter  # here, because it takes seconds to import

    rejects: list[dict[str, str]] = []
    decoder = DecoderProcess(job.options.backend, job.options.limits, job.options.decode_seconds)
    with _report_write_errors(job.folder):
        # fixed owner, mode and time: the same clips give the same bytes
        fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
        with _atomic_file(job.tar) as file, TarWriter(file, encoder=False, **fixed) as tar:
            for row in range(len(job.clips)):
                _add(tar, job, row, decoder, rejects)
        part = _Part(len(job.clips), write_index(job.tar), rejects)
        _write(job.part, json.dumps(asdict(part), ensure_ascii=False))
    return part


def _read_part(job: _Job) -> _Part | None:
    """Read the part file; return None if the shard is missing, incomplete or has another number of rows."""
    try:
        part = build(_Part, read_object(job.part))
        is_whole = is_indexed(job.tar, part.shard)
    except (OSError, ValueError):
        return None
    return part if is_whole and part.rows == len(job.clips) else None


def _add(tar: Any, job: _Job, row: int, decoder: DecoderProcess, rejects: list[dict[str, str]]) -> None:
    """Add one clip to the shard, or its reason to `rejects`."""
    clip, key = job.clips[row], job.key(row)
    try:
        caption = " ".join(clip.caption.split())
        if not caption:
            raise UnreadableVideoError("it has no caption")
        blob = clip.video()
        info = decoder.open(blob)
        decoder.read([0, info.frames - 1])
    except UnreadableVideoError as reason:
        rejects.append({"shard": job.tar.name, "key": key, "id": clip.name, "reason": str(reason)})
        return
    record = {**clip.record(), "id": clip.name, "stream": asdict(info)}
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    tar.write({"__key__": key, VIDEO: blob, CAPTION: caption.encode(), RECORD: text.encode()})


def _write_manifest(folder: Path, description: dict[str, Any], parts: list[_Part]) -> ShardManifest:
    rejects = [reject for part in parts for reject in part.rejects]
    indexed = [part.shard for part in parts]
    shards = tuple(ShardRecord(shard.name, shard.samples, shard.bytes, shard.sha256) for shard in indexed)
    samples = sum(shard.samples for shard in shards)
    with _report_write_errors(folder):
        _write(folder / REJECTS, "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))
        if not samples:
            first = f", the first because {rejects[0]['reason']}" if rejects else ""
            raise UserError(f"not one of {len(rejects)} videos can be used{first}: see {folder / REJECTS}")
        write_summary(folder, indexed)
        for draft in (folder / INDEX).glob(".*.tmp"):  # of a killed run
            draft.unlink()
        manifest = ShardManifest(description, True, samples, len(rejects), shards)
        _write(folder / MANIFEST, format_manifest(manifest))
    return manifest


def _write(path: Path, text: str) -> None:
    with _atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def _atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` when complete; a draft left by a killed run is overwritten."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _report_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write into {folder}: {reason}; free space there or choose another folder") from error
