"""`storydiffusion studio`: make and change stories in a browser."""

import dataclasses
from pathlib import Path

from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.config.loading import check_range
from storydiffusion.errors import UserError

ALONE = ("idea", "text", "emotion", "frames", "retake", "baseline", "benchmark")
"""settings of infer that are not defaults of a project"""


@dataclasses.dataclass
class StudioConfig(InferConfig):
    """conf/studio.yaml."""

    folder: str
    port: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("port", self.port, 0, 2**16 - 1)
        for name in ALONE:
            if getattr(self, name) is not None:
                raise UserError(f"{name} is not a setting of the studio: leave it out, or use storydiffusion infer")

    def build_defaults(self) -> InferConfig:
        """Return the settings of new projects."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(InferConfig)}
        return InferConfig(**{**own, "writer": dataclasses.asdict(self.writer)})


@command(StudioConfig)
def main(config: StudioConfig) -> None:
    """Run the verb."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the studio needs Gradio: pip install '.[studio]' in a checkout") from error
    from storydiffusion.studio.server import serve
    from storydiffusion.studio.studio import Studio

    serve(Studio(Path(config.folder), config.build_defaults()), config.port)
