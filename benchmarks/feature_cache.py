"""Time trainings of the miniature on videos and on cached features of the same clips, in turn.

    python benchmarks/feature_cache.py                       # --steps 40 --repeats 3
    python benchmarks/feature_cache.py --only predictor

Both train on the same crops in the same order (`data.crops=1`), so their losses are equal, which is checked. The
features are computed before the clock starts. Speeds are those of metrics.csv, without the first half of each run.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAININGS = {
    "predictor": ["experiment=storyworld_predictor"],  # the transformer alone
    "transition": [],  # the predictor through the video U-Net
}
CLIPS = 500


def train(folder: Path, name: str, steps: int, cache: Path | None) -> tuple[float, str]:
    """Train for `steps` in a new folder; return clips a second and the last loss."""
    run = Path(tempfile.mkdtemp(dir=folder))
    settings = [
        f"run_dir={run}", f"cache={folder / 'cache'}", "data.crops=1", f"data.storyworld.clips={CLIPS}",
        f"trainer.max_steps={steps}", f"trainer.log_every={steps // 2}", "recipe.sample_every=0",
        *([f"data.cache={cache}"] if cache else []),
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), *TRAININGS[name], *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with (run / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    return float(row["train/clips_per_second"]), row["train/loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    args = parser.parse_args()
    print("| training | videos: clips/s | features: clips/s | ratio | least–most |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in args.only:
            cache = folder / f"features_{name}"
            train(folder, name, 2, cache)  # computes the features
            pairs = []
            for _ in range(args.repeats):
                (videos, loss), (features, same) = (train(folder, name, args.steps, each) for each in (None, cache))
                if abs(float(loss) - float(same)) > 1e-3 * abs(float(loss)):
                    sys.exit(f"{name}: the loss is {loss} on videos and {same} on features")
                pairs.append((videos, features))
            ratios = sorted(features / videos for videos, features in pairs)
            videos, features = (statistics.median(each) for each in zip(*pairs, strict=True))
            print(
                f"| {name} | {videos:.1f} | {features:.1f} | {statistics.median(ratios):.2f} "
                f"| {ratios[0]:.2f}–{ratios[-1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
