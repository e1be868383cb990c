"""The losses of 50 steps of the miniature's training, on drawn clips through the real data path.

    python -m tests.golden.loss_trace     writes loss_trace.json anew, where a change of the losses is meant

A refactor must leave the trace as it is, to the last bit. That holds on one kind of processor with one set of library
versions, by which the file is marked; elsewhere the losses agree roughly.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path

import torch

from storydiffusion.training.build_training import build_training
from tests.commands.test_train import metrics
from tests.conftest import ROOT
from tests.helpers.video_model import composed

FILE = Path(__file__).with_suffix(".json")
STEPS = 50
SETTINGS = (
    "trainer=cpu", "trainer.log_every=1", f"trainer.max_steps={STEPS}", "data.storyworld.clips=8", "data.workers=0",
    "model.height=64", "model.width=64", "model.video.frames=4", "recipe.batch_size=2", "recipe.sample_every=0",
    "recipe.warmup_steps=5",
)  # fmt: skip


def fingerprint() -> dict[str, str]:
    """What the last bits of a loss depend on."""
    info = Path("/proc/cpuinfo")
    flags = (
        next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    )
    return {
        "processor": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "flags": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16],
        "torch": str(torch.__version__),
        "lock": hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:16],
    }


def trace(folder: Path, cache: Path) -> list[float]:
    """The loss of each step of a run in `folder`, computed by one thread; its clips are drawn into `cache` once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build_training(composed(*SETTINGS, f"cache={cache}", f"run_dir={folder}/run")).fit()
    finally:
        torch.set_num_threads(threads)
    return [float(row["train/loss"]) for row in metrics(folder / "run")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        losses = trace(Path(scratch), Path(scratch) / "cache")
    FILE.write_text(json.dumps({"fingerprint": fingerprint(), "losses": losses}, indent=1) + "\n")
