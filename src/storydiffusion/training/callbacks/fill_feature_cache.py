"""Compute the features that a training reads from its cache, before the first step."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from storydiffusion.data.clips import Clip, Clips, LoaderOptions
from storydiffusion.data.feature_cache import EMPTY, IMAGE, LATENTS, TEXT, FeatureCache, ShardCrops
from storydiffusion.data.loader import ClipBatch
from storydiffusion.errors import UserError, first_line

SECONDS = 1.0  # between two looks at what other processes compute


class FillFeatureCache(L.Callback):
    """Encodes all crops of all shards whose features are missing.

    All processes of a training, and other trainings with the same cache, share the work: whoever holds the lock of a
    shard computes it. A shard that a killed process has begun is computed again.

    Args:
        batch_size: clips encoded at once.
        verify: compare complete files with their checksums.
    """

    def __init__(self, cache: FeatureCache, options: LoaderOptions, batch_size: int, verify: bool) -> None:
        self.cache, self.options, self.batch_size, self.verify = cache, options, batch_size, verify

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.cast_buffers()
        clips = Clips(replace(self.options, clips=replace(self.options.clips, caption_dropout=0.0)))
        complete = [self.cache.is_complete(record) for record in clips.index.records]
        if self.verify:
            for record in compress(clips.index.records, complete):
                self.cache.verify(record)
        missing = [ShardCrops(clips, shard) for shard, is_complete in enumerate(complete) if not is_complete]
        total = sum(map(len, missing))
        with tqdm(total=total, desc="encoding crops", unit="crop", disable=not trainer.is_global_zero) as bar:
            while missing:
                missing = [each for each in missing if not self._fill(trainer, pl_module, each, bar)]
                if missing:
                    time.sleep(SECONDS)

    def _fill(self, trainer: L.Trainer, module: Any, crops: ShardCrops, bar: tqdm) -> bool:
        """Compute a shard's features; return False if another process is computing them."""
        lock = FileLock(self.cache.get_file(crops.record).with_suffix(".lock"))
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            with lock.acquire(timeout=0):
                if self.cache.is_complete(crops.record):
                    bar.update(len(crops))
                else:
                    with trainer.precision_plugin.forward_context():
                        self._encode(module, crops, bar)
            return True
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"cannot write into data.cache={self.cache.folder.parent} ({first_line(error)}): choose another folder"
            ) from error

    def _encode(self, module: Any, crops: ShardCrops, bar: tqdm) -> None:
        rows: list[dict[str, Tensor] | None] = []
        captions, rejects = [""] * crops.record.samples, {}
        workers = self.options.workers
        for batch in DataLoader(crops, self.batch_size, num_workers=workers, collate_fn=list):
            encoded = iter(encode_clips(module, [clip for clip in batch if isinstance(clip, Clip)]))
            for clip in batch:
                if isinstance(clip, Clip):
                    captions[len(rows) // crops.crops] = clip.captions[0]
                    rows.append(next(encoded))
                else:
                    rejects[len(rows)] = clip
                    rows.append(None)
            bar.update(len(batch))
        usable = next((row for row in rows if row is not None), {})
        tensors = {
            name: torch.stack([torch.zeros_like(like) if row is None else row[name] for row in rows])
            for name, like in usable.items()
        }
        empty = module.text_encoder([""])[0, : module.text_encoder.window].cpu()
        self.cache.write(crops.record, tensors | {EMPTY: empty}, captions, rejects)


@torch.no_grad()
def encode_clips(module: Any, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
    """Return the latents, text and image features of each clip, on the CPU in the dtype of the frozen networks."""
    if not clips:
        return []
    frames = torch.stack([clip.frames for clip in clips]).to(module.device)
    batch = ClipBatch(frames, [clip.captions[0] for clip in clips], [clip.key for clip in clips])
    encoded, image = module.encode(batch), module.image_features(frames)
    tensors = {LATENTS: encoded.latents, TEXT: encoded.text} | ({} if image is None else {IMAGE: image})
    host = {name: tensor.to("cpu", module.vae.dtype) for name, tensor in tensors.items()}
    return [{name: tensor[number] for name, tensor in host.items()} for number in range(len(clips))]
