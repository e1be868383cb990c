"""Measure time and memory of an index of WebVid-10M's size: 10,700 shards of 1,000 samples with synthetic rows.

    python benchmarks/shard_index.py

`open` is the work of a process before its first batch: finding the shards and opening their index. Then the workers
walk through the order and look up samples as the loader does, without reading shards. Memory is the proportional set
size, so that shared memory counts once; that of a node is the increase in the opening process and all its workers.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from storydiffusion.data.order import ClipOrder
from storydiffusion.data.shard_index import ShardIndex, write_summary
from storydiffusion.data.shards import INDEX, IndexRecord, find_shards
from storydiffusion.training.record import machine

SAMPLE_BYTES = 1_200_000
WINDOW = 8


def write_index(folder: Path, shards: int, samples: int) -> None:
    """Write the index of sparse files as large as real shards."""
    (folder / INDEX).mkdir()
    types = [("key", "S9"), ("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("members", "<u4", (3, 2))]
    rows = np.zeros(samples, np.dtype(types))  # type: ignore[arg-type]
    records = []
    for shard in tqdm(range(shards), "writing", unit="shard"):
        rows["key"] = [f"{shard * samples + sample:09d}".encode() for sample in range(samples)]
        rows["offset"] = np.arange(samples) * SAMPLE_BYTES
        rows["size"] = SAMPLE_BYTES
        rows["crc32"] = shard
        buffer = BytesIO()
        np.save(buffer, rows)
        name = f"{shard:05d}.tar"
        (folder / INDEX / f"{name}.npy").write_bytes(buffer.getvalue())
        with open(folder / name, "wb") as file:
            os.truncate(file.fileno(), samples * SAMPLE_BYTES)
        digest = f"{shard:064x}"
        records.append(IndexRecord(name, samples, samples * SAMPLE_BYTES, digest, zlib.crc32(buffer.getvalue())))
    write_summary(folder, records)


def read_memory() -> float:
    """Return this process's proportional set size in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def walk(index: ShardIndex, begin: int, look_ups: int, start: Any, results: Any) -> None:
    """Run a worker: look up samples from a position on; report the seconds per look-up and the memory used."""
    start.wait()
    before = read_memory()
    start.wait()
    order = ClipOrder(index.counts, 0, WINDOW)
    kept: dict[int, np.ndarray] = {}
    clock = time.perf_counter()
    for position in range(begin, begin + look_ups):
        shard, sample = order[0, position]
        if shard not in kept:
            if len(kept) >= WINDOW:
                kept.pop(next(iter(kept)))
            kept[shard] = index.rows(shard)
        _ = kept[shard][sample]
    seconds = time.perf_counter() - clock
    start.wait()
    results.put((seconds / look_ups, read_memory() - before))
    start.wait()


def measure(folder: Path, workers: int, look_ups: int) -> str:
    """Return a row of the table."""
    before = read_memory()
    clock = time.perf_counter()
    index = ShardIndex(find_shards(str(folder)))
    opening = time.perf_counter() - clock
    alone = read_memory() - before
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(workers), context.Queue()
    begins = np.linspace(0, int(index.counts.sum()) - look_ups, workers).astype(int).tolist()
    processes = [context.Process(target=walk, args=(index, begin, look_ups, start, results)) for begin in begins]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    took = np.median([seconds for seconds, _ in found])
    node = alone + sum(memory for _, memory in found)
    return f"| {index.counts.sum():,} | {opening:.2f} | {alone:.0f} | {1e6 * took:.1f} | {node:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_700)
    parser.add_argument("--samples", type=int, default=1000, help="samples in each shard")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--look-ups", type=int, default=40_000, help="look-ups of each worker")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, args.shards, args.samples)
        size = sum(path.stat().st_size for path in (folder / INDEX).iterdir())
        print(f"{machine()}; index of {size / 1e6:.0f} MB, {args.workers} workers\n")
        print("| samples | open s | open MB | look-up µs | node MB |\n|---|---|---|---|---|")
        for _ in range(3):
            print(measure(folder, args.workers, args.look_ups), flush=True)


if __name__ == "__main__":
    main()
