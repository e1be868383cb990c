"""The files of projects that the browser may fetch, and the policies that keep a page from running anything else."""

import re
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.output.exports import FOLDER, find_pattern
from storydiffusion.studio.project import find_project

SHOWN = re.compile(r"panels/\d{3}\.png|takes/\d{3}-\d{3}\.png|page\.png|video\.mp4|report\.html")
MEDIA_TYPES = {
    ".png": "image/png", ".mp4": "video/mp4", ".html": "text/html; charset=utf-8", ".pdf": "application/pdf",
    ".cbz": "application/vnd.comicbook+zip", ".zip": "application/zip", ".gif": "image/gif", ".webp": "image/webp",
}  # fmt: skip
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "frame-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""of Gradio's page, whose scripts are inline: nothing is fetched from or sent to another place"""
FILE_POLICY = "sandbox; frame-ancestors 'none'"
"""of a project's files: no script runs, and the report has a policy of its own beside"""


def find_file(root: Path, name: str, file: str) -> Path:
    """Return a file of a project that may be shown.

    Raises:
        UserError: no such project, another kind of file, or one that a link leads out of the project.
    """
    folder = find_project(root, name)
    path = folder / file
    is_export = file.startswith(f"{FOLDER}/") and find_pattern(file.removeprefix(f"{FOLDER}/")) and file.count("/") == 1
    if not (SHOWN.fullmatch(file) or is_export) or not path.is_file():
        raise UserError(f"{name} has no file {file!r} to show")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name}/{file} leads out of the project")
    return path
