"""Files to share, made from a finished run: `exports=[pdf,cbz]` of infer, and `storydiffusion export`.

They lie in exports/ of the run folder. An export is one entry of EXPORTS.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft, write_atomically
from storydiffusion.output.drawing import Drawing, rasterize
from storydiffusion.output.film_strip import open_strip
from storydiffusion.output.manifest import Manifest, find_damage
from storydiffusion.output.page import PagePanel, compose_page, compose_pages
from storydiffusion.output.page_settings import DEFAULT_PAGE
from storydiffusion.output.pdf import POINTS_PER_INCH, write_pdf
from storydiffusion.output.video_file import write_video

FOLDER = "exports"
PAPERS = {"a4": (210, 297), "a5": (148, 210), "letter": (215.9, 279.4), "comic": (168, 260)}
"""Name → width and height in millimetres."""
MILLIMETRES_PER_INCH = 25.4
WEBP_QUALITY = 90
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of all files in an archive, so that it is reproducible


@dataclass(frozen=True)
class FinishedRun:
    """A finished run folder; `fonts` are files that come before the bundled fonts, `paper` is one of PAPERS or None."""

    path: Path
    manifest: Manifest
    fonts: Sequence[str] = ()
    paper: str | None = None

    def compose_pages(self) -> list[Drawing]:
        """Return the story on pages of the paper's shape, or on one as high as page.png."""
        panels = [PagePanel(_read(self.path / each.file), each.caption, each.says) for each in self.manifest.panels]
        settings = replace(DEFAULT_PAGE, **self.manifest.config.get("page", {}))
        if self.paper is None:
            return [compose_page(panels, self.manifest.title, self.fonts, settings)]
        width, height = PAPERS[self.paper]
        return compose_pages(panels, self.manifest.title, self.fonts, settings, height / width)

    def file(self, name: str) -> Path:
        return self.path / FOLDER / name

    def transitions(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the frames, uint8 (F, H, W, 3), of each transition."""
        video = self.manifest.video
        assert video is not None
        for path in sorted((self.path / "transitions").glob("*.png")):
            yield path.stem, open_strip(path, video.settings["frames"])

    @property
    def fps(self) -> float:
        assert self.manifest.video is not None
        return self.manifest.video.settings["fps"]


def export_pdf(run: FinishedRun) -> list[Path]:
    """Write the pages with text that can be searched and scaled."""
    width = PAPERS[run.paper][0] / MILLIMETRES_PER_INCH * POINTS_PER_INCH if run.paper else None
    write_pdf(run.file("story.pdf"), run.compose_pages(), run.manifest.title, width)
    return [run.file("story.pdf")]


def export_cbz(run: FinishedRun) -> list[Path]:
    """Write the pages as a comic book archive: images in order, and ComicInfo.xml with the title."""
    pages = run.compose_pages()
    info = f"<Title>{escape(run.manifest.title)}</Title><PageCount>{len(pages)}</PageCount>"
    files = [(f"{number:03d}.png", _encode(rasterize(page), "PNG")) for number, page in enumerate(pages, 1)]
    files.append(("ComicInfo.xml", f'<?xml version="1.0" encoding="utf-8"?>\n<ComicInfo>{info}</ComicInfo>\n'.encode()))
    _write_archive(run.file("story.cbz"), files)
    return [run.file("story.cbz")]


def export_gif(run: FinishedRun) -> list[Path]:
    """Write each transition as an endless GIF, in 256 colors."""
    return _export_animations(run, "GIF")


def export_webp(run: FinishedRun) -> list[Path]:
    """Write each transition as an endless WebP."""
    return _export_animations(run, "WEBP", quality=WEBP_QUALITY)


def export_mp4(run: FinishedRun) -> list[Path]:
    """Write each transition as a video file."""
    written = []
    for name, frames in run.transitions():
        write_video(run.file(f"{name}.mp4"), list(frames), run.fps)
        written.append(run.file(f"{name}.mp4"))
    return written


def export_zip(run: FinishedRun) -> list[Path]:
    """Write one archive of the run folder's results, and of all that is exported there."""
    others = (each for each in run.file("").glob("*") if find_pattern(each.name) and each.suffix != ".zip")
    files = [*(run.path / name for name in ("manifest.json", *sorted(run.manifest.stated_results))), *sorted(others)]
    contents = ((file.relative_to(run.path).as_posix(), file.read_bytes()) for file in files)
    _write_archive(run.file("story.zip"), contents)
    return [run.file("story.zip")]


EXPORTS: dict[str, Callable[[FinishedRun], list[Path]]] = {
    "pdf": export_pdf,
    "cbz": export_cbz,
    "gif": export_gif,
    "webp": export_webp,
    "mp4": export_mp4,
    "zip": export_zip,
}
"""Name → what writes it and returns the files. `zip` is last, since it contains the others."""
OF_TRANSITIONS = ("gif", "webp", "mp4")


def check_exports(names: Sequence[str], paper: str | None) -> None:
    """Raise UserError for a name that is not in EXPORTS, or a paper that is not in PAPERS."""
    for name in names:
        if name not in EXPORTS:
            raise UserError(f"exports={name} is not one of {', '.join(EXPORTS)}: write exports=[pdf,cbz]")
    if paper is not None and paper not in PAPERS:
        raise UserError(f"paper={paper} is not one of {', '.join(PAPERS)}")


def check_transitions(names: Sequence[str], has_video: bool) -> None:
    """Raise UserError for an export of transitions where there is no video."""
    for name in names:
        if name in OF_TRANSITIONS and not has_video:
            raise UserError(f"exports={name} shows transitions, and there is no video: leave it out, or set video=on")


def write_exports(run: FinishedRun, names: Sequence[str]) -> list[Path]:
    """Write exports of a finished run, and return their files.

    Raises:
        UserError: an unfinished or damaged run, no video for an export of transitions, or a place that cannot be
            written.
    """
    check_exports(names, run.paper)
    check_transitions(names, run.manifest.video is not None)
    if not run.manifest.complete:
        raise UserError(f"{run.path} is unfinished: finish it with storydiffusion infer")
    for file, problem in find_damage(run.path, run.manifest).items():
        raise UserError(f"{run.path / file} {problem}: make it again with storydiffusion infer")
    return [file for name, export in EXPORTS.items() if name in names for file in export(run)]


def remove_exports(folder: Path) -> None:
    """Remove what `write_exports` has written into a run folder; other files stay."""
    for file in (folder / FOLDER).glob("*"):
        if find_pattern(file.name):
            file.unlink()


def find_pattern(name: str) -> str | None:
    """Return the pattern of exported files that a name matches, None for a file of the user."""
    number = "[0-9][0-9][0-9]"
    patterns = ("story.pdf", "story.cbz", "story.zip", *(f"{number}-{number}.{suffix}" for suffix in OF_TRANSITIONS))
    return next((pattern for pattern in patterns if Path(name).match(pattern)), None)


def _export_animations(run: FinishedRun, form: str, **options: int) -> list[Path]:
    written = []
    for name, frames in run.transitions():
        first, *others = map(Image.fromarray, frames)
        shown = {"save_all": True, "append_images": others, "duration": round(1000 / run.fps), "loop": 0}
        file = run.file(f"{name}.{form.lower()}")
        write_atomically(file, _encode(first, form, **shown, **options))
        written.append(file)
    return written


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _write_archive(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, most of them compressed already, without compression."""
    with draft(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
