"""Batches of clips from shards that are read as streams, through webdataset's pipeline: for shards in object storage.

    addresses → shuffled → split by process and worker → fetched → samples → shuffled in a buffer → clips → batches

The order is not exact: it depends on the number of processes and workers and on faults, and a resumed run starts
again with another one. Each worker repeats its own shards without end, so no process waits for another's data.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from storydiffusion.data.clip_sampling import draw_clip
from storydiffusion.data.clips import Fetched, LoaderOptions, cut_clip
from storydiffusion.data.decoder_process import DecoderProcess
from storydiffusion.data.loader import ClipBatch, collate, ignore_job_signals
from storydiffusion.data.order import CLIP, SHARDS, keyed, permutation
from storydiffusion.data.quarantine import Quarantine, Reject
from storydiffusion.data.remote_shards import ShardFetcher, StreamOptions, list_urls
from storydiffusion.data.shard_index import Sample
from storydiffusion.data.shard_members import split_member_name
from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError, first_line

NOT_EXACT = "data.reader=stream: the order of the clips is not exact, and a resumed run reads them in another one"
FEWEST = 1000  # clips over which the share of rejected ones is counted at the least

log = logging.getLogger(__name__)


class StreamLoader:
    """An endless loader without length. Its state only counts steps, so that a resumed run draws a new order.

    Args:
        quarantine: CSV file to which unusable samples and shards are appended.

    Raises:
        UserError: on construction, for fewer shards than workers; on iteration, for more bad samples and shards than
            `rejected_share`, or no usable shard at all.
    """

    def __init__(
        self,
        options: LoaderOptions,
        stream: StreamOptions,
        rank: int = 0,
        world_size: int = 1,
        quarantine: Path | None = None,
    ) -> None:
        if options.batch_size % world_size:
            raise UserError(
                f"batch_size={options.batch_size} cannot be shared by {world_size} processes: choose a multiple"
            )
        self.options, self.stream = options, stream
        self.rank, self.world_size = rank, world_size
        self.urls = list_urls(options.shards)
        readers = world_size * max(1, options.workers)
        if len(self.urls) < readers:
            raise UserError(
                f"{len(self.urls)} shards cannot be split among {world_size} processes of "
                f"{max(1, options.workers)} workers: use fewer workers, or the indexed reader"
            )
        self.step = 0
        self.clips = self.rejected = 0
        self._quarantine = Quarantine(quarantine) if quarantine else None

    def __iter__(self) -> Iterator[ClipBatch]:
        if self.rank == 0:
            log.warning(NOT_EXACT)
        clips = StreamedClips(self.options, self.stream, self.urls, self.rank, self.world_size, self.step)
        share = self.options.batch_size // self.world_size
        batches = DataLoader(
            clips,
            batch_size=share,
            num_workers=self.options.workers,
            collate_fn=collate,
            worker_init_fn=ignore_job_signals,
            pin_memory=torch.cuda.is_available(),
        )
        for batch, rejects in batches:
            self._note(rejects, share)
            allowed = self.options.rejected_share * max(self.clips, FEWEST)
            if not isinstance(batch, ClipBatch) or self.rejected > allowed:  # None: a worker has no usable clip
                raise self._explain(rejects[-1])
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"reader": "stream", "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps, from which the order of a resumed run is drawn."""
        self.step = int(state_dict["step"])

    def _note(self, rejects: Sequence[Reject], clips: int) -> None:
        """Count the clips and rejects of a batch; log these, and write them to the quarantine."""
        self.clips += clips
        self.rejected += len(rejects)
        for reject in rejects:
            log.warning("cannot use %s", reject)
        if self._quarantine:
            self._quarantine.add(rejects)

    def _explain(self, reject: Reject) -> UserError:
        share = self.options.rejected_share
        more = f"; more than rejected_share={share:g} of the clips cannot be used" if share else ""
        return UserError(f"{reject}{more}")


class StreamedClips(IterableDataset[Fetched]):
    """The clips of one process's and worker's shards, again and again, each with the rejects found before it.

    A pass without a usable clip yields one without a clip and ends.
    """

    def __init__(
        self, options: LoaderOptions, stream: StreamOptions, urls: Sequence[str], rank: int, world_size: int, begin: int
    ) -> None:
        self.options, self.stream, self.urls = options, stream, list(urls)
        self.rank, self.world_size, self.begin = rank, world_size, begin
        self._rejects: list[Reject] = []
        self._decoder = DecoderProcess(options.backend, options.limits, options.decode_seconds)

    def __iter__(self) -> Iterator[Fetched]:
        number = 0
        while True:
            found = 0
            for sample in self._iterate_samples(number):
                clip = self._cut(sample, number, found)
                if clip is not None:
                    yield Fetched(clip, self._take_rejects())
                    found += 1
            if not found:
                self._rejects = self._rejects or [Reject(self.urls[0], "all", "it has no samples", number, 0)]
                yield Fetched(None, self._take_rejects())
                return
            number += 1

    def _iterate_samples(self, number: int) -> Iterator[dict[str, Any]]:
        """Iterate over the samples of this worker's shards in pass `number`."""
        from webdataset.filters import detshuffle, pipelinefilter
        from webdataset.pipeline import DataPipeline
        from webdataset.shardlists import split_by_worker
        from webdataset.tariterators import group_by_keys, tar_file_expander

        seed = [self.options.seed, self.begin, number]
        order = permutation(keyed(SHARDS, *seed), len(self.urls))
        worker = get_worker_info()
        sources = [{"url": self.urls[place]} for place in order][self.rank :: self.world_size]
        pipeline = DataPipeline(
            lambda: iter(sources),
            split_by_worker,
            ShardFetcher(self.stream, self._report),
            pipelinefilter(tar_file_expander)(handler=self._skip, select_files=_is_read),
            pipelinefilter(group_by_keys)(keys=split_member_name, handler=self._skip),
            detshuffle(self.stream.shuffle, seed=hash((*seed, self.rank, worker.id if worker else 0))),
        )
        return iter(pipeline)

    def _cut(self, sample: dict[str, Any], number: int, position: int) -> Any:
        """Return a sample's clip; None, with a reject, for an unusable one."""
        key, url = sample["__key__"], sample["__url__"]
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        worker = get_worker_info()
        reader = self.rank * 1000 + (worker.id if worker else 0)
        random = np.random.Generator(keyed(CLIP, self.options.seed, self.begin + number, position * 10**6 + reader))
        try:
            return cut_clip(Sample(key, members), self.options, self._decoder, draw_clip(random))
        except UnreadableVideoError as error:
            self._rejects.append(Reject(url, key, str(error), number, position))
            return None

    def _report(self, url: str, reason: str) -> None:
        self._rejects.append(Reject(url, "all", reason, 0, 0))

    def _skip(self, error: Exception) -> bool:
        """Note a fault inside a shard, whose readable samples are used."""
        *_, url = error.args  # webdataset appends the address
        self._rejects.append(Reject(str(url), "unknown", first_line(error), 0, 0))
        return True

    def _take_rejects(self) -> list[Reject]:
        taken, self._rejects = self._rejects, []
        return taken


def _is_read(name: str) -> bool:
    return split_member_name(name)[1] is not None
