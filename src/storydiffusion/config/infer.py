"""conf/infer.yaml: one story, told once, or a video of given pictures."""

import dataclasses
from pathlib import Path
from typing import Any

from storydiffusion.config.loading import LARGEST_SEED, check_choice, check_range, check_sampling
from storydiffusion.config.model import ModelConfig
from storydiffusion.errors import UserError

NOISES = ("own", "shared")
VIDEOS = ("auto", "on", "off")
LONGEST_HOLD = 60.0  # seconds


@dataclasses.dataclass
class ConsistencyConfig:
    """conf/consistency/*.yaml: the arguments of `storydiffusion.images.ConsistentSelfAttention`, which checks them."""

    rate: Any  # a number in [0, 1], or one for each grid: {2: 0.5, 4: 0.3}
    semantics: str
    sampler: str
    decay: float
    tile_size: int | None
    window: int | None
    bank: int | None
    blocks: str
    start: float
    end: float


@dataclasses.dataclass
class InferConfig:
    """conf/infer.yaml: one story, told once. Values that are null are the model's (`model.steps`, …)."""

    story: str
    frames: list[str] | None  # files of pictures to make a video of, in place of a story
    run_dir: str | None  # null: runs/NAME, NAME being the story file's without its ending; of pictures runs/video
    overwrite: bool
    seed: int
    noise: str
    steps: int | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    video: str  # auto: where the model can make one; on: or fail; off
    fps: int | None
    hold: float  # seconds that each panel stands in the video
    captions: bool  # under the video's pictures
    model: ModelConfig
    consistency: ConsistencyConfig

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, NOISES)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_sampling("", self)
        for name in ("steps", "guidance_scale", "height", "width"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.model, name))
        check_choice("video", self.video, VIDEOS)
        check_range("hold", self.hold, 0, LONGEST_HOLD)
        if self.fps is None and self.model.video is not None:
            self.fps = self.model.video.fps
        if self.fps is not None:
            check_range("fps", self.fps, 1, 120)
        if self.frames is not None and self.video == "off":
            raise UserError("frames asks for a video, video=off for none: leave one of them out")
        if self.run_dir is None:
            self.run_dir = str(Path("runs") / (Path(self.story).stem if self.frames is None else "video"))
