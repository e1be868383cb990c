"""What the frozen networks make of clips, computed once: one file a shard, read instead of videos.

    FOLDER/settings.json                what the features depend on, to be read by people
    FOLDER/000000-1f2e….safetensors     a row for each crop of each sample, and a CRC-32 of each row
    FOLDER/000000-1f2e….json            its manifest: bytes, SHA-256, captions, and the samples that cannot be used

A file belongs to the content of its shard, by the start of the shard's SHA-256. FOLDER is named by a digest of the
settings: other settings have another folder.

S samples of a shard, K crops of a sample, F frames, R of them with image features, M tokens of width W, T text tokens.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from storydiffusion.data.clip_sampling import draw_clip
from storydiffusion.data.clips import Clip, Clips, LoaderOptions
from storydiffusion.data.order import CLIP, Place, keyed
from storydiffusion.data.shard_index import UnreadableShardError
from storydiffusion.data.shards import IndexRecord
from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft, write_atomically
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.files.json_file import build, json_bytes, read_object

LATENTS, IMAGE, TEXT, EMPTY = "latents", "image", "text", "empty"
CRC = ".crc32"
MOST_OPEN = 64  # files


class CachedClip(NamedTuple):
    """`latents` (C, F, h, w), `image` features (R, M, W) or None, `text` (T, D) of the caption or of the empty one."""

    latents: Tensor
    image: Tensor | None
    text: Tensor
    captions: list[str]
    key: str


@dataclass(frozen=True)
class ShardFeatures:
    """The manifest of one file: a caption for each sample, and the reason for each row (S · K) that is not usable."""

    bytes: int
    sha256: str
    captions: tuple[str, ...]
    rejects: dict[str, str]


class FeatureCache:
    """The features of shards for one collection of settings, in a folder of `parent`."""

    def __init__(self, parent: str | Path, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = Path(parent) / digest[:16]
        self._opened: dict[str, tuple[Any, ShardFeatures]] = {}

    def get_file(self, record: IndexRecord) -> Path:
        """Return the path of a shard's features."""
        return self.folder / f"{Path(record.name).stem}-{record.sha256[:16]}.safetensors"

    def is_complete(self, record: IndexRecord) -> bool:
        """Return whether a shard's features are there, with the size that their manifest says."""
        file = self.get_file(record)
        return file.with_suffix(".json").exists() and file.exists() and file.stat().st_size == self._read(file).bytes

    def write(
        self, record: IndexRecord, tensors: Mapping[str, Tensor], captions: Sequence[str], rejects: Mapping[int, str]
    ) -> None:
        """Write a shard's features, then their manifest.

        Args:
            tensors: LATENTS, TEXT and perhaps IMAGE with S · K rows, and EMPTY, the text of the empty caption (T, D).
            rejects: row → why it cannot be used.
        """
        from safetensors.torch import save_file

        rows = {name: tensor.contiguous() for name, tensor in tensors.items()}
        sums = {f"{name}{CRC}": compute_crcs(tensor) for name, tensor in rows.items() if name != EMPTY}
        write_atomically(self.folder / "settings.json", json_bytes(self.settings))
        file = self.get_file(record)
        with draft(file) as temporary:
            save_file(rows | sums, temporary)
            reasons = {str(row): reason for row, reason in rejects.items()}
            found = ShardFeatures(temporary.stat().st_size, compute_sha256(temporary), tuple(captions), reasons)
        write_atomically(file.with_suffix(".json"), json_bytes(asdict(found)))

    def verify(self, record: IndexRecord) -> None:
        """Raise UserError if a shard's features differ from their manifest."""
        file = self.get_file(record)
        if compute_sha256(file) != self._read(file).sha256:
            raise self._damaged(file, "its SHA-256 differs from its manifest")

    def find_reject(self, record: IndexRecord, row: int) -> str | None:
        """Return why a row cannot be used; None if it can."""
        return self._open(record)[1].rejects.get(str(row))

    def read(self, record: IndexRecord, row: int) -> dict[str, Tensor]:
        """Return the tensors of a row and EMPTY. Raises UserError for missing or changed bytes."""
        opened, _ = self._open(record)
        tensors: dict[str, Tensor] = {EMPTY: opened.get_tensor(EMPTY)}
        for name in {LATENTS, IMAGE, TEXT} & set(opened.keys()):
            tensors[name] = opened.get_slice(name)[row]
            if zlib.crc32(_get_bytes(tensors[name])) != int(opened.get_slice(f"{name}{CRC}")[row]):
                raise self._damaged(self.get_file(record), f"the {name} of row {row} have changed")
        return tensors

    def get_caption(self, record: IndexRecord, sample: int) -> str:
        """Return the caption of a sample."""
        return self._open(record)[1].captions[sample]

    def _open(self, record: IndexRecord) -> tuple[Any, ShardFeatures]:
        from safetensors import SafetensorError, safe_open

        file = self.get_file(record)
        if file.name not in self._opened:
            if len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened)))
            try:
                self._opened[file.name] = (safe_open(file, framework="pt"), self._read(file))
            except (OSError, SafetensorError) as error:
                raise self._damaged(file, str(error)) from error
        return self._opened[file.name]

    def _read(self, file: Path) -> ShardFeatures:
        manifest = file.with_suffix(".json")
        try:
            return build(ShardFeatures, read_object(manifest))
        except (OSError, ValueError) as error:
            raise self._damaged(manifest, str(error)) from error

    def _damaged(self, file: Path, reason: str) -> UserError:
        return UserError(f"{file} cannot be read ({reason}): delete it, and the same command computes it again")


class ShardCrops(Dataset[Clip | str]):
    """All fixed crops of one shard's samples, K for each in turn; for an unusable one the reason instead.

    Args:
        clips: the clips to cut them from, without dropped captions.
    """

    def __init__(self, clips: Clips, shard: int) -> None:
        assert clips.options.crops is not None
        self.clips, self.shard, self.crops = clips, shard, clips.options.crops
        self.record = clips.index.records[shard]

    def __len__(self) -> int:
        return self.record.samples * self.crops

    def __getitem__(self, row: int) -> Clip | str:
        if row >= len(self):
            raise IndexError(row)
        place = Place(self.shard, row // self.crops)
        try:
            return self.clips.read(place, self.clips.draw_crop(place, row % self.crops))
        except (UnreadableShardError, UnreadableVideoError) as error:
            return str(error)


class CachedClips(Clips):
    """The clips of `Clips`, with their features in place of frames."""

    def __init__(self, options: LoaderOptions, cache: FeatureCache) -> None:
        super().__init__(options)
        self.cache = cache

    def _load_clip(self, place: Place, epoch: int, position: int) -> CachedClip:  # type: ignore[override]
        options, record = self.options, self.index.records[place.shard]
        assert options.crops is not None
        draw = draw_clip(np.random.Generator(keyed(CLIP, options.seed, epoch, position)))
        row = place.sample * options.crops + int(draw.start * options.crops)
        if reason := self.cache.find_reject(record, row):
            raise self.reject(place, reason, epoch, position)
        tensors = self.cache.read(record, row)
        is_dropped = draw.caption < options.clips.caption_dropout
        text = tensors[EMPTY if is_dropped else TEXT]
        captions = ["" if is_dropped else self.cache.get_caption(record, place.sample)]
        key = self._load_row(place)["key"].decode()
        return CachedClip(tensors[LATENTS], tensors.get(IMAGE), text, captions, key)


def compute_crcs(rows: Tensor) -> Tensor:
    """Return the CRC-32 of each row's bytes, int64 (rows,)."""
    return torch.tensor([zlib.crc32(_get_bytes(row)) for row in rows], dtype=torch.int64)


def _get_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
