"""Outputs that a refactoring must not change: stories, benchmarks, the loader's order and the tables of RESULTS.md.

    python -m tests.golden.outputs NAME …     record anew, where a change is meant; NAME: see RECORDERS

Pixels are compared by the SHA-256 of their bytes, not of the files, so another compression of PNG changes nothing.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import ROOT
from tests.golden.loss_trace import fingerprint

FOLDER = Path(__file__).parent
QUICK = ("steps=8", "model.video.steps=4", "model.video.frames=6")
STORIES: dict[str, tuple[str, ...]] = {
    "example": (),
    "two_characters": ("story=examples/stories/two_friends.yaml", *QUICK),
    "algorithm1": ("csa=algorithm1", "csa.tile_size=3", *QUICK),
    "official": ("csa=official", *QUICK),
    "frames": QUICK,
}
"""Overrides of infer.py; `frames` also gets the first three panels of `example`."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "stories": ("benchmark=stories", "benchmark.stories=4"),
    "transitions": ("benchmark=transitions", "benchmark.clips=4"),
}


def infer(run: Path, *overrides: str) -> None:
    """Run infer.py with one thread, on which the last bits of a sum depend."""
    command = [sys.executable, "infer.py", f"run_dir={run}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def sha256_of_pixels(frames: np.ndarray) -> str:
    return hashlib.sha256(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()


def sha256_of_run(run: Path) -> dict[str, str]:
    """Panels, page and decoded video frames of a run folder: name → SHA-256 of the pixels."""
    import av

    found = {}
    for file in (*sorted((run / "panels").glob("*.png")), run / "page.png"):
        with Image.open(file) as image:
            found[file.relative_to(run).as_posix()] = sha256_of_pixels(np.asarray(image.convert("RGB")))
    with av.open(str(run / "video.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    return {**found, "video.mp4": sha256_of_pixels(np.stack(frames))}


def stories(scratch: Path) -> dict[str, dict[str, str]]:
    for name, overrides in STORIES.items():
        images = ",".join(str(scratch / "example" / "panels" / f"{number:03d}.png") for number in (1, 2, 3))
        given = (f"frames=[{images}]",) if name == "frames" else ()
        infer(scratch / name, *given, *overrides)
    return {name: sha256_of_run(scratch / name) for name in STORIES}


def benchmarks(scratch: Path) -> dict[str, dict[str, Any]]:
    """The values that each benchmark's result.json holds, metric → one value an item."""
    found = {}
    for name, overrides in BENCHMARKS.items():
        infer(scratch / name, *overrides)
        result = json.loads((scratch / name / "result.json").read_text(encoding="utf-8"))
        found[name] = {metric: one["values"] for metric, one in result["metrics"].items()}
    return found


def key_order(scratch: Path) -> dict[str, list[list[str]]]:
    """The keys of the loader's batches over two epochs, for each of one and of two processes."""
    from storydiffusion.data.clip_sampling import ClipOptions
    from storydiffusion.data.loader import ClipLoader, LoaderOptions
    from storydiffusion.data.shard_index import index_missing
    from storydiffusion.data.shards import find_shards
    from tests.helpers.videos import video, write_shard

    blob = video(scratch / "a.mp4", 8)
    for number, count in enumerate((9, 7, 8, 6)):
        write_shard(scratch / "shards" / f"{number}.tar", [f"s{number}k{sample}" for sample in range(count)], blob)
    index_missing(find_shards(str(scratch / "shards")))
    options = LoaderOptions(
        str(scratch / "shards"), batch_size=4, clips=ClipOptions(3, 2, 16, 16, caption_dropout=0.0), window=2
    )
    loaders = {"1 of 1": (0, 1), "1 of 2": (0, 2), "2 of 2": (1, 2)}
    return {
        name: [batch.keys for loader in [ClipLoader(options, *place)] for _ in range(2) for batch in loader]
        for name, place in loaders.items()
    }


def results(_: Path) -> list[list[str]]:
    """The numbers of every row of RESULTS.md's tables, in order, rows without numbers left out."""
    lines = (ROOT / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    rows = [re.findall(r"[+-]?\d+\.\d+", line) for line in lines if line.startswith("|")]
    return [row for row in rows if row]


RECORDERS: dict[str, Callable[[Path], Any]] = {
    "stories": stories,
    "benchmarks": benchmarks,
    "key_order": key_order,
    "results": results,
}


def file_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def record(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return {"fingerprint": fingerprint(), "outputs": RECORDERS[name](Path(scratch))}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or RECORDERS:
        file_of(chosen).write_text(json.dumps(record(chosen), indent=1) + "\n")
        print(f"recorded: {file_of(chosen)}")
