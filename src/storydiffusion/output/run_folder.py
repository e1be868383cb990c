"""A run folder: panels/NNN.png, page.png, video.mp4, report.html and manifest.json; while unfinished, the progress.

Every file is written atomically. The manifest is written first and says whether the story is complete. A video is made
from the panels: changing its settings, or leaving it out, keeps the panels. An edited story keeps the images of the
panels whose keys are the same.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import remove_drafts, write_atomically, write_image
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.output import kept_features as features
from storydiffusion.output.differences import Difference, find_differences
from storydiffusion.output.exports import remove_exports
from storydiffusion.output.kept_takes import find_lost_takes, find_staying_takes
from storydiffusion.output.manifest import (
    PAGE,
    REPORT,
    Manifest,
    PanelRecord,
    find_damage,
    read_manifest,
    write_manifest,
)
from storydiffusion.output.page import comic_page
from storydiffusion.output.page_settings import DEFAULT_PAGE, PageSettings
from storydiffusion.output.report import write_report
from storydiffusion.output.run_identity import get_identity

if TYPE_CHECKING:
    from torch import Tensor

PROGRESS = ".progress.safetensors"
RESULTS = (PAGE, "video.mp4", REPORT)
FOLDERS = ("characters", "panels", "portraits", "takes", "transitions", "exports", features.FOLDER)
NUMBER = "[0-9][0-9][0-9]"
TAKES = f"takes/{NUMBER}-{NUMBER}.png"
STRIPS = f"transitions/{NUMBER}-{NUMBER}.png"
SECONDS_BETWEEN_SAVES = 2.0  # a killed process loses at most this much work
SHOWN_DIFFERENCES = 3  # in an error


class RunFolder:
    """The folder of one story, opened to generate it or to resume.

    Args:
        path: created if missing.
        planned: the manifest of what to generate, and with what; `video` is the record, without checksum, of the video
            to make from the panels. A folder with other panels is refused.
        overwrite: start from scratch in a folder that is complete; replace panels of another story or configuration.
        plan_panels: returns the planned records of the panels, without file and checksum; called where the folder
            contains another story or configuration. None: nothing of another one is kept.

    Attributes:
        differences: from the story and configuration that the folder contained.

    Raises:
        UserError: the folder contains another story or configuration, whose panels would have to be generated again or
            removed, or files of another origin, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        planned: Manifest,
        overwrite: bool = False,
        plan_panels: Callable[[], Sequence[PanelRecord]] | None = None,
    ):
        self.path = Path(path)
        self.manifest = planned
        self.damage: dict[str, str] = {}  # results that were made but are no longer there: file → what is wrong
        self.differences: list[Difference] = []
        self._earlier: tuple[PanelRecord, ...] = ()  # panels whose images may be kept
        self._taken: set[str] = set()  # checksums of their takes
        self._intact: set[str] = set()  # results of the planned run that need not be made
        self._computed: Sequence[int] = ()
        remove_drafts(self.path, *(self.path / name for name in FOLDERS))
        found = self._found(overwrite)
        self.is_complete = False
        if found is None:
            self._clear()
        elif get_identity(found) == get_identity(planned):
            if found.complete and overwrite:
                self._clear()
            else:
                self._restore_takes(found)
                self.damage = find_damage(self.path, found)
                self.is_complete = found.complete and not self.damage and _has_video(found, planned)
                self._adopt(found)
        else:
            self.differences = find_differences(found, planned)
            self._edit(found, plan_panels() if plan_panels else (), overwrite)
        if not self.is_complete:
            remove_exports(self.path)
            write_manifest(self.path / "manifest.json", self.manifest)

    @property
    def panels(self) -> tuple[PanelRecord, ...]:
        """The finished panels: all of them or none."""
        panels = self.manifest.panels
        return panels if all(panel.file in self._intact for panel in panels) else ()

    @property
    def lacks_video(self) -> bool:
        """Whether a video is planned and is not there yet."""
        video = self.manifest.video
        return video is not None and video.file not in self._intact

    @property
    def fonts(self) -> Sequence[str]:
        """The font files of the configuration, which come before the bundled fonts."""
        return self.manifest.config.get("font") or ()

    @property
    def page_settings(self) -> PageSettings:
        """Layout and dimensions of the page; the defaults in a configuration that has none."""
        return replace(DEFAULT_PAGE, **self.manifest.config.get("page", {}))

    def kept_images(self, planned: Sequence[PanelRecord]) -> dict[int, Image.Image]:
        """Return the images of earlier panels that the planned ones keep, by index; their keys are the same."""
        kept = self._kept_panels
        return {
            index: _read_image(self.path / kept[each.key].file)
            for index, each in enumerate(planned)
            if each.key in kept
        }

    @property
    def _kept_panels(self) -> dict[str, PanelRecord]:
        """The earlier panels whose images are there, by key."""
        return {each.key: each for each in self._earlier if each.key and self._is_intact(each)}

    def progress(self, computed: Sequence[int] = ()) -> "tuple[int, Tensor] | None":
        """Return (steps done, latents) of an interrupted run; None if there is no progress, or that of another run.

        Args:
            computed: panels whose latents are kept from here on; (): all.
        """
        from safetensors import SafetensorError, safe_open

        self._computed = computed
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

    @property
    def _digest(self) -> str:
        """Of the run and of the panels whose latents are kept."""
        run = [get_identity(self.manifest), *self._computed]
        return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()

    @contextmanager
    def keeping_progress(self) -> "Iterator[Callable[[int, Tensor], None]]":
        """Yield a function of (step, latents) that saves every few seconds; Ctrl-C also saves the last step."""
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
        """Write the panels that are not there yet, and the page. `panels` come without file and checksum."""
        records, kept = [], self._kept_panels
        for number, (image, panel) in enumerate(zip(tqdm(images, "writing", unit="panel"), panels, strict=True), 1):
            file = _panel_file(number)
            if (old := kept.get(panel.key)) and old.sha256 in self._taken:  # a take has other inputs than planned
                panel = replace(panel, prompt=old.prompt, negative_prompt=old.negative_prompt, seed=old.seed)
            if file not in self._intact:
                write_image(self.path / file, image)
                self._intact.add(file)
            records.append(replace(panel, file=file, sha256=compute_sha256(self.path / file)))
        if tuple(records) != self.manifest.panels:  # the rest was made from other panels, or from none
            self._intact = {record.file for record in records}
        self.manifest = replace(
            self.manifest, panels=tuple(records), earlier=(), seconds={**self.manifest.seconds, **seconds}
        )
        self.make_page()
        (self.path / PROGRESS).unlink(missing_ok=True)

    def make_page(self) -> None:
        """Make the page from the panels if it is not there yet."""
        if PAGE not in self._intact:
            images = [_read_image(self.path / panel.file) for panel in self.panels]
            captions, says = zip(*((panel.caption, panel.says) for panel in self.panels), strict=True)
            page = comic_page(images, captions, self.manifest.title, self.fonts, says, self.page_settings)
            write_image(self.path / PAGE, page)
            self._intact.add(PAGE)
        results = {file: compute_sha256(self.path / file) for file in [PAGE, *(panel.file for panel in self.panels)]}
        kept = {file: sha256 for file, sha256 in self.manifest.results.items() if file in self._intact}
        self.manifest = replace(self.manifest, results=kept | results)
        write_manifest(self.path / "manifest.json", self.manifest)

    def finish(
        self,
        settings: Mapping[str, str | int | float | bool],
        versions: dict[str, str],
        seconds: Mapping[str, float],
    ) -> None:
        """Write the report, and last the manifest, marked complete. Panels and video must exist."""
        self._remove_surplus()
        made = self.manifest.video
        video = made and replace(made, sha256=compute_sha256(self.path / made.file))
        if video != made or REPORT not in self._intact:
            self.manifest = replace(
                self.manifest, video=video, versions=versions, seconds={**self.manifest.seconds, **seconds}
            )
            write_report(self.path, self.manifest, settings, self.fonts)
        files = [PAGE, REPORT, *(panel.file for panel in self.manifest.panels)]
        if video is not None:
            files += [video.file, *(path.relative_to(self.path).as_posix() for path in self.path.glob(STRIPS))]
        results = {file: compute_sha256(self.path / file) for file in sorted(files)}
        self.manifest = replace(self.manifest, results=results, complete=True)
        write_manifest(self.path / "manifest.json", self.manifest)
        self.is_complete = True

    def _edit(self, found: Manifest, plan: Sequence[PanelRecord], overwrite: bool) -> None:
        """Take over from another story or configuration the images of the panels that are the same.

        Without `overwrite` every image stays: only page, video and report may differ, and the order of the panels.
        """
        earlier = [each for each in found.earlier or found.panels if each.key and self._is_intact(each)]
        known, keys = {each.key: each for each in earlier}, [each.key for each in plan]
        kept = [known.get(key) for key in keys]
        staying = {place for place, old in enumerate(kept) if old and old.file == _panel_file(place + 1)}
        keeps_all = bool(earlier) and len(earlier) == len(found.earlier or found.panels) and known.keys() == set(keys)
        if not overwrite and self._contains_work() and not keeps_all:
            raise UserError(self._describe_edit(plan, known.keys(), find_lost_takes(found, staying)))
        if lost := find_lost_takes(found, staying):
            print(f"removing the takes of {describe_panels(lost)}", file=sys.stderr)
        if not known.keys() & set(keys):
            self._clear()
            return
        self._earlier, self._taken = tuple(earlier), {take.sha256 for take in found.takes}
        self._intact = {_panel_file(place + 1) for place in staying}
        self.manifest = replace(
            self.manifest,
            earlier=self._earlier,
            seconds=found.seconds,
            takes=find_staying_takes(found, staying, len(plan)),
        )
        takes = {self.path / take.file for take in self.manifest.takes}
        surplus = [file for file in self.path.glob(TAKES) if file not in takes]
        for file in (*(self.path / name for name in (*RESULTS, PROGRESS)), *surplus):
            file.unlink(missing_ok=True)

    def _describe_edit(self, plan: Sequence[PanelRecord], known: Collection[str], lost: Sequence[int]) -> str:
        """Return why the folder is refused: what differs, which panels would be generated, and which lose takes."""
        shown = "; ".join(each.what for each in self.differences[:SHOWN_DIFFERENCES])
        more = len(self.differences) - SHOWN_DIFFERENCES
        text = f"{self.path} contains another story or configuration"
        text += f" ({shown}{f' and {more} more' if more > 0 else ''})" if shown else ""
        made = [number for number, each in enumerate(plan, 1) if each.key not in known]
        what = f", which generates {describe_panels(made, len(plan))}" if plan else ""
        what += f" and removes the takes of {describe_panels(lost)}" if lost else ""
        return f"{text}: choose another run_dir, or pass overwrite=true{what}"

    def _restore_takes(self, found: Manifest) -> None:
        """Restore damaged panels that show a take from the take's file."""
        takes = {take.sha256: take.file for take in found.takes}
        for panel in found.panels:
            if panel.sha256 in takes and not self._is_intact(panel):
                take = replace(panel, file=takes[panel.sha256])
                if self._is_intact(take):
                    write_atomically(self.path / panel.file, (self.path / take.file).read_bytes())

    def _is_intact(self, panel: PanelRecord) -> bool:
        try:
            return compute_sha256(self.path / panel.file) == panel.sha256
        except OSError:
            return False

    def _remove_surplus(self) -> None:
        """Remove panels, transitions and features that an earlier story had and this one has not."""
        panels = {each.file for each in self.manifest.panels}
        script = self.manifest.config.get("script", {}).get("panels", ())
        cuts = {number for number, panel in enumerate(script, 1) if panel.get("cut")}
        for file in self.path.glob(f"panels/{NUMBER}.png"):
            if file.relative_to(self.path).as_posix() not in panels:
                file.unlink()
        for file in self.path.glob(STRIPS):
            if (number := int(file.stem.partition("-")[2])) > len(panels) or number in cuts:
                file.unlink()
        features.remove_features(self.path, [each.sha256 for each in (*self.manifest.panels, *self.manifest.takes)])

    def _adopt(self, found: Manifest) -> None:
        """Take over what an earlier run of the same panels has made."""
        self._earlier, self._taken = found.earlier or found.panels, {take.sha256 for take in found.takes}
        self._intact = found.stated_results.keys() - self.damage.keys()
        video, planned = found.video, self.manifest.video
        damaged_strips = [file for file in self.damage if PurePosixPath(file).match(STRIPS)]
        for file in damaged_strips:  # their keys may still say that they fit
            (self.path / file).unlink(missing_ok=True)
        if video is not None and (damaged_strips or not _has_video(found, self.manifest)):
            self._intact -= {video.file}
        is_extra = planned is None and video is not None and video.file in self._intact
        keeps_video = is_extra or _has_same_video(found, self.manifest)
        if not keeps_video and video != planned:
            self._intact -= {REPORT}
        self.manifest = replace(
            self.manifest,
            panels=found.panels,
            versions=found.versions,
            seconds=found.seconds,
            video=video if keeps_video else planned,
            earlier=found.earlier,
            takes=found.takes,
            results={file: sha256 for file, sha256 in found.results.items() if file in self._intact},
        )

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

    def _contains_work(self) -> bool:
        return any((self.path / name).exists() for name in ("panels", "transitions", *RESULTS, PROGRESS))

    def _clear(self) -> None:
        """Remove what an earlier run left; the manifest goes first, so that the rest never looks complete."""
        try:
            for file in ("manifest.json", *RESULTS, PROGRESS):
                (self.path / file).unlink(missing_ok=True)
            for names in (f"panels/{NUMBER}.png", f"portraits/{NUMBER}.png", STRIPS, TAKES):
                for file in self.path.glob(names):
                    file.unlink()
            features.remove_features(self.path, stay=())
        except NotADirectoryError:
            pass  # write_manifest reports it
        except OSError as error:
            raise UserError(f"cannot clear {self.path}: {error.strerror}; choose another run_dir") from error


def describe_panels(numbers: Sequence[int], panels: int | None = None) -> str:
    """Return numbers of panels in words: "no panel", "panel 2", "panels 1, 2 and 4", and of `panels` "all 4 panels"."""
    if not numbers:
        return "no panel"
    if panels is not None and len(numbers) == panels > 1:
        return f"all {panels} panels"
    first, last = numbers[:-1], numbers[-1]
    return f"panels {', '.join(map(str, first))} and {last}" if first else f"panel {last}"


def _panel_file(number: int) -> str:
    return f"panels/{number:03d}.png"


def _read_image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _has_video(found: Manifest | None, planned: Manifest) -> bool:
    """Return whether the existing video is the planned one; without a planned video any will do."""
    return found is not None and (planned.video is None or _has_same_video(found, planned))


def _has_same_video(found: Manifest, planned: Manifest) -> bool:
    return (found.video and replace(found.video, sha256="")) == planned.video
