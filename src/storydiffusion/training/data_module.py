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
from storydiffusion.data.clips import LoaderOptions
from storydiffusion.data.feature_cache import FeatureCache
from storydiffusion.data.loader import ClipBatch, ClipLoader
from storydiffusion.data.remote_shards import StreamOptions, list_urls
from storydiffusion.data.shard_index import index_missing, verify_shards
from storydiffusion.data.shard_writer import WriterOptions, write_shards
from storydiffusion.data.shards import check_local, find_shards, read_manifest
from storydiffusion.data.sources import ClipSource
from storydiffusion.data.stream import StreamLoader
from storydiffusion.errors import UserError, first_line
from storydiffusion.loaders.checksums import compute_checksums, compute_part_checksums
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.training.clip_sources import CAPTIONERS, build_source

CLIPS_PER_SHARD = 250
ENCODERS = ("vae/", "text_encoder/")
"""Parts of a model folder whose output a feature cache holds, beside the image encoder."""


class ClipData(L.LightningDataModule):
    """Batches of `options.batch_size` clips, counted over all processes.

    Args:
        source: clips to write into the folder `options.shards` before training, unless it holds all of them;
            None: the shards exist.
        verify: read all shards and compare their checksums before the first step.
        quarantine: folder where each process lists the samples that it could not read.
        cache: features to train on in place of videos, filled by `FillFeatureCache`.
        stream: read the shards as streams, which need no index; None: by their index.
    """

    def __init__(
        self,
        options: LoaderOptions,
        source: ClipSource | None = None,
        verify: bool = False,
        quarantine: Path | None = None,
        cache: FeatureCache | None = None,
        stream: StreamOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.source = source
        self.verify = verify
        self.quarantine = quarantine
        self.cache = cache
        self.stream = stream
        self.prepare_data_per_node = False  # all nodes read one folder

    @property
    def order(self) -> str:
        """What a resumed run may expect of the order of its clips, for the training record."""
        return "exact" if self.stream is None else "not exact (data.reader=stream)"

    def prepare_data(self) -> None:
        if self.stream is not None:
            return
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

    def train_dataloader(self) -> ClipLoader | StreamLoader:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        quarantine = self.quarantine / f"rank{rank}.csv" if self.quarantine else None
        if self.stream is not None:
            return StreamLoader(self.options, self.stream, rank, self.trainer.world_size, quarantine)
        return ClipLoader(self.options, rank, self.trainer.world_size, quarantine, self.cache)

    def example(self, count: int) -> ClipBatch:
        """Return the first `count` clips with their captions, the same at every call."""
        clips = replace(self.options.clips, caption_dropout=0.0)
        options = replace(self.options, batch_size=count, clips=clips, workers=0, captioner=None)
        if self.stream is not None:
            return next(iter(StreamLoader(options, replace(self.stream, shuffle=1))))
        batch = next(iter(ClipLoader(options)))
        assert isinstance(batch, ClipBatch)  # without a cache
        return batch


def build_clip_data(config: TransitionTrainConfig) -> ClipData:
    """Return the data module of `config.data`; StoryWorld's clips are drawn when training starts.

    Raises:
        UserError: no shards match, or a value is out of range.
    """
    data, source = config.data, None
    stream = StreamOptions(**asdict(data.stream)) if data.stream and data.reader == "stream" else None
    if stream is not None:
        list_urls(data.shards)
    elif data.storyworld is None:
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
            crops=data.crops,
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error
    quarantine, cache = Path(config.run_dir) / "quarantine", build_feature_cache(config)
    return ClipData(options, source, data.verify, quarantine, cache, stream)


def build_feature_cache(config: TransitionTrainConfig) -> FeatureCache | None:
    """Return the features of `data.cache` that fit the frozen networks, crops and frames of a training; None for none.

    Raises:
        UserError: a part of the model is missing.
    """
    data, recipe, video = config.data, config.recipe, config.model.video
    if data.cache is None or video is None:
        return None
    model = resolve_model(config.model)
    weights = compute_checksums({name: file for name, file in model.weights.items() if name.startswith(ENCODERS)})
    if "predictor" in recipe.trainable or video.predictor is not None:
        weights |= compute_part_checksums("image_encoder", video.image_encoder)
    settings = {
        "weights": weights,
        "dtype": config.model.dtype,
        "precision": config.trainer.precision,
        "tokens": config.predictor.tokens,
        "all_frames": recipe.reads_all_frames,
        "crops": data.crops,
        "seed": recipe.seed,
    }
    names = ("frames", "stride", "height", "width", "flip", "brightness")
    return FeatureCache(data.cache, settings | {name: getattr(data, name) for name in names})


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
