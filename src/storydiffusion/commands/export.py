"""`storydiffusion export`: write files to share from a finished run folder."""

from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.generation.export import export_run


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
    for file in export_run(Path(config.run_dir), config.exports, config.paper, config.font):
        print(f"exported: {file}")
