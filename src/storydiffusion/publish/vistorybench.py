"""Lays out told stories as ViStoryBench reads a method's outputs.

  python -m storydiffusion.export_vistorybench runs=[runs/01,runs/02] out=data/outputs
  python -m storydiffusion.export_vistorybench runs=[runs/rabbit,runs/king] stories=[1,2] out=data/outputs

Each story goes to OUT/METHOD/MODE/LANGUAGE/TIMESTAMP/STORY/shots/shot_00.png, shot_01.png, …: its panels, in their
order, byte for byte. STORY is its number in the benchmark, 01 … 80, which tells what it is compared with: `stories`
gives it, or the name of the run folder is such a number. The benchmark takes the n-th shot for the n-th of the story's
script; its prompt alignment leaves a story out where their counts differ.

method=storydiffusion, mode=base and language=en (or ch) name what was run. One method and mode is one configuration, so
runs that differ in more than story and seed are refused. timestamp=20250819_091354 is that of the run, by default
the time, in UTC, at which the last of the manifests was written: the same command makes the same folder.

The layout is that of github.com/ViStoryBench/vistorybench: README.md, section 3.1 ("Example of your method"), as
vistorybench/dataset_loader/read_outputs.py reads it and utils/ensure_shots_subdir.py calls it canonical. The diagram
above that example has the folder shots/ above the stories, which that reader does not take. The folder of character
portraits that it also knows is optional; a run has none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storydiffusion.config.loading import check_choice
from storydiffusion.config.module_command import run
from storydiffusion.errors import UserError
from storydiffusion.output.files import compute_sha256, write_atomically
from storydiffusion.output.manifest import Manifest, read_manifest

LANGUAGES = ("en", "ch")
LARGEST_STORY = 999  # three digits are what the benchmark takes for a story's number
OF_ONE_STORY = ("story", "script", "frames", "seed", "run_dir", "overwrite")
OF_VIDEO = ("video", "fps", "hold", "captions")  # keys of a run's configuration, as those above


@dataclass
class ExportConfig:
    """The command's settings."""

    runs: list[str]
    out: str
    stories: list[int] | None = None
    method: str = "storydiffusion"
    mode: str = "base"
    language: str = "en"
    timestamp: str | None = None

    def __post_init__(self) -> None:
        check_choice("language", self.language, LANGUAGES)
        for key in ("method", "mode"):
            if not re.fullmatch(r"[\w-][\w.-]*", name := getattr(self, key)) or name in LANGUAGES:
                raise UserError(f"{key}={name!r} cannot name a folder of the benchmark: use letters, digits, _ and -")
        if not self.runs:
            raise UserError("runs=[] names no run folder: give one or more")
        if self.stories is not None and len(self.stories) != len(self.runs):
            raise UserError(f"stories={self.stories} are {len(self.stories)} numbers for {len(self.runs)} runs")


def export(config: ExportConfig) -> None:
    """Checks everything, then writes; see the head of this file."""
    runs = [Path(folder) for folder in config.runs]
    manifests = [told(folder) for folder in runs]
    check_one_configuration(runs, manifests)
    stories = config.stories or [story_number(folder) for folder in runs]
    if len(set(stories)) < len(stories) or not all(1 <= story <= LARGEST_STORY for story in stories):
        raise UserError(f"stories={stories}: give each run a number of its own, 1 … {LARGEST_STORY}")
    place = Path(config.out, config.method, config.mode, config.language, timestamp(config.timestamp, runs))
    targets = [place / f"{story:02d}" / "shots" for story in stories]
    for target, manifest in zip(targets, manifests, strict=True):
        check_free(target, len(manifest.panels))
    for folder, manifest, target in zip(runs, manifests, targets, strict=True):
        for number, panel in enumerate(manifest.panels):
            write_atomically(target / shot(number), (folder / panel.file).read_bytes())
        print(f"{folder} → {target} ({manifest.title}, {len(manifest.panels)} shots)")


def told(folder: Path) -> Manifest:
    """The manifest of a run folder whose panels are all there, unchanged. Raises UserError."""
    manifest = read_manifest(folder / "manifest.json")
    if not manifest.panels:
        raise UserError(f"{folder} has no panels yet: tell the story to its end first")
    for panel in manifest.panels:
        file = folder / panel.file
        if not file.is_file() or compute_sha256(file) != panel.sha256:
            raise UserError(f"{file} is missing or has changed since it was told: tell the story again")
    return manifest


def check_one_configuration(runs: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raises UserError where a run was told by another model, or otherwise, than the first."""

    def told_with(manifest: Manifest) -> dict[str, Any]:
        config = {key: value for key, value in manifest.config.items() if key not in OF_ONE_STORY + OF_VIDEO}
        if isinstance(model := config.get("model"), dict):
            config["model"] = {key: value for key, value in model.items() if key != "video"}
        return {**config, "weights": manifest.weights}

    first = told_with(manifests[0])
    for folder, manifest in zip(runs, manifests, strict=True):
        if other := [key for key, value in told_with(manifest).items() if value != first.get(key)]:
            raise UserError(f"{folder} was told with another {other[0]} than {runs[0]}: export it as a mode of its own")


def story_number(folder: Path) -> int:
    """The number that the folder is named after. Raises UserError."""
    name = folder.resolve().name
    if not re.fullmatch(r"\d{1,3}", name):
        raise UserError(
            f"{folder} is not named after a story's number in the benchmark: give the numbers, as stories=[1,2]"
        )
    return int(name)


def timestamp(told: str | None, runs: Sequence[Path]) -> str:
    """YYYYMMDD_HHMMSS: `told`, or the time of the last manifest. Raises UserError."""
    if told is None:
        last = max((folder / "manifest.json").stat().st_mtime for folder in runs)
        return datetime.fromtimestamp(last, UTC).strftime("%Y%m%d_%H%M%S")
    digits = re.sub("[_-]", "", told, count=1)  # YAML reads 20250819_091354 as a number and drops the bar
    try:
        datetime.strptime(digits, "%Y%m%d%H%M%S")
    except ValueError:
        digits = ""
    if len(digits) != 14:
        raise UserError(f"timestamp={told} is no time: write it as 20250819_091354")
    return f"{digits[:8]}_{digits[8:]}"


def shot(number: int) -> str:
    return f"shot_{number:02d}.png"


def check_free(target: Path, shots: int) -> None:
    """Raises UserError where `target` holds what this export would not replace: the benchmark would read it too."""
    ours = {shot(number) for number in range(shots)}
    if other := sorted(file.name for file in target.glob("*") if file.name not in ours):
        raise UserError(f"{target} holds {other[0]} already: remove the folder, or choose another timestamp or mode")


if __name__ == "__main__":
    run(ExportConfig, export, __doc__)
