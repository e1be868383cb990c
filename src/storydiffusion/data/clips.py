"""Clips by their place in the order of training, decoded from the samples of indexed shards.

F frames, H and W pixels. A clip is a pure function of (shards, options, epoch, position).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from storydiffusion.data.clip_sampling import (
    ClipDraw,
    ClipOptions,
    choose_frames,
    draw_clip,
    prepare_caption,
    prepare_frames,
)
from storydiffusion.data.decoder_process import DecoderProcess
from storydiffusion.data.order import CLIP, CROP, SUBSTITUTE, ClipOrder, Place, keyed
from storydiffusion.data.quarantine import Reject
from storydiffusion.data.shard_index import Sample, ShardIndex, UnreadableShardError
from storydiffusion.data.shards import CAPTION, RECORD, VIDEO, find_shards
from storydiffusion.data.video_reader import DEFAULT_LIMITS, UnreadableVideoError, VideoLimits, check_backend
from storydiffusion.errors import UserError
from storydiffusion.files.json_file import parse_object

SUBSTITUTES = 4  # other samples tried in place of a bad one

Captioner = Callable[[Mapping[str, Any], Sequence[int]], list[str]]
"""A sample's record and the indices of frames → their captions; a ValueError rejects the sample"""


@dataclass(frozen=True)
class LoaderOptions:
    """Which shards are read, and how.

    shards: folders, files or brace patterns. batch_size: clips of all processes together. workers: decoding processes
    for each training process. backend: decord, pyav or torchcodec. window: neighboring shards shuffled together.
    rejected_share: share of an epoch's clips that may be bad, each replaced by one that its position determines; at 0
    the first bad clip ends the run. decode_seconds: time after which a video counts as bad. captioner: captions every
    frame from the sample's record; None: the clip's own caption. crops: fixed crops of a clip, of which one is drawn
    each time; None: a new one each time.
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
    crops: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("workers", 0), ("seed", 0), ("window", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} is below {low}")
        if self.crops is not None and self.crops < 1:
            raise UserError(f"crops={self.crops} is below 1")
        if not 0 <= self.rejected_share < 1:
            raise UserError(f"rejected_share={self.rejected_share} is outside 0…1")
        if not self.decode_seconds > 0:  # NaN fails too
            raise UserError(f"decode_seconds={self.decode_seconds} is not above 0")
        check_backend(self.backend)


class Clip(NamedTuple):
    frames: Tensor
    captions: list[str]
    key: str


class Fetched(NamedTuple):
    """A clip, or None if neither its sample nor a substitute is usable, and the rejected samples."""

    clip: Any  # a Clip, or with a feature cache a CachedClip
    rejects: list[Reject]


class Clips(Dataset[Fetched]):
    """Clips by (epoch, position), decoded on access.

    Faults are returned, not raised: PyTorch would bury a worker's exception in its traceback.
    """

    def __init__(self, options: LoaderOptions) -> None:
        self.options = options
        self.index = ShardIndex(find_shards(options.shards))
        self.order = ClipOrder(self.index.counts, options.seed, options.window)
        self._rows: dict[int, np.ndarray] = {}  # of the most recently used shards
        self._decoder = DecoderProcess(options.backend, options.limits, options.decode_seconds)  # starts on first use

    def __getitem__(self, key: tuple[int, int]) -> Fetched:
        rejects: list[Reject] = []
        for place in self._iterate_candidates(*key):
            try:
                return Fetched(self._load_clip(place, *key), rejects)
            except BadSampleError as error:
                if error.reject not in rejects:  # a substitute may be the same sample again
                    rejects.append(error.reject)
                if not self.options.rejected_share:
                    break
        return Fetched(None, rejects)

    def _iterate_candidates(self, epoch: int, position: int) -> Iterator[Place]:
        """Yield the sample at a position, then its substitutes."""
        yield self.order[epoch, position]
        random = np.random.Generator(keyed(SUBSTITUTE, self.options.seed, epoch, position))
        for number in random.random(SUBSTITUTES).tolist():
            shard = int(np.searchsorted(np.cumsum(self.order.counts), number * self.order.total, side="right"))
            yield Place(shard, int(number * self.order.total) - int(self.order.counts[:shard].sum()))

    def _load_clip(self, place: Place, epoch: int, position: int) -> Clip:
        draw = draw_clip(np.random.Generator(keyed(CLIP, self.options.seed, epoch, position)))
        if self.options.crops is not None:
            crop = self.draw_crop(place, int(draw.start * self.options.crops))
            draw = replace(crop, caption=draw.caption)
        try:
            return self.read(place, draw)
        except (UnreadableShardError, UnreadableVideoError) as error:
            raise self.reject(place, str(error), epoch, position) from error

    def draw_crop(self, place: Place, crop: int) -> ClipDraw:
        """Return the draw of a sample's fixed crop; it depends on the shard's content and not on its number."""
        content = int(self.index.records[place.shard].sha256[:8], 16)
        random = np.random.Generator(keyed(CROP, self.options.seed, content, place.sample))
        return [draw_clip(random) for _ in range(crop + 1)][-1]

    def read(self, place: Place, draw: ClipDraw) -> Clip:
        """Return the clip that a draw cuts from a sample. Raises UnreadableShardError or UnreadableVideoError."""
        sample = self.index.read(place.shard, self._load_row(place))
        return cut_clip(sample, self.options, self._decoder, draw)

    def reject(self, place: Place, reason: str, epoch: int, position: int) -> "BadSampleError":
        """Return the error that a sample cannot be used."""
        key = self._load_row(place)["key"].decode()
        return BadSampleError(Reject(str(self.index.paths[place.shard]), key, reason, epoch, position))

    def _load_row(self, place: Place) -> np.void:
        if place.shard not in self._rows:
            rows = self.index.rows(place.shard)
            while len(self._rows) >= self.options.window:
                self._rows.pop(next(iter(self._rows)))
            self._rows[place.shard] = rows
        return self._rows[place.shard][place.sample]


def cut_clip(sample: Sample, options: LoaderOptions, decoder: DecoderProcess, draw: ClipDraw) -> Clip:
    """Return the clip that a draw cuts from a sample. Raises UnreadableVideoError."""
    caption, video = _extract_caption_and_video(sample)
    indices = choose_frames(decoder.open(video).frames, options.clips, draw)
    captions = [caption] if options.captioner is None else _caption_frames(options.captioner, sample, indices)
    frames = torch.from_numpy(decoder.read(indices)).permute(0, 3, 1, 2)
    captions = [prepare_caption(text, options.clips, draw) for text in captions]
    return Clip(prepare_frames(frames, options.clips, draw), captions, sample.key)


class BadSampleError(Exception):
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
