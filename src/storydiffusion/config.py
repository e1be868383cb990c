"""Typed configuration: what the YAML files under conf/ may say, and what is refused.

Hydra composes, `load` turns the result into these dataclasses, strictly and once; nothing after it sees a DictConfig.
The values live in conf/, the types and the checks here. Kept free of heavy imports: commands must answer quickly.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from storydiffusion.errors import UserError
from storydiffusion.storyworld.recipes import RECIPES

Schema = TypeVar("Schema")

LARGEST_SEED = 2**32 - 1
LARGEST_SIDE = 4096  # pixels
DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
OFFLOADS = ("none", "model", "sequential")
SCHEDULERS = ("model", "ddim")
NOISES = ("own", "shared")
ACCELERATORS = ("auto", "cpu", "gpu")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def load(schema: type[Schema], composed: DictConfig, prefix: str = "") -> Schema:
    """The composed configuration as an instance of `schema`: every key known, every value of its type.

    `prefix` stands before the keys in messages.

    Raises:
        UserError: in one sentence, for an unknown key (`+key=…` included), a missing one, a wrong type or value.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except ConfigKeyError as error:
        raise UserError(
            f"there is no key '{prefix}{error.full_key}'; did you mean '{prefix}{closest_key(error.full_key, schema)}'?"
        ) from error
    except MissingMandatoryValue as error:
        raise UserError(f"{prefix}{error.full_key} has no value: write {prefix}{error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(loaded, schema)
    return loaded


def keys(schema: type, prefix: str = "") -> list[str]:
    """Every key of `schema` and of the dataclasses in it, dotted."""
    names = []
    for name, hint in get_type_hints(schema).items():
        names.append(prefix + name)
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                names += keys(part, f"{prefix}{name}.")
    return names


def closest_key(wrong: str | None, schema: type) -> str:
    """The key of `schema` that the user most probably meant, compared whole and by its last part."""

    def likeness(key: str) -> float:
        last, wrong_last = key.rpartition(".")[2], str(wrong).rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, str(wrong), key).ratio()
        return whole + difflib.SequenceMatcher(None, wrong_last, last).ratio()

    return max(keys(schema), key=likeness)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not one of {', '.join(choices)}")


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        raise UserError(f"{key}={value} is outside {low}…{high}")


def _check_side(key: str, pixels: int) -> None:
    _check_range(key, pixels, 64, LARGEST_SIDE)
    if pixels % 8:
        raise UserError(f"{key}={pixels} is not divisible by 8: take {pixels // 8 * 8} or {-(-pixels // 8) * 8}")


def _check_sampling(prefix: str, config: Any) -> None:
    """steps, guidance_scale, height and width, where they are set."""
    if config.steps is not None:
        _check_range(f"{prefix}steps", config.steps, 1, 1000)
    if config.guidance_scale is not None:
        _check_range(f"{prefix}guidance_scale", config.guidance_scale, 0, 100)
    for side in ("height", "width"):
        if getattr(config, side) is not None:
            _check_side(f"{prefix}{side}", getattr(config, side))


@dataclasses.dataclass
class ModelConfig:
    """conf/model/*.yaml: which text-to-image model tells the story, where it runs, and how it is sampled by default."""

    name: str
    path: str  # package://miniature, a folder in diffusers' format, or a hub id such as owner/name
    revision: str | None  # of a hub id: commit hash, tag or branch; null is the branch main
    dtype: str
    device: str
    offload: str
    scheduler: str  # model: the one in its folder; ddim: DDIM on the same noise schedule
    steps: int
    guidance_scale: float
    height: int
    width: int

    def __post_init__(self) -> None:
        _check_choice("model.dtype", self.dtype, DTYPES)
        _check_choice("model.device", self.device, DEVICES)
        _check_choice("model.offload", self.offload, OFFLOADS)
        _check_choice("model.scheduler", self.scheduler, SCHEDULERS)
        _check_sampling("model.", self)
        if self.device == "cpu" and self.offload != "none":
            raise UserError(f"model.offload={self.offload} needs model.device=cuda: on a CPU take model.offload=none")


@dataclasses.dataclass
class ConsistencyConfig:
    """conf/consistency/*.yaml: the arguments of `storydiffusion.images.ConsistentSelfAttention`, which checks them."""

    rate: Any  # a number in [0, 1], or one for each grid: {2: 0.5, 4: 0.3}
    semantics: str
    sampler: str
    decay: float
    tile_size: int | None
    blocks: str
    start: float
    end: float


@dataclasses.dataclass
class InferConfig:
    """conf/infer.yaml: one story, told once. Values that are null are the model's (`model.steps`, …)."""

    story: str
    run_dir: str | None  # null: runs/NAME, NAME being the story file's without its ending
    overwrite: bool
    seed: int
    noise: str
    steps: int | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    model: ModelConfig
    consistency: ConsistencyConfig

    def __post_init__(self) -> None:
        _check_choice("noise", self.noise, NOISES)
        _check_range("seed", self.seed, 0, LARGEST_SEED)
        _check_sampling("", self)
        for name in ("steps", "guidance_scale", "height", "width"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.model, name))
        if self.run_dir is None:
            self.run_dir = str(Path("runs") / Path(self.story).stem)


@dataclasses.dataclass
class TrainerConfig:
    """conf/trainer/*.yaml: where and how precisely a training runs."""

    accelerator: str
    devices: int
    precision: str
    compile: bool  # torch.compile the trained networks: faster after minutes of compiling; a CPU needs a C++ compiler
    checkpoint_minutes: float
    log_every: int  # steps

    def __post_init__(self) -> None:
        _check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        _check_choice("trainer.precision", self.precision, PRECISIONS)
        _check_range("trainer.devices", self.devices, 1, 1024)
        _check_range("trainer.checkpoint_minutes", self.checkpoint_minutes, 0, 24 * 60)
        _check_range("trainer.log_every", self.log_every, 1, 1_000_000)


@dataclasses.dataclass
class TrainConfig:
    """conf/train.yaml: the training of one part of the miniature."""

    run_dir: str
    export: str
    miniature: str  # folder, or package://miniature: the parts that this one builds on
    cache: str
    trainer: TrainerConfig
    recipe: Any  # one of RECIPES, chosen by its key `part`

    def __post_init__(self) -> None:
        part = dict(self.recipe).get("part")
        _check_choice("recipe.part", str(part), tuple(RECIPES))
        self.recipe = load(RECIPES[str(part)], OmegaConf.create(dict(self.recipe)), "recipe.")
