"""Batches of captioned clips from shards. A batch is a pure function of (shards, seed, epoch, step).

B clips of a batch on this process, F frames, H and W pixels. The number of processes, of workers and of restarts does
not matter: step t has the positions t·G … (t+1)·G − 1 of its epoch's order, where G is the global batch size, and each
process takes its slice; all random numbers of a clip are keyed by its position (`order.py`).
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from storydiffusion.data.clip_sampling import ClipOptions, choose_frames, draw_clip, prepare_caption, prepare_frames
from storydiffusion.data.decoder_process import DecoderProcess
from storydiffusion.data.order import CLIP, SUBSTITUTE, ClipOrder, Place, keyed
from storydiffusion.data.quarantine import Quarantine, Reject
from storydiffusion.data.shard_index import Sample, ShardIndex, UnreadableShardError
from storydiffusion.data.shards import CAPTION, RECORD, VIDEO, find_shards
from storydiffusion.data.video_reader import DEFAULT_LIMITS, UnreadableVideoError, VideoLimits, check_backend
from storydiffusion.errors import UserError
from storydiffusion.files.json_file import parse_object

STATE = 1  # version of the order and of the state's content
SUBSTITUTES = 4  # other samples tried in place of a bad one

log = logging.getLogger(__name__)


Captioner = Callable[[Mapping[str, Any], Sequence[int]], list[str]]
"""A sample's record and the indices of frames → their captions; a ValueError rejects the sample"""


class ClipBatch(NamedTuple):
    """`frames` uint8 RGB (B, F, 3, H, W); `captions` and `keys`, one string a clip; a dropped caption is empty.

    With a captioner `captions` has one string a frame, F for each clip.
    """

    frames: Tensor
    captions: list[str]
    keys: list[str]


@dataclass(frozen=True)
class LoaderOptions:
    """Which shards are read, and how.

    shards: folders, files or brace patterns. batch_size: clips of all processes together. workers: decoding processes
    for each training process. backend: decord, pyav or torchcodec. window: neighbouring shards shuffled together.
    rejected_share: share of an epoch's clips that may be bad, each replaced by one that its position determines; at 0
    the first bad clip ends the run. decode_seconds: time after which a video counts as bad. captioner: captions every
    frame from the sample's record; None: the clip's own caption.
    """

    shards: str | Sequence[str]
    batch_size: int
    clips: ClipOptions = field(default_factory=ClipOptions)
    workers: int = 0
    seed: int = 0
    backend: str = "decord"
    window: int = 8
    rejected_share: float = 0.0
    decode_seconds: float = 60.0
    limits: VideoLimits = DEFAULT_LIMITS
    captioner: Captioner | None = None

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("workers", 0), ("seed", 0), ("window", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} is below {low}")
        if not 0 <= self.rejected_share < 1:
            raise UserError(f"rejected_share={self.rejected_share} is outside 0…1")
        if not self.decode_seconds > 0:  # NaN fails too
            raise UserError(f"decode_seconds={self.decode_seconds} is not above 0")
        check_backend(self.backend)


class ClipLoader:
    """An endless loader: each iteration yields the rest of an epoch, the next one the next epoch in another order.

    len() is the number of steps in an epoch, equal on all ranks; an incomplete last batch is dropped. `state_dict`
    counts the yielded batches, so a restored loader resumes with the very next one; it is equal on all ranks, and can
    be restored under another world size or number of workers.

    Args:
        quarantine: CSV file to which unusable samples are appended as they are found.

    Raises:
        UserError: on construction, if shards are missing, not indexed or too few; on iteration, for a bad sample
            beyond `rejected_share`, named by shard and key.
    """

    def __init__(
        self, options: LoaderOptions, rank: int = 0, world_size: int = 1, quarantine: Path | None = None
    ) -> None:
        if options.batch_size % world_size:
            raise UserError(
                f"batch_size={options.batch_size} cannot be shared by {world_size} processes: choose a multiple"
            )
        self.options, self.rank, self.world_size = options, rank, world_size
        self._clips = _Clips(options)
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

    def __iter__(self) -> Iterator[ClipBatch]:
        if self.step == self._steps:
            self.epoch, self.step, self.rejected = self.epoch + 1, 0, 0
        batches = DataLoader(
            self._clips,
            batch_sampler=self._batches(),
            num_workers=self.options.workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_job_signals,
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


def _ignore_job_signals(worker: int) -> None:
    """Ignore a job's signals in a worker process, which must serve until the trainer has saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class _Clip(NamedTuple):
    frames: Tensor
    captions: list[str]
    key: str


class _Fetched(NamedTuple):
    """A clip, or None if neither its sample nor a substitute is usable, and the rejected samples."""

    clip: _Clip | None
    rejects: list[Reject]


class _Clips(Dataset[_Fetched]):
    """Clips by (epoch, position), decoded on access.

    Faults are returned, not raised: PyTorch would bury a worker's exception in its traceback.
    """

    def __init__(self, options: LoaderOptions) -> None:
        self.options = options
        self.index = ShardIndex(find_shards(options.shards))
        self.order = ClipOrder(self.index.counts, options.seed, options.window)
        self._rows: dict[int, np.ndarray] = {}  # of the most recently used shards
        self._decoder = DecoderProcess(options.backend, options.limits, options.decode_seconds)  # starts on first use

    def __getitem__(self, key: tuple[int, int]) -> _Fetched:
        rejects: list[Reject] = []
        for place in self._iterate_candidates(*key):
            try:
                return _Fetched(self._load_clip(place, *key), rejects)
            except _BadSampleError as error:
                if error.reject not in rejects:  # a substitute may be the same sample again
                    rejects.append(error.reject)
                if not self.options.rejected_share:
                    break
        return _Fetched(None, rejects)

    def _iterate_candidates(self, epoch: int, position: int) -> Iterator[Place]:
        """Yield the sample at a position, then its substitutes."""
        yield self.order[epoch, position]
        random = np.random.Generator(keyed(SUBSTITUTE, self.options.seed, epoch, position))
        for number in random.random(SUBSTITUTES).tolist():
            shard = int(np.searchsorted(np.cumsum(self.order.counts), number * self.order.total, side="right"))
            yield Place(shard, int(number * self.order.total) - int(self.order.counts[:shard].sum()))

    def _load_clip(self, place: Place, epoch: int, position: int) -> _Clip:
        options, row = self.options, self._load_row(place)
        draw = draw_clip(np.random.Generator(keyed(CLIP, options.seed, epoch, position)))
        key = row["key"].decode()
        try:
            sample = self.index.read(place.shard, row)
            caption, video = _extract_caption_and_video(sample)
            indices = choose_frames(self._decoder.open(video).frames, options.clips, draw)
            captions = [caption] if options.captioner is None else _caption_frames(options.captioner, sample, indices)
            frames = torch.from_numpy(self._decoder.read(indices)).permute(0, 3, 1, 2)
        except (UnreadableShardError, UnreadableVideoError) as error:
            shard = str(self.index.paths[place.shard])
            raise _BadSampleError(Reject(shard, key, str(error), epoch, position)) from error
        captions = [prepare_caption(text, options.clips, draw) for text in captions]
        return _Clip(prepare_frames(frames, options.clips, draw), captions, key)

    def _load_row(self, place: Place) -> np.void:
        if place.shard not in self._rows:
            rows = self.index.rows(place.shard)
            while len(self._rows) >= self.options.window:
                self._rows.pop(next(iter(self._rows)))
            self._rows[place.shard] = rows
        return self._rows[place.shard][place.sample]


class _BadSampleError(Exception):
    def __init__(self, reject: Reject) -> None:
        super().__init__(str(reject))
        self.reject = reject


def _extract_caption_and_video(sample: Sample) -> tuple[str, bytes]:
    """Return a sample's caption and video; raise UnreadableVideoError if one is missing or the caption is empty."""
    for extension, name in ((VIDEO, "video"), (CAPTION, "caption")):
        if extension not in sample.members:
            raise UnreadableVideoError(f"it has no {name}, {sample.key}.{extension} is missing")
    try:
        caption = sample.members[CAPTION].decode().strip()
    except UnicodeDecodeError as error:
        raise UnreadableVideoError("its caption is not UTF-8") from error
    if not caption:
        raise UnreadableVideoError("its caption is empty")
    return caption, sample.members[VIDEO]


def _caption_frames(captioner: Captioner, sample: Sample, indices: Sequence[int]) -> list[str]:
    """Return the captioner's captions; raise UnreadableVideoError if the sample's record does not fit it."""
    try:
        return captioner(parse_object(sample.members[RECORD].decode()), indices)
    except KeyError as error:
        raise UnreadableVideoError(f"it has no record, {sample.key}.{RECORD} is missing") from error
    except ValueError as error:
        raise UnreadableVideoError(f"its frames cannot be captioned: {error}") from error


def _collate(fetched: list[_Fetched]) -> tuple[ClipBatch | None, list[Reject]]:
    """Collate one batch, None if a clip is missing, and the samples rejected for it."""
    rejects = [reject for one in fetched for reject in one.rejects]
    clips = [one.clip for one in fetched if one.clip is not None]
    if len(clips) < len(fetched):
        return None, rejects
    batch = ClipBatch(
        torch.stack([clip.frames for clip in clips]),
        [text for clip in clips for text in clip.captions],
        [clip.key for clip in clips],
    )
    return batch, rejects
