"""Time the loader at WebVid's size against bare decord decoding of the same clips, in one run.

    python benchmarks/loader.py --processes 1 2 --backends decord pyav

Videos of 336 × 596 pixels, H.264 with x264's usual groups of pictures, 18 s at 25 frames a second; 16 frames of stride
4 from a random start, as 256 × 256 images. `bare` decodes the frames that the loader reads, from videos in memory, by
decord, and discards them; `loader` reads and checks shards, decodes by the backend, crops, resizes and collates. Both
use the same number of processes (a worker and its decoder count as one, because they alternate) and run alternately.
"""

import argparse
import io
import itertools
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storydiffusion.data.clip_sampling import ClipOptions, choose_frames, draw_clip
from storydiffusion.data.loader import ClipLoader, LoaderOptions
from storydiffusion.data.order import CLIP, ClipOrder, keyed
from storydiffusion.data.shard_index import ShardIndex, index_missing
from storydiffusion.data.shards import find_shards
from storydiffusion.output.video_file import write_video
from storydiffusion.training.record import machine

HEIGHT, WIDTH, FRAMES, FPS = 336, 596, 450, 25
SHARDS, VIDEOS = 2, 6  # videos in each shard
COPIES = 6  # of each video, so that start and end of an epoch do not matter
CRF = 18
BATCH = 4


def draw_frames(seed: int) -> Iterator[np.ndarray]:
    """Yield frames of a camera that pans over a textured ground, with sensor noise."""
    random = np.random.default_rng(seed)
    ground = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    for size in (8, 32, 128, 512):  # coarse shapes and fine ones
        coarse = torch.from_numpy(random.normal(size=(1, 3, size, size)).astype(np.float32))
        fine = torch.nn.functional.interpolate(coarse, ground.shape[:2], mode="bicubic")
        ground += fine[0].permute(1, 2, 0).numpy() * 40 / np.sqrt(size / 8)
    grains = random.normal(scale=2, size=(16, HEIGHT, WIDTH, 1)).astype(np.float32)
    for number in range(FRAMES):
        angle = 2 * np.pi * number / FRAMES
        top, left = int(HEIGHT * (1 + np.sin(angle)) / 2), int(WIDTH * (1 + np.cos(angle)) / 2)
        shown = 128 + ground[top : top + HEIGHT, left : left + WIDTH] + grains[number % len(grains)]
        yield shown.clip(0, 255).astype(np.uint8)


def write_shards(folder: Path) -> None:
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(VIDEOS):
                write_video(folder / "video.mp4", draw_frames(shard * VIDEOS + number), FPS, CRF)
                video = (folder / "video.mp4").read_bytes()
                for copy in range(COPIES):
                    for name, data in (("mp4", video), ("txt", b"words"), ("json", b"{}")):
                        info = tarfile.TarInfo(f"{shard}{number:03d}{copy}.{name}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    (folder / "video.mp4").unlink()


def list_clips(index: ShardIndex, options: LoaderOptions, epoch: int) -> list[tuple[bytes, list[int]]]:
    """Return the videos of an epoch and the frames that the loader reads from each."""
    order = ClipOrder(index.counts, options.seed, options.window)
    clips = []
    for position in range(order.total):
        place = order[epoch, position]
        draw = draw_clip(np.random.Generator(keyed(CLIP, options.seed, epoch, position)))
        video = index.read(place.shard, index.rows(place.shard)[place.sample]).members["mp4"]
        clips.append((video, choose_frames(FRAMES, options.clips, draw)))
    return clips


def decode(connection: "Connection[Any, Any]", index: ShardIndex, options: LoaderOptions, share: slice) -> None:
    """Run a process of `bare`: decode its share of an epoch's clips on request."""
    import decord

    while (epoch := connection.recv()) is not None:
        clips = list_clips(index, options, epoch)[share]
        connection.send("ready")
        connection.recv()
        for video, numbers in clips:
            decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), num_threads=1).get_batch(numbers).asnumpy()
        connection.send("done")


class Bare:
    """Processes that only decode."""

    def __init__(self, index: ShardIndex, options: LoaderOptions, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            share = slice(number, None, processes)
            context.Process(target=decode, args=(theirs, index, options, share), daemon=True).start()
            self.pipes.append(ours)

    def seconds(self, epoch: int) -> float:
        self._send(epoch)
        begin = time.perf_counter()
        self._send("go")
        return time.perf_counter() - begin

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)

    def _send(self, word: Any) -> None:
        for pipe in self.pipes:
            pipe.send(word)
        for pipe in self.pipes:
            pipe.recv()


def time_loader(loader: ClipLoader) -> float:
    """Return the seconds of an epoch, scaled from the batches after its processes have started."""
    batches = iter(loader)
    for _ in range(max(1, loader.options.workers)):
        next(batches)
    begin = time.perf_counter()
    count = sum(len(batch.keys) for batch in batches)
    return (time.perf_counter() - begin) / count * len(loader) * loader.options.batch_size


def measure(folder: Path, backend: str, processes: int, rounds: int) -> str:
    """Return a row of the table: medians over the rounds."""
    clips = ClipOptions(frames=16, stride=4, height=256, width=256)
    options = LoaderOptions([str(folder)], BATCH, clips, workers=processes, backend=backend)
    index = ShardIndex(find_shards(str(folder)))
    bare, loader = Bare(index, options, processes), ClipLoader(options)
    count = len(loader) * BATCH
    rates: list[tuple[float, float]] = []
    for epoch in range(rounds):
        rates.append((count / bare.seconds(epoch), count / time_loader(loader)))
    bare.close()
    alone, ours = np.median(rates, axis=0)
    ratios = [ours / alone for alone, ours in rates]
    cells = f"{alone:.2f} | {ours:.2f} | {np.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f}"
    return f"| {backend} | {processes} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backends", nargs="+", default=["decord", "pyav"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder)
        shards = find_shards(name)
        index_missing(shards)
        size = sum(path.stat().st_size for path in shards) / (SHARDS * VIDEOS * COPIES)
        print(f"{machine()}, torch {torch.__version__}; {size / 1e6:.2f} MB a video\n")
        print("| backend | processes | bare clips/s | loader clips/s | loader/bare | least–most |")
        print("|---|---|---|---|---|---|")
        for backend, processes in itertools.product(args.backends, args.processes):
            print(measure(folder, backend, processes, args.rounds), flush=True)


if __name__ == "__main__":
    main()
