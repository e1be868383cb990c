"""The clips of a training, for Lightning: shards, drawn first where they are StoryWorld's, then indexed and read."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L

from storydiffusion.config import StoryWorldClips
from storydiffusion.data.loader import ClipBatch, ClipLoader, LoaderOptions
from storydiffusion.data.shard_index import index_missing, verify_shards
from storydiffusion.data.shard_writer import WriterOptions, write_shards
from storydiffusion.data.shards import find_shards, read_manifest
from storydiffusion.errors import UserError, first_line

CLIPS_PER_SHARD = 250


class ClipData(L.LightningDataModule):
    """Batches of `options.batch_size` clips, of all processes together.

    Args:
        storyworld: what is drawn into the folder `options.shards` before the training, where it is not there whole.
        verify: all shards are read and compared with their checksums before the first step.
        quarantine: the folder where each process keeps a list of the samples that it could not use.
    """

    def __init__(
        self,
        options: LoaderOptions,
        storyworld: StoryWorldClips | None = None,
        verify: bool = False,
        quarantine: Path | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.storyworld = storyworld
        self.verify = verify
        self.quarantine = quarantine
        self.prepare_data_per_node = False  # all read one folder

    def prepare_data(self) -> None:
        if self.storyworld is not None:
            self._draw(self.storyworld)
        shards = find_shards(self.options.shards)
        index_missing(shards)
        if self.verify:
            verify_shards(shards)

    def _draw(self, storyworld: StoryWorldClips) -> None:
        from storydiffusion.storyworld.clip_source import StoryWorldSource

        source, folder = StoryWorldSource(**asdict(storyworld)), Path(str(self.options.shards))
        wanted = {**source.description, "clips_per_shard": CLIPS_PER_SHARD}

        def is_drawn() -> bool:
            found = read_manifest(folder)
            return bool(found and found.complete and found.source == wanted and found.samples == len(source))

        if is_drawn():
            return
        with _alone_in(folder):  # the jobs of a sweep may all begin by drawing
            if not is_drawn():
                write_shards(source, folder, WriterOptions(CLIPS_PER_SHARD, os.cpu_count() or 1, self.options.backend))

    def train_dataloader(self) -> ClipLoader:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        quarantine = self.quarantine / f"rank{rank}.csv" if self.quarantine else None
        return ClipLoader(self.options, rank, self.trainer.world_size, quarantine)

    def example(self, count: int) -> ClipBatch:
        """The first `count` clips of this order, the same at every call, with their captions."""
        clips = replace(self.options.clips, caption_dropout=0.0)
        return next(iter(ClipLoader(replace(self.options, batch_size=count, clips=clips, workers=0))))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits while another process is in here for the same folder. Raises UserError where nothing can be locked."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process, which draws {folder}", file=sys.stderr, flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"cannot lock {folder} ({reason}): choose another cache, on a disk of this machine") from error
    try:
        yield
    finally:
        lock.release()
