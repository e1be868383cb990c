"""The settings that the page shows, and how they become those of a run."""

from dataclasses import dataclass, replace

from storydiffusion.config import InferConfig
from storydiffusion.errors import UserError


@dataclass(frozen=True)
class Look:
    """Settings of a story beside its script; `with_video` makes a video if the model does."""

    seed: int
    layout: str
    with_video: bool

    @classmethod
    def read(cls, config: InferConfig) -> "Look":
        """Return those of a configuration."""
        return cls(config.seed, config.page.layout, config.video != "off")

    @classmethod
    def parse(cls, seed: float | None, layout: str, with_video: bool) -> "Look":
        """Return those of a form. Raises UserError for a seed that is not a whole number."""
        if seed is None or seed != int(seed):
            raise UserError(f"seed={seed} is not a whole number: write one from 0")
        return cls(int(seed), layout, with_video)

    def apply(self, config: InferConfig) -> InferConfig:
        """Return a configuration with these settings. Raises UserError."""
        video = "off" if not self.with_video else "auto" if config.video == "off" else config.video
        return config.change(seed=self.seed, page=replace(config.page, layout=self.layout), video=video)
