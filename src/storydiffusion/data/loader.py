"""Batches of captioned clips from shards. A batch is a pure function of (shards, seed, epoch, step).

B clips of a batch on this process, F frames, H and W pixels. The number of processes, of workers and of restarts does
not matter: step t has the positions t·G … (t+1)·G − 1 of its epoch's order, where G is the global batch size, and each
process takes its slice; all random numbers of a clip are keyed by its position (`order.py`).
"""

import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from storydiffusion.data.clips import Clip, Clips, Fetched, LoaderOptions
from storydiffusion.data.feature_cache import CachedClip, CachedClips, FeatureCache
from storydiffusion.data.quarantine import Quarantine, Reject
from storydiffusion.errors import UserError

STATE = 1  # version of the order and of the state's content

log = logging.getLogger(__name__)


class ClipBatch(NamedTuple):
    """`frames` uint8 RGB (B, F, 3, H, W); `captions` and `keys`, one string a clip; a dropped caption is empty.

    With a captioner `captions` has one string a frame, F for each clip.
    """

    frames: Tensor
    captions: list[str]
    keys: list[str]


class FeatureBatch(NamedTuple):
    """A batch from a feature cache: `latents` (B, C, F, h, w), `image` features (B, R, M, W) or None, `text` (B, T, D).

    `captions` and `keys` are those of a `ClipBatch`.
    """

    latents: Tensor
    image: Tensor | None
    text: Tensor
    captions: list[str]
    keys: list[str]


class ClipLoader:
    """An endless loader: each iteration yields the rest of an epoch, the next one the next epoch in another order.

    len() is the number of steps in an epoch, equal on all ranks; an incomplete last batch is dropped. `state_dict`
    counts the yielded batches, so a restored loader resumes with the very next one; it is equal on all ranks, and can
    be restored under another world size or number of workers.

    Args:
        quarantine: CSV file to which unusable samples are appended as they are found.
        cache: features to read in place of videos; None: none.

    Raises:
        UserError: on construction, if shards are missing, not indexed or too few; on iteration, for a bad sample
            beyond `rejected_share`, named by shard and key.
    """

    def __init__(
        self,
        options: LoaderOptions,
        rank: int = 0,
        world_size: int = 1,
        quarantine: Path | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        if options.batch_size % world_size:
            raise UserError(
                f"batch_size={options.batch_size} cannot be shared by {world_size} processes: choose a multiple"
            )
        self.options, self.rank, self.world_size = options, rank, world_size
        self._clips = Clips(options) if cache is None else CachedClips(options, cache)
        self._steps = self._clips.order.total // options.batch_size
        if not self._steps:
            raise UserError(
                f"the shards hold {self._clips.order.total} samples, too few for one batch_size={options.batch_size}"
            )
        self.epoch = 0
        self.step = 0  # batches of this epoch yielded
        self.rejected = 0  # samples of this epoch replaced on this rank
        self._quarantine = Quarantine(quarantine) if quarantine else None

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[ClipBatch | FeatureBatch]:
        if self.step == self._steps:
            self.epoch, self.step, self.rejected = self.epoch + 1, 0, 0
        batches = DataLoader(
            self._clips,
            batch_sampler=self._batches(),
            num_workers=self.options.workers,
            collate_fn=collate,
            worker_init_fn=ignore_job_signals,
            pin_memory=torch.cuda.is_available(),
        )
        for batch, rejects in batches:
            self._count(rejects, is_whole=batch is not None)
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {**self._fingerprint(), "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position; raise UserError for the state of other data, another seed or another batch size."""
        for name, value in self._fingerprint().items():
            if state_dict.get(name) != value:
                raise UserError(f"the saved state has {name}={state_dict.get(name)}, not {value}: set it back")
        self.epoch, self.step, self.rejected = int(state_dict["epoch"]), int(state_dict["step"]), 0

    def _fingerprint(self) -> dict[str, int | str]:
        options = self.options
        return {
            "version": STATE,
            "shards": self._clips.index.fingerprint,
            "samples": self._clips.order.total,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "window": options.window,
        }

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield (epoch, position) of this rank's clips for every remaining step of the epoch."""
        epoch, share = self.epoch, self.options.batch_size // self.world_size
        for step in range(self.step, self._steps):
            first = step * self.options.batch_size + self.rank * share
            yield [(epoch, first + clip) for clip in range(share)]

    def _count(self, rejects: Sequence[Reject], is_whole: bool) -> None:
        self.rejected += len({reject.position for reject in rejects})
        allowed = int(self.options.rejected_share * self._steps * self.options.batch_size / self.world_size)
        for reject in rejects:
            log.warning("cannot use %s", reject)
        if self._quarantine:
            self._quarantine.add(rejects)
        if not is_whole or self.rejected > allowed:
            share = self.options.rejected_share
            more = f"; more than rejected_share={share:g} of an epoch's clips cannot be used" if share else ""
            raise UserError(f"{rejects[-1]}{more}")


def ignore_job_signals(worker: int) -> None:
    """Ignore a job's signals in a worker process, which must serve until the trainer has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def collate(fetched: list[Fetched]) -> tuple[ClipBatch | FeatureBatch | None, list[Reject]]:
    """Collate one batch, None if a clip is missing, and the samples rejected for it."""
    rejects = [reject for one in fetched for reject in one.rejects]
    if any(one.clip is None for one in fetched):
        return None, rejects
    clips = [one.clip for one in fetched]
    texts = [text for clip in clips if clip for text in clip.captions]
    keys = [clip.key for clip in clips if clip]
    frames = [clip.frames for clip in clips if isinstance(clip, Clip)]
    if frames:
        return ClipBatch(torch.stack(frames), texts, keys), rejects
    cached = [clip for clip in clips if isinstance(clip, CachedClip)]
    image = [clip.image for clip in cached if clip.image is not None]
    latents, text = torch.stack([clip.latents for clip in cached]), torch.stack([clip.text for clip in cached])
    return FeatureBatch(latents, torch.stack(image) if image else None, text, texts, keys), rejects
