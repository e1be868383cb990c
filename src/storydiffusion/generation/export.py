"""Export a finished run folder."""

from collections.abc import Sequence
from pathlib import Path

from storydiffusion.output.exports import FinishedRun, write_exports
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.output.manifest import read_manifest
from storydiffusion.output.typefaces import check_fonts


def export_run(
    folder: Path, exports: Sequence[str], paper: str | None, fonts: Sequence[str] | None = None
) -> list[Path]:
    """Write exports of a finished run and return their files.

    Args:
        fonts: files that come before the bundled fonts; None: those of the run.

    Raises:
        UserError: as `write_exports`, or another process owns the folder.
    """
    manifest = read_manifest(folder / "manifest.json")
    chosen = manifest.config.get("font") or () if fonts is None else fonts
    check_fonts(chosen)
    with own_folder(folder):
        return write_exports(FinishedRun(folder, manifest, chosen, paper), exports)
