"""report.html: the story with prompts and settings in one self-contained file that opens offline.

Only a video too large to embed stays a separate file.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.output.html_page import render_page
from storydiffusion.output.manifest import Manifest
from storydiffusion.output.page_settings import page_columns
from storydiffusion.output.typefaces import FONTS, coverage, subset
from storydiffusion.output.video_file import read_size

NOTES = {
    "pretrained": "",
    "miniature": "These images come from the miniature, a model of a few million parameters trained only on StoryWorld,"
    " a small drawn world. They show how the method works, not the image quality of a full-scale model.",
    "random": "The weights of this model are random and untrained, so its images are noise. This run only checks that"
    " all parts work together.",
}
LARGEST_EMBEDDED_VIDEO = 8 * 2**20  # bytes; a larger one stays a separate file
MEDIA_TYPES = {".png": "image/png", ".mp4": "video/mp4", ".otf": "font/otf"}


def write_report(
    run_dir: str | Path,
    manifest: Manifest,
    settings: Mapping[str, str | int | float | bool],
    fonts: Sequence[str] = (),
) -> None:
    """Write `run_dir`/report.html from the manifest and the images and video that it names.

    `settings` are the key settings shown first (name → value: rate, variant, seed, model, steps …); the full
    configuration is collapsed below them. `fonts` are files that come before the bundled fonts. Raises UserError for a
    missing file or an unwritable folder.
    """
    run_dir = Path(run_dir)
    video = _video(run_dir, manifest.video.file) if manifest.video else None
    html = render_page(
        "storydiffusion.output",
        "report.html.j2",
        manifest=manifest,
        note=NOTES[manifest.origin],
        columns=page_columns(len(manifest.panels)),
        panels=[(panel, _embed(run_dir / panel.file)) for panel in manifest.panels],
        video=video,
        video_size=read_size(run_dir / manifest.video.file) if manifest.video else None,
        media_sources="data:" if video is None or video.startswith("data:") else "'self' file:",
        fonts=_fonts(
            manifest.title
            + "".join(f"{panel.caption}“{panel.says}”" if panel.says else panel.caption for panel in manifest.panels),
            fonts,
        ),
        settings=settings,
        weights=manifest.weights | (manifest.video.weights if manifest.video else {}),
        config=yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True),
    )
    write_atomically(run_dir / "report.html", html.encode())


def _fonts(text: str, fonts: Sequence[str]) -> dict[str, str]:
    """Subset the fonts to the characters of `text`: family → data URI, for the families in use."""
    embedded, left = {}, set(text)
    families = {file: f"Story font {number}" for number, file in enumerate(fonts, 1)} | {name: name for name in FONTS}
    for font, family in families.items():
        had = {char for char in left if ord(char) in coverage(font)}
        if had:
            embedded[family] = _data_uri(".otf", subset(font, "".join(sorted(had))))
        left -= had
    return embedded


def _video(run_dir: Path, file: str) -> str:
    """Return the source of the <video> element: a data URI or the file name."""
    path = run_dir / file
    too_large = path.exists() and path.stat().st_size > LARGEST_EMBEDDED_VIDEO
    return quote(file) if too_large else _embed(path)


def _embed(path: Path) -> str:
    try:
        return _data_uri(path.suffix, path.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot embed {path} in the report: {reason}; generate it again") from error


def _data_uri(suffix: str, data: bytes) -> str:
    if suffix not in MEDIA_TYPES:
        raise UserError(f"cannot embed a file with suffix {suffix!r} in the report: use {', '.join(MEDIA_TYPES)}")
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"
