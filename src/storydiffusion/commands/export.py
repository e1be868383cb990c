"""`storydiffusion export`: write files to share from a finished run folder."""

from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError


@dataclass
class ExportConfig:
    """conf/export.yaml."""

    run_dir: str
    exports: list[str]
    paper: str | None
    font: list[str] | None  # null: those of the run

    def __post_init__(self) -> None:
        from storydiffusion.output.exports import check_exports

        if not self.exports:
            raise UserError("exports=[] names no file to write: write exports=[pdf]")
        check_exports(self.exports, self.paper)


@command(ExportConfig)
def main(config: ExportConfig) -> None:
    """Run the verb."""
    export_run(Path(config.run_dir), config.exports, config.paper, config.font)


def export_run(folder: Path, exports: list[str], paper: str | None, fonts: list[str] | None = None) -> None:
    """Write exports of a finished run and print their places. Raises UserError as `write_exports`."""
    from storydiffusion.output.exports import FinishedRun, write_exports
    from storydiffusion.output.folder_lock import own_folder
    from storydiffusion.output.manifest import read_manifest
    from storydiffusion.output.typefaces import check_fonts

    manifest = read_manifest(folder / "manifest.json")
    fonts = (manifest.config.get("font") or []) if fonts is None else fonts
    assert fonts is not None
    check_fonts(fonts)
    with own_folder(str(folder)):
        for file in write_exports(FinishedRun(folder, manifest, fonts, paper), exports):
            print(f"exported: {file}")
