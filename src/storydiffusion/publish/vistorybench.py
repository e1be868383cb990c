"""Export generated stories in the layout in which ViStoryBench reads a method's outputs.

Each story goes to OUT/METHOD/MODE/LANGUAGE/TIMESTAMP/STORY/shots/shot_00.png, shot_01.png, …: its panels in order,
byte for byte. STORY is the story's number in the benchmark, 01 … 80, taken from `stories` or from the name of the run
folder. The benchmark matches the n-th shot with the n-th shot of the story's script; its prompt alignment skips a story
whose counts differ.

method=storydiffusion, mode=base and language=en (or ch) name the configuration. One method and mode is one
configuration, so runs that differ in more than story and seed are refused. timestamp=20250819_091354 defaults to the
time (UTC) at which the last of the manifests was written, so the same command writes the same folder.

The layout follows github.com/ViStoryBench/vistorybench: README.md, section 3.1 ("Example of your method"), as read by
vistorybench/dataset_loader/read_outputs.py and called canonical by utils/ensure_shots_subdir.py. The diagram above that
example puts the folder shots/ above the stories, which that reader does not accept. The benchmark's optional folder of
character portraits is not written.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import Manifest, read_manifest

LANGUAGES = ("en", "ch")
LARGEST_STORY = 999  # the benchmark reads story numbers of up to three digits
STORY_KEYS = (
    "story", "script", "frames", "seed", "run_dir", "overwrite",
    "idea", "text", "emotion", "panels", "language", "writer",
)  # fmt: skip
VIDEO_KEYS = ("video", "fps", "hold", "captions", "page", "cuts", "exports", "paper", "keep_features")
"""Keys of a run's configuration that may differ, like those above."""


@dataclass
class ExportConfig:
    """The settings of the command."""

    runs: list[str]
    out: str
    stories: list[int] | None
    method: str
    mode: str
    language: str
    timestamp: str | None

    def __post_init__(self) -> None:
        check_choice("language", self.language, LANGUAGES)
        for key in ("method", "mode"):
            if not re.fullmatch(r"[\w-][\w.-]*", name := getattr(self, key)) or name in LANGUAGES:
                raise UserError(
                    f"{key}={name!r} is not a valid folder name in the benchmark: use letters, digits, _ and -"
                )
        if not self.runs:
            raise UserError("runs=[] is empty: give at least one run folder")
        if self.stories is not None and len(self.stories) != len(self.runs):
            raise UserError(
                f"stories={self.stories} has {len(self.stories)} numbers for {len(self.runs)} runs: give one per run"
            )


def export(config: ExportConfig) -> None:
    """Check all runs, then write their shots; see the head of this file."""
    runs = [Path(folder) for folder in config.runs]
    manifests = [read_generated_story(folder) for folder in runs]
    check_one_configuration(runs, manifests)
    stories = config.stories or [read_story_number(folder) for folder in runs]
    if len(set(stories)) < len(stories) or not all(1 <= story <= LARGEST_STORY for story in stories):
        raise UserError(f"stories={stories}: give each run a number of its own, 1 … {LARGEST_STORY}")
    place = Path(config.out, config.method, config.mode, config.language, get_timestamp(config.timestamp, runs))
    targets = [place / f"{story:02d}" / "shots" for story in stories]
    for target, manifest in zip(targets, manifests, strict=True):
        check_free(target, len(manifest.panels))
    for folder, manifest, target in zip(runs, manifests, targets, strict=True):
        for number, panel in enumerate(manifest.panels):
            write_atomically(target / shot_name(number), (folder / panel.file).read_bytes())
        print(f"{folder} → {target} ({manifest.title}, {len(manifest.panels)} shots)")


def read_generated_story(folder: Path) -> Manifest:
    """Read the manifest of a run folder whose panels are complete and unchanged. Raises UserError."""
    manifest = read_manifest(folder / "manifest.json")
    if not manifest.panels:
        raise UserError(f"{folder} has no panels yet: let infer.py finish the story first")
    for panel in manifest.panels:
        file = folder / panel.file
        if not file.is_file() or compute_sha256(file) != panel.sha256:
            raise UserError(f"{file} is missing or has changed since it was generated: generate the story again")
    return manifest


def check_one_configuration(runs: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise UserError where a run differs from the first in its model or settings."""

    def generation_settings(manifest: Manifest) -> dict[str, Any]:
        config = {key: value for key, value in manifest.config.items() if key not in STORY_KEYS + VIDEO_KEYS}
        if isinstance(model := config.get("model"), dict):
            config["model"] = {key: value for key, value in model.items() if key != "video"}
        return {**config, "weights": manifest.weights}

    first = generation_settings(manifests[0])
    for folder, manifest in zip(runs, manifests, strict=True):
        if other := [key for key, value in generation_settings(manifest).items() if value != first.get(key)]:
            raise UserError(
                f"{folder} was generated with another {other[0]} than {runs[0]}: export it as a separate mode"
            )


def read_story_number(folder: Path) -> int:
    """Return the story number in the folder's name. Raises UserError."""
    name = folder.resolve().name
    if not re.fullmatch(r"\d{1,3}", name):
        raise UserError(
            f"{folder} is not named by a story number of the benchmark: give the numbers, for example stories=[1,2]"
        )
    return int(name)


def get_timestamp(given: str | None, runs: Sequence[Path]) -> str:
    """Return YYYYMMDD_HHMMSS: the given time, or that of the last manifest. Raises UserError."""
    if given is None:
        last = max((folder / "manifest.json").stat().st_mtime for folder in runs)
        return datetime.fromtimestamp(last, UTC).strftime("%Y%m%d_%H%M%S")
    digits = re.sub("[_-]", "", given, count=1)  # YAML reads 20250819_091354 as a number and drops the underscore
    try:
        datetime.strptime(digits, "%Y%m%d%H%M%S")
    except ValueError:
        digits = ""
    if len(digits) != 14:
        raise UserError(f"timestamp={given} is not a time: write it as 20250819_091354")
    return f"{digits[:8]}_{digits[8:]}"


def shot_name(number: int) -> str:
    return f"shot_{number:02d}.png"


def check_free(target: Path, shots: int) -> None:
    """Raise UserError where `target` contains other files, which the benchmark would also read."""
    expected = {shot_name(number) for number in range(shots)}
    if other := sorted(file.name for file in target.glob("*") if file.name not in expected):
        raise UserError(f"{target} already contains {other[0]}: remove the folder, or choose another timestamp or mode")
