"""The clips of a training, for Lightning: shards that are drawn first where they are StoryWorld's, then read."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import lightning as L

from storydiffusion.config import StoryWorldClips
from storydiffusion.data.loader import ClipBatch, ClipLoader, LoaderOptions
from storydiffusion.data.shard_writer import WriterOptions, write_shards
from storydiffusion.data.shards import read_manifest

CLIPS_PER_SHARD = 250


class ClipData(L.LightningDataModule):
    """Batches of `options.batch_size` clips, of all processes together.

    Args:
        storyworld: what is drawn into the folder `options.shards` before the training, where it is not there whole.
    """

    def __init__(self, options: LoaderOptions, storyworld: StoryWorldClips | None = None) -> None:
        super().__init__()
        self.options = options
        self.storyworld = storyworld
        self.prepare_data_per_node = False  # all read one folder

    def prepare_data(self) -> None:
        if self.storyworld is None:
            return
        from storydiffusion.storyworld.clip_source import StoryWorldSource

        source, folder = StoryWorldSource(**asdict(self.storyworld)), Path(str(self.options.shards))
        manifest = read_manifest(folder)
        wanted = {**source.description, "clips_per_shard": CLIPS_PER_SHARD}
        if manifest and manifest.complete and manifest.source == wanted and manifest.samples == len(source):
            return
        write_shards(source, folder, WriterOptions(CLIPS_PER_SHARD, os.cpu_count() or 1, self.options.backend))

    def train_dataloader(self) -> ClipLoader:
        assert self.trainer is not None
        return ClipLoader(self.options, self.trainer.global_rank, self.trainer.world_size)

    def example(self, count: int) -> ClipBatch:
        """The first `count` clips of this order, the same at every call, with their captions."""
        clips = replace(self.options.clips, caption_dropout=0.0)
        workers = min(1, self.options.workers)  # decord deadlocks in a process forked from one that has decoded
        return next(iter(ClipLoader(replace(self.options, batch_size=count, clips=clips, workers=workers))))
