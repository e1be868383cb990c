"""A run folder: panels/NNN.png, page.png, video.mp4, report.html and manifest.json; while unfinished, the progress.

Every file is written whole or not at all. The manifest is there from the start and says whether the story is complete.
A video is made from the panels: other settings of it, or its absence, leave them as they are.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from storydiffusion.errors import UserError
from storydiffusion.output.files import compute_sha256, write_atomically, write_image
from storydiffusion.output.manifest import Manifest, PanelRecord, read_manifest, write_manifest
from storydiffusion.output.page import comic_page
from storydiffusion.output.report import write_report

if TYPE_CHECKING:
    from torch import Tensor

PROGRESS = ".progress.safetensors"
RESULTS = ("page.png", "video.mp4", "report.html")
NOT_OF_PANELS = (
    "run_dir",
    "overwrite",
    "story",
    "frames",
    "video",
    "fps",
    "hold",
    "captions",
)  # keys of the configuration
SECONDS_BETWEEN_SAVES = 2.0  # at most so much work is lost when the process is killed


class RunFolder:
    """The folder of one story, opened for telling it.

    Args:
        path: made where missing.
        planned: the manifest so far: what shall be told, and with what; `video` is the record, without checksum, of
            the video that shall be made of the panels. A folder that holds other panels is refused.
        overwrite: let a folder that is complete, or holds something else, start afresh.

    Raises:
        UserError: the folder holds another story or configuration, or files of another origin, or cannot be written.
    """

    def __init__(self, path: str | Path, planned: Manifest, overwrite: bool = False):
        self.path = Path(path)
        self.manifest = planned
        found = self._found(overwrite)
        is_same = found is not None and _identity(found) == _identity(planned)
        if found is not None and not is_same and not overwrite and self._holds_work():
            raise UserError(
                f"{path} holds another story or configuration: choose another run_dir, or use overwrite=true"
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
        """Those that are made, all of them or none."""
        return self.manifest.panels

    def progress(self) -> "tuple[int, Tensor] | None":
        """(step, latents) where an interrupted telling stopped."""
        from safetensors import SafetensorError, safe_open

        file = self.path / PROGRESS
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                return int(stored.metadata()["step"]), stored.get_tensor("latents")
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{file} is damaged: remove it, and the story is told from its beginning") from error

    def save_progress(self, step: int, latents: "Tensor") -> None:
        from safetensors.torch import save

        data = save({"latents": latents.detach().cpu().contiguous()}, metadata={"step": str(step)})
        write_atomically(self.path / PROGRESS, data)

    @contextmanager
    def keeping_progress(self) -> "Iterator[Callable[[int, Tensor], None]]":
        """Yields a function of (step, latents) that saves now and then; on Ctrl-C the last step is saved as well."""
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
                f"interrupted after step {last[0]}, which {self.path} keeps: the same command goes on from there"
            ) from None

    def keep_panels(
        self, pictures: Sequence[Image.Image], panels: Sequence[PanelRecord], seconds: Mapping[str, float]
    ) -> None:
        """Writes the panels and their page, for good. `panels` come without file and checksum."""
        records = []
        for number, (picture, panel) in enumerate(zip(tqdm(pictures, "writing", unit="panel"), panels, strict=True), 1):
            file = f"panels/{number:03d}.png"
            write_image(self.path / file, picture)
            records.append(replace(panel, file=file, sha256=compute_sha256(self.path / file)))
        page = comic_page(pictures, [panel.caption for panel in panels], self.manifest.title)
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
        """Writes the report, and last the manifest, which says complete. Panels and video are there."""
        video = self.manifest.video
        if video is not None:
            video = replace(video, sha256=compute_sha256(self.path / video.file))
        self.manifest = replace(
            self.manifest, video=video, versions=versions, seconds={**self.manifest.seconds, **seconds}, complete=True
        )
        write_report(self.path, self.manifest, settings)
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
        elif self._holds_work() and not overwrite:
            raise UserError(
                f"{self.path} holds pictures but no manifest.json: choose another run_dir, or overwrite=true"
            )
        return None

    def _is_whole(self, found: Manifest) -> bool:
        results = ["report.html", *([found.video.file] if found.video else [])]
        return found.complete and self._has_panels(found) and all((self.path / name).exists() for name in results)

    def _has_panels(self, found: Manifest) -> bool:
        results = ["page.png", *[panel.file for panel in found.panels]]
        return bool(found.panels) and all((self.path / name).exists() for name in results)

    def _holds_work(self) -> bool:
        return any((self.path / name).exists() for name in ("panels", "transitions", *RESULTS, PROGRESS))

    def _clear(self) -> None:
        """Removes what an earlier telling left; the manifest goes first, so that the rest never looks whole."""
        try:
            for file in ("manifest.json", *RESULTS, PROGRESS):
                (self.path / file).unlink(missing_ok=True)
            number = "[0-9][0-9][0-9]"
            for names in (f"panels/{number}", f"portraits/{number}", f"transitions/{number}-{number}"):
                for file in self.path.glob(f"{names}.png"):
                    file.unlink()
        except NotADirectoryError:
            pass  # write_manifest says it
        except OSError as error:
            raise UserError(f"cannot clear {self.path}: {error.strerror}; choose another run_dir") from error


def _has_video(found: Manifest | None, planned: Manifest) -> bool:
    """Whether the video that was made is the one that is wanted; where none is, any will do."""
    made = found and found.video and replace(found.video, sha256="")
    return planned.video is None or made == planned.video


def _identity(manifest: Manifest) -> Any:
    """What must agree for one telling to go on where another stopped: everything but where, when, and the video."""
    config = {key: value for key, value in manifest.config.items() if key not in NOT_OF_PANELS}
    if isinstance(model := config.get("model"), dict):
        config["model"] = {key: value for key, value in model.items() if key != "video"}
    return json.loads(
        json.dumps([manifest.title, manifest.model, manifest.origin, config, asdict(manifest)["weights"]])
    )
