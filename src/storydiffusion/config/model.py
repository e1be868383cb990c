"""conf/model/*.yaml: pretrained models, for generation and for training."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from storydiffusion.config.loading import check_choice, check_range, check_sampling, load
from storydiffusion.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
MOST_SKIPPED = 11  # a CLIP text encoder of Stable Diffusion 1.5 has 12 layers
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")
OFFLOADS = ("none", "model", "sequential")
VIDEO_SCHEDULERS = ("model", "ddim", "animatediff")
BOUNDARY_FRAMES = ("auto", "clamped", "noised", "free")
OF_SAMPLING = ("guidance_rescale", "guidance_start")
ADDITIONS = (
    "variant", "single_file", "unet", "vae", "lora", "textual_inversion", "controlnet", "clip_skip", "freeu",
    *OF_SAMPLING,
)  # fmt: skip
UNCHANGED = (None, 0.0, "auto", {})
"""values of `ModelConfig.additions` that leave the model as it is"""


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
    scheduler: str  # model: the text-to-image model's; ddim on its noise schedule; animatediff: ddim on AnimateDiff's
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
class FreeUConfig:
    """FreeU [Si et al. 2024]: factors of skip connections (s) and backbone features (b) in up blocks 1 and 2."""

    s1: float
    s2: float
    b1: float
    b2: float

    def __post_init__(self) -> None:
        for name in ("s1", "s2", "b1", "b2"):
            check_range(f"model.freeu.{name}", getattr(self, name), 0, 10)


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
    variant: str | None  # of the weights files, such as fp16 in *.fp16.safetensors; auto: fp16 for float16
    single_file: str | None  # .safetensors or .ckpt whose weights replace those of `path`
    unet: str | None  # another U-Net: a folder inside that of `path`, any other, or a hub id
    vae: str | None  # folder, file or hub id of another VAE
    lora: dict[str, float] | None  # file → scale
    textual_inversion: dict[str, str] | None  # word → file
    controlnet: str | None  # folder or hub id, for the pose maps of a story's panels
    controlnet_scale: float  # of its residuals
    guidance_rescale: float  # 0: none
    guidance_start: float  # share of the steps before the first with guidance
    clip_skip: int | None  # last layers of the text encoder to leave out
    freeu: FreeUConfig | None
    video: VideoConfig | None = None  # null: images only

    def __post_init__(self) -> None:
        check_choice("model.dtype", self.dtype, DTYPES)
        check_choice("model.device", self.device, DEVICES)
        check_choice("model.offload", self.offload, OFFLOADS)
        check_sampling("model.", self)
        check_range("model.guidance_rescale", self.guidance_rescale, 0, 1)
        check_range("model.guidance_start", self.guidance_start, 0, 1)
        check_range("model.controlnet_scale", self.controlnet_scale, 0, 10)
        if self.controlnet is not None and self.guidance_rescale:
            raise UserError("model.guidance_rescale does not work with a ControlNet: set it to 0, or controlnet=null")
        if self.clip_skip is not None:
            check_range("model.clip_skip", self.clip_skip, 1, MOST_SKIPPED)
        for file, scale in (self.lora or {}).items():
            check_range(f"model.lora: the scale of {file},", scale, -10, 10)
        if self.device in ("cpu", "mps") and self.offload != "none":
            raise UserError(f"model.offload={self.offload} needs model.device=cuda: set model.offload=none")

    @property
    def has_other_networks(self) -> bool:
        """Whether additions change networks, not only sampling."""
        return bool(self.additions.keys() - set(OF_SAMPLING))

    @property
    def additions(self) -> dict[str, Any]:
        """What is set of the keys that change the model or its sampling beyond scheduler and guidance."""
        found = {name: getattr(self, name) for name in ADDITIONS}
        set_ones = {name: value for name, value in found.items() if value not in UNCHANGED}
        return {n: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for n, v in set_ones.items()}  # type: ignore[arg-type]


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
