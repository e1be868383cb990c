"""The clips of a training as a LightningDataModule: write shards if they are drawn here, index them, read batches."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import ClipBatch, ClipLoader, LoaderOptions
from storydiffusion.data.shard_index import index_missing, verify_shards
from storydiffusion.data.shard_writer import WriterOptions, write_shards
from storydiffusion.data.shards import check_local, find_shards, read_manifest
from storydiffusion.data.sources import ClipSource
from storydiffusion.errors import UserError, first_line
from storydiffusion.training.clip_sources import CAPTIONERS, build_source

CLIPS_PER_SHARD = 250


class ClipData(L.LightningDataModule):
    """Batches of `options.batch_size` clips, counted over all processes.

    Args:
        source: clips to write into the folder `options.shards` before training, unless it holds all of them;
            None: the shards exist.
        verify: read all shards and compare their checksums before the first step.
        quarantine: folder where each process lists the samples that it could not read.
    """

    def __init__(
        self,
        options: LoaderOptions,
        source: ClipSource | None = None,
        verify: bool = False,
        quarantine: Path | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.source = source
        self.verify = verify
        self.quarantine = quarantine
        self.prepare_data_per_node = False  # all nodes read one folder

    def prepare_data(self) -> None:
        if self.source is not None:
            self._write_shards(self.source)
        shards = find_shards(self.options.shards)
        index_missing(shards)
        if self.verify:
            verify_shards(shards)

    def _write_shards(self, source: ClipSource) -> None:
        folder = Path(str(self.options.shards))
        wanted = {**source.description, "clips_per_shard": CLIPS_PER_SHARD}

        def is_written() -> bool:
            found = read_manifest(folder)
            return bool(found and found.complete and found.source == wanted and found.samples == len(source))

        if is_written():
            return
        with _lock(folder):  # the jobs of a sweep may all start here
            if not is_written():
                write_shards(source, folder, WriterOptions(CLIPS_PER_SHARD, os.cpu_count() or 1, self.options.backend))

    def train_dataloader(self) -> ClipLoader:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        quarantine = self.quarantine / f"rank{rank}.csv" if self.quarantine else None
        return ClipLoader(self.options, rank, self.trainer.world_size, quarantine)

    def example(self, count: int) -> ClipBatch:
        """Return the first `count` clips with their captions, the same at every call."""
        clips = replace(self.options.clips, caption_dropout=0.0)
        options = replace(self.options, batch_size=count, clips=clips, workers=0, captioner=None)
        return next(iter(ClipLoader(options)))


def build_clip_data(config: TransitionTrainConfig) -> ClipData:
    """Return the data module of `config.data`; StoryWorld's clips are drawn when training starts.

    Raises:
        UserError: no shards match, or a value is out of range.
    """
    data, source = config.data, None
    if data.storyworld is None:
        find_shards(data.shards)
    elif not isinstance(data.shards, str):
        raise UserError(f"data.shards={data.shards}: StoryWorld's clips are drawn into one folder; give its path")
    else:
        check_local(data.shards)
        source = build_source("storyworld", asdict(data.storyworld))
    try:
        options = LoaderOptions(
            shards=data.shards,
            batch_size=config.recipe.batch_size,
            clips=ClipOptions(
                data.frames, data.stride, data.height, data.width, data.flip, data.brightness, data.caption_dropout
            ),
            workers=data.workers,
            seed=config.recipe.seed,
            backend=data.backend,
            window=data.window,
            rejected_share=data.rejected_share,
            decode_seconds=data.decode_seconds,
            captioner=CAPTIONERS[data.captions],
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error
    return ClipData(options, source, data.verify, Path(config.run_dir) / "quarantine")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, waiting while another process holds it. Raises UserError where locking fails."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process to write {folder}", file=sys.stderr, flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"cannot lock {folder} ({reason}): choose another cache, on a local disk") from error
    try:
        yield
    finally:
        lock.release()
