"""A run folder: panels/NNN.png, page.png, video.mp4, report.html and manifest.json; while unfinished, the progress.

Every file is written atomically. The manifest is written first and says whether the story is complete. A video is made
from the panels: changing its settings, or leaving it out, keeps the panels.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically, write_image
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output.manifest import Manifest, PanelRecord, read_manifest, write_manifest
from storydiffusion.output.page import comic_page
from storydiffusion.output.report import write_report

if TYPE_CHECKING:
    from torch import Tensor

PROGRESS = ".progress.safetensors"
RESULTS = ("page.png", "video.mp4", "report.html")
NOT_OF_PANELS = ("run_dir", "overwrite", "story", "frames", "video", "fps", "hold", "captions", "font")
"""keys of the configuration that panels do not depend on"""
SECONDS_BETWEEN_SAVES = 2.0  # a killed process loses at most this much work


class RunFolder:
    """The folder of one story, opened to generate it or to resume.

    Args:
        path: created if missing.
        planned: the manifest of what to generate, and with what; `video` is the record, without checksum, of the video
            to make from the panels. A folder with other panels is refused.
        overwrite: start from scratch in a folder that is complete or contains something else.

    Raises:
        UserError: the folder contains another story or configuration, or files of another origin, or cannot be written.
    """

    def __init__(self, path: str | Path, planned: Manifest, overwrite: bool = False):
        self.path = Path(path)
        self.manifest = planned
        self._digest = hashlib.sha256(json.dumps(_identity(planned), sort_keys=True).encode()).hexdigest()
        found = self._found(overwrite)
        is_same = found is not None and _identity(found) == _identity(planned)
        if found is not None and not is_same and not overwrite and self._contains_work():
            raise UserError(
                f"{path} contains another story or configuration: choose another run_dir, or pass overwrite=true"
            )
        was_complete = found is not None and is_same and self._is_whole(found)
        self.is_complete = was_complete and not overwrite and _has_video(found, planned)
        if self.is_complete:
            return
        if (was_complete and overwrite) or not is_same:
            self._clear()
        elif found is not None and self._has_panels(found):
            self.manifest = replace(planned, panels=found.panels, seconds=found.seconds)
        write_manifest(self.path / "manifest.json", self.manifest)

    @property
    def panels(self) -> tuple[PanelRecord, ...]:
        """The finished panels: all of them or none."""
        return self.manifest.panels

    @property
    def fonts(self) -> Sequence[str]:
        """The font files of the configuration, which come before the bundled fonts."""
        return self.manifest.config.get("font") or ()

    def progress(self) -> "tuple[int, Tensor] | None":
        """Return (steps done, latents) of an interrupted run; None if there is no progress, or that of another run."""
        from safetensors import SafetensorError, safe_open

        file = self.path / PROGRESS
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                if stored.metadata().get("run") != self._digest:
                    print(f"{file} is of another run: starting from the first step", file=sys.stderr)
                    return None
                return int(stored.metadata()["step"]), stored.get_tensor("latents")
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{file} is damaged: remove it to generate the story from its beginning") from error

    def save_progress(self, step: int, latents: "Tensor") -> None:
        """Save the latents after `step` steps, for `progress`."""
        from safetensors.torch import save

        data = save({"latents": latents.detach().cpu().contiguous()}, metadata={"step": str(step), "run": self._digest})
        write_atomically(self.path / PROGRESS, data)

    @contextmanager
    def keeping_progress(self) -> "Iterator[Callable[[int, Tensor], None]]":
        """Yield a function of (step, latents) that saves every few seconds; Ctrl-C saves the last step as well."""
        last: tuple[int, Tensor] | None = None
        saved_at = time.monotonic()

        def keep(step: int, latents: "Tensor") -> None:
            nonlocal last, saved_at
            last = (step, latents)
            if time.monotonic() - saved_at >= SECONDS_BETWEEN_SAVES:
                self.save_progress(step, latents)
                saved_at = time.monotonic()

        try:
            yield keep
        except KeyboardInterrupt:
            if last is None:
                raise
            self.save_progress(*last)
            raise KeyboardInterrupt(
                f"interrupted after step {last[0]}, saved in {self.path}: the same command resumes from there"
            ) from None

    def keep_panels(
        self, images: Sequence[Image.Image], panels: Sequence[PanelRecord], seconds: Mapping[str, float]
    ) -> None:
        """Write the panels and their page. `panels` come without file and checksum."""
        records = []
        for number, (image, panel) in enumerate(zip(tqdm(images, "writing", unit="panel"), panels, strict=True), 1):
            file = f"panels/{number:03d}.png"
            write_image(self.path / file, image)
            records.append(replace(panel, file=file, sha256=compute_sha256(self.path / file)))
        page = comic_page(images, [panel.caption for panel in panels], self.manifest.title, self.fonts)
        write_image(self.path / "page.png", page)
        self.manifest = replace(self.manifest, panels=tuple(records), seconds=dict(seconds))
        write_manifest(self.path / "manifest.json", self.manifest)
        (self.path / PROGRESS).unlink(missing_ok=True)

    def finish(
        self,
        settings: Mapping[str, str | int | float | bool],
        versions: dict[str, str],
        seconds: Mapping[str, float],
    ) -> None:
        """Write the report, and last the manifest, marked complete. Panels and video must exist."""
        video = self.manifest.video
        if video is not None:
            video = replace(video, sha256=compute_sha256(self.path / video.file))
        self.manifest = replace(
            self.manifest, video=video, versions=versions, seconds={**self.manifest.seconds, **seconds}, complete=True
        )
        write_report(self.path, self.manifest, settings, self.fonts)
        write_manifest(self.path / "manifest.json", self.manifest)
        self.is_complete = True

    def _found(self, overwrite: bool) -> Manifest | None:
        file = self.path / "manifest.json"
        if file.exists():
            try:
                return read_manifest(file)
            except UserError:
                if not overwrite:
                    raise
        elif self._contains_work() and not overwrite:
            raise UserError(
                f"{self.path} contains images but no manifest.json: choose another run_dir, or pass overwrite=true"
            )
        return None

    def _is_whole(self, found: Manifest) -> bool:
        results = ["report.html", *([found.video.file] if found.video else [])]
        return found.complete and self._has_panels(found) and all((self.path / name).exists() for name in results)

    def _has_panels(self, found: Manifest) -> bool:
        results = ["page.png", *[panel.file for panel in found.panels]]
        return bool(found.panels) and all((self.path / name).exists() for name in results)

    def _contains_work(self) -> bool:
        return any((self.path / name).exists() for name in ("panels", "transitions", *RESULTS, PROGRESS))

    def _clear(self) -> None:
        """Remove what an earlier run left; the manifest goes first, so that the rest never looks complete."""
        try:
            for file in ("manifest.json", *RESULTS, PROGRESS):
                (self.path / file).unlink(missing_ok=True)
            number = "[0-9][0-9][0-9]"
            for names in (f"panels/{number}", f"portraits/{number}", f"transitions/{number}-{number}"):
                for file in self.path.glob(f"{names}.png"):
                    file.unlink()
        except NotADirectoryError:
            pass  # write_manifest reports it
        except OSError as error:
            raise UserError(f"cannot clear {self.path}: {error.strerror}; choose another run_dir") from error


def _has_video(found: Manifest | None, planned: Manifest) -> bool:
    """Return whether the existing video is the planned one; without a planned video any will do."""
    made = found and found.video and replace(found.video, sha256="")
    return planned.video is None or made == planned.video


def _identity(manifest: Manifest) -> Any:
    """Return what two manifests must share for a run to resume: everything but place, time and video."""
    config = {key: value for key, value in manifest.config.items() if key not in NOT_OF_PANELS}
    if isinstance(model := config.get("model"), dict):
        config["model"] = {key: value for key, value in model.items() if key != "video"}
    return json.loads(
        json.dumps([manifest.title, manifest.model, manifest.origin, config, asdict(manifest)["weights"]])
    )
