"""conf/model/*.yaml: pretrained models, for generation and for training."""

import dataclasses
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from storydiffusion.config.loading import check_choice, check_range, check_sampling, load
from storydiffusion.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
OFFLOADS = ("none", "model", "sequential")
VIDEO_SCHEDULERS = ("model", "animatediff")
BOUNDARY_FRAMES = ("auto", "clamped", "noised", "free")


@dataclasses.dataclass
class SparseControlConfig:
    """SparseCtrl, the paper's video baseline, in place of a predictor."""

    weights: str  # a folder in diffusers' format, or a hub id such as owner/name@revision
    scale: float  # of its residuals; 0: none

    def __post_init__(self) -> None:
        check_range("model.video.sparse_control.scale", self.scale, 0, 10)


@dataclasses.dataclass
class VideoConfig:
    """The parts that turn a text-to-image model into a video model, and the sampling defaults of clips."""

    motion_adapter: str | None  # package://…, folder, hub id or AnimateDiff file; null: a new one, to be trained
    image_encoder: str  # package://… or a folder of a CLIPModel; open_clip://NAME/TAG, or NAME/FILE, or NAME/random
    predictor: str | None  # package://… or a folder of a released one; null: none
    scheduler: str  # model: the text-to-image model's; animatediff: the noise schedule of AnimateDiff's motion modules
    frames: int
    fps: int
    steps: int
    guidance_scale: float
    boundary_frames: str  # clamped or noised: the given images are imposed, clean or noised to the step's level; free
    boundary_attention: bool  # every frame's spatial self-attention also reads the boundary frames
    sparse_control: SparseControlConfig | None = None  # null: none

    def __post_init__(self) -> None:
        check_choice("model.video.scheduler", self.scheduler, VIDEO_SCHEDULERS)
        check_choice("model.video.boundary_frames", self.boundary_frames, BOUNDARY_FRAMES)
        check_range("model.video.frames", self.frames, 2, 1024)
        check_range("model.video.fps", self.fps, 1, 120)
        check_range("model.video.steps", self.steps, 1, 1000)
        check_range("model.video.guidance_scale", self.guidance_scale, 0, 100)


@dataclasses.dataclass
class ModelConfig:
    """conf/model/*.yaml: the text-to-image model, its device and its sampling defaults.

    A training takes its device from the trainer, and with dtype=auto its dtype from `trainer.precision`.
    """

    name: str
    path: str  # package://miniature, a folder in diffusers' format, or a hub id such as owner/name
    revision: str | None  # of a hub id: commit hash, tag or branch; null is the branch main
    dtype: str
    device: str
    offload: str
    scheduler: str  # model: the one in its folder; ddim; or any name of loaders/schedulers.py
    steps: int
    guidance_scale: float
    height: int
    width: int
    video: VideoConfig | None = None  # null: images only

    def __post_init__(self) -> None:
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.device", self.device, DEVICES)
        check_choice("model.offload", self.offload, OFFLOADS)
        check_sampling("model.", self)
        if self.device in ("cpu", "mps") and self.offload != "none":
            raise UserError(f"model.offload={self.offload} needs model.device=cuda: set model.offload=none")


def load_model_config(name: str) -> ModelConfig:
    """Return conf/model/NAME.yaml, the default settings of a model.

    Raises:
        UserError: no such file.
    """
    return load(ModelConfig, _merge_defaults(name), "model.")


def _merge_defaults(name: str) -> DictConfig:
    """Return the file's settings on top of those that its `defaults` list names, as Hydra composes them."""
    file = CONF / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(each.stem for each in CONF.glob("*.yaml")))
        raise UserError(f"conf/model has no {name!r}: choose one of {known}")
    own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    bases = [_merge_defaults(base) for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    merged = OmegaConf.merge(*bases, own)
    assert isinstance(merged, DictConfig)
    return merged
