"""conf/train.yaml: training of one part of the miniature, or of the video model at any scale."""

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf

from storydiffusion.config.loading import LARGEST_SEED, check_choice, check_range, check_side, load_choice
from storydiffusion.config.miniature import RECIPES
from storydiffusion.config.model import ModelConfig
from storydiffusion.config.value_types import select, show
from storydiffusion.errors import UserError

TRANSITION = "transition"
ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp", "deepspeed")
KERNELS = ("exact", "fast")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
TRAINABLE = ("predictor", "motion_module")
LOSSES = ("epsilon", "x0", "v")
OPTIMIZERS = ("adamw", "muon")
CLIP_CAPTIONS = "clip"
READERS = ("indexed", "stream")
CAPTIONS = (CLIP_CAPTIONS, "storyworld_frames")
WANDB_MODES = ("online", "offline")
LARGEST = 2**31


def training_schema(composed: DictConfig) -> type:
    """Return the dataclass to load a composed training as: its recipe decides which groups it has.

    Raises:
        UserError: an unknown part, or a model of images where a video model is to be trained.
    """
    plain = OmegaConf.to_container(composed)
    part = show(select(plain, "recipe.part"))
    check_choice("recipe.part", part, (*RECIPES, TRANSITION))
    if part != TRANSITION:
        return TrainConfig
    model = select(plain, "model")
    if isinstance(model, dict) and model.get("video") is None:  # before other groups interpolate its values
        raise UserError(f"model={model.get('name')} has no video part to train: choose miniature or sd15_animatediff")
    return TransitionTrainConfig


@dataclasses.dataclass
class TrainerConfig:
    """conf/trainer/*.yaml: device, precision and length of a training."""

    accelerator: str
    devices: int  # per node; -1: all GPUs
    nodes: int
    strategy: str
    precision: str
    kernels: str  # fast: TF32, cuDNN's fastest algorithms, channels-last convolutions; last digits differ between runs
    compile: bool  # torch.compile the trained networks; on a CPU this needs a C++ compiler
    max_steps: int | None  # null: recipe.steps; the learning-rate schedule follows it
    checkpoint_minutes: float
    timeout_minutes: float  # abort after waiting this long for a hanging process
    requeue: bool  # at SIGUSR1 or SIGUSR2 requeue the Slurm job; slurm/train.sbatch sets it
    log_every: int  # steps
    max_bad_steps: int  # abort after this many consecutive non-finite steps, which are skipped

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("trainer.strategy", self.strategy, STRATEGIES)
        check_choice("trainer.precision", self.precision, PRECISIONS)
        check_choice("trainer.kernels", self.kernels, KERNELS)
        if self.devices != -1 or self.accelerator == "cpu":
            check_range("trainer.devices", self.devices, 1, 1024)
        check_range("trainer.nodes", self.nodes, 1, 100_000)
        if self.max_steps is not None:
            check_range("trainer.max_steps", self.max_steps, 1, LARGEST)
        check_range("trainer.checkpoint_minutes", self.checkpoint_minutes, 0, 24 * 60)
        check_range("trainer.timeout_minutes", self.timeout_minutes, 0.01, 24 * 60)
        check_range("trainer.log_every", self.log_every, 1, 1_000_000)
        check_range("trainer.max_bad_steps", self.max_bad_steps, 1, 1_000_000)


@dataclasses.dataclass
class TrainConfig:
    """Training of one part of the miniature, on images of StoryWorld."""

    run_dir: str
    export: str
    miniature: str  # folder, or package://miniature: the parts that this one depends on
    cache: str
    trainer: TrainerConfig
    recipe: Any  # one of RECIPES, chosen by its key `part`

    def __post_init__(self) -> None:
        self.recipe = load_choice({**RECIPES, TRANSITION: TransitionRecipe}, self.recipe, "recipe", by="part")
        self.recipe.steps = self.trainer.max_steps or self.recipe.steps


@dataclasses.dataclass
class TransitionRecipe:
    """Training of the video model: trained parts, errors and optimizer.

    The learning rate warms up linearly, stays, and falls linearly to zero over the last `decay` of the steps.
    """

    part: str
    trainable: list[str]  # of TRAINABLE; everything else is frozen
    seed: int
    steps: int
    batch_size: int  # clips per batch, over all processes
    accumulate: int  # batches whose gradients make one step
    loss: str  # space of the diffusion error
    diffusion_weight: float  # weights of the errors; an error of weight 0 is not computed
    semantic_weight: float
    text_weight: float  # of the error of the frames' tokens against the text encoder's states of their captions
    text_skipped: list[str]  # words of captions whose states no token stands for
    semantic_dropout: float
    joint_dropout: float  # share of clips without text and without semantic tokens, beside both other dropouts
    teacher_forcing: float
    boundary_frame_prob: float  # probability of clean boundary frames, with the loss over the frames between
    optimizer: str
    learning_rate: float
    adam_learning_rate: float | None  # muon's, of everything but matrices
    weight_decay: float
    warmup_steps: int
    decay: float
    gradient_clip: float | None
    ema_decay: float
    gradient_checkpointing: bool
    sample_every: int  # steps; 0: never
    sample_clips: int

    @property
    def reads_all_frames(self) -> bool:
        """Whether a loss reads the semantic tokens of all frames, not only of the boundary frames."""
        return bool(self.semantic_weight or self.teacher_forcing or self.text_weight)

    def __post_init__(self) -> None:
        if not self.trainable or len(set(self.trainable)) < len(self.trainable):
            raise UserError(
                f"recipe.trainable={show(self.trainable)}: give one or both of {', '.join(TRAINABLE)}, each once"
            )
        for name in self.trainable:
            check_choice("recipe.trainable", name, TRAINABLE)
        check_choice("recipe.loss", self.loss, LOSSES)
        check_choice("recipe.optimizer", self.optimizer, OPTIMIZERS)
        check_range("recipe.seed", self.seed, 0, LARGEST_SEED)
        for name in ("steps", "batch_size", "accumulate", "sample_clips"):
            check_range(f"recipe.{name}", getattr(self, name), 1, LARGEST)
        for name in ("warmup_steps", "sample_every"):
            check_range(f"recipe.{name}", getattr(self, name), 0, LARGEST)
        for name in (
            "semantic_dropout",
            "joint_dropout",
            "teacher_forcing",
            "boundary_frame_prob",
            "decay",
            "ema_decay",
        ):
            check_range(f"recipe.{name}", getattr(self, name), 0, 1)
        numbers = ("weight_decay", "learning_rate", "adam_learning_rate", "gradient_clip")
        for name in ("diffusion_weight", "semantic_weight", "text_weight", *numbers):
            if getattr(self, name) is not None:
                check_range(f"recipe.{name}", getattr(self, name), 0, 1e6)
        if self.optimizer == "muon" and self.adam_learning_rate is None:
            raise UserError(
                "recipe.optimizer=muon needs recipe.adam_learning_rate for weights other than matrices: give a number"
            )
        for name in ("semantic_weight", "text_weight"):
            if getattr(self, name) and "predictor" not in self.trainable:
                raise UserError(
                    f"recipe.{name}={getattr(self, name)} trains the predictor, which is frozen: add it to "
                    f"recipe.trainable or set recipe.{name}=0"
                )
        has_others = self.semantic_weight or self.text_weight
        if not self.diffusion_weight and (not has_others or "motion_module" in self.trainable):
            raise UserError(
                f"recipe.diffusion_weight={self.diffusion_weight} leaves only the semantic and the text error, which "
                "train only the predictor: set recipe.trainable=[predictor] and a recipe.semantic_weight or a "
                "recipe.text_weight above 0"
            )


@dataclasses.dataclass
class PredictorConfig:
    """conf/predictor/*.yaml: the arguments of `SemanticMotionPredictor`, which checks them; its input and
    output widths follow from the model.
    """

    tokens: str
    tokens_per_frame: int | None
    width: int
    layers: int
    heads: int
    head_width: int
    resampler_layers: int
    frames: int  # the most
    start: str | None  # folder of a released predictor to continue from, or an IP-Adapter-plus file


@dataclasses.dataclass
class StoryWorldClips:
    """Clips that are rendered into the shards once, before the training."""

    clips: int
    seed: int
    frames: int
    size: int
    fps: int
    edition: int

    def __post_init__(self) -> None:
        check_range("data.storyworld.edition", self.edition, 1, 2)
        check_range("data.storyworld.clips", self.clips, 1, 10**8)
        check_range("data.storyworld.seed", self.seed, 0, LARGEST_SEED)
        check_range("data.storyworld.frames", self.frames, 2, 1000)
        check_range("data.storyworld.size", self.size, 16, 1024)
        check_range("data.storyworld.fps", self.fps, 1, 120)


@dataclasses.dataclass
class StreamConfig:
    """How `data.reader=stream` fetches shards; see `storydiffusion.data.remote_shards.StreamOptions`."""

    shuffle: int
    cache: str
    cache_gb: float
    retries: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        check_range("data.stream.shuffle", self.shuffle, 1, 10**6)
        check_range("data.stream.cache_gb", self.cache_gb, 0, 10**6)
        check_range("data.stream.retries", self.retries, 0, 1000)
        check_range("data.stream.timeout_seconds", self.timeout_seconds, 0.01, 24 * 3600)


@dataclasses.dataclass
class DataConfig:
    """conf/data/*.yaml: the training clips; `storydiffusion.data` checks the other settings."""

    storyworld: StoryWorldClips | None  # null: use existing shards
    shards: Any  # folder, file or brace pattern; or a list of such
    frames: int
    stride: int
    height: int
    width: int
    flip: float
    brightness: float
    caption_dropout: float
    captions: str  # of CAPTIONS
    workers: int
    crops: int | None  # fixed crops of a clip; null: a new one each time
    cache: str | None  # folder for the features of these crops
    reader: str  # of READERS
    stream: StreamConfig | None  # null: the shards are local
    backend: str
    window: int
    rejected_share: float
    decode_seconds: float
    verify: bool

    def __post_init__(self) -> None:
        patterns = self.shards if isinstance(self.shards, list) else [self.shards]
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise UserError(
                f"data.shards={show(self.shards)}: give a folder, a file or a brace pattern, or a list of such"
            )
        check_choice("data.captions", self.captions, CAPTIONS)
        if self.crops is not None:
            check_range("data.crops", self.crops, 1, 1000)
        if self.cache is not None and self.crops is None:
            raise UserError("data.cache keeps the features of fixed crops: set data.crops, 1 for clips of whole videos")
        if self.cache is not None and self.captions != CLIP_CAPTIONS:
            raise UserError(
                f"data.cache keeps one caption a clip, but data.captions={self.captions} captions every frame: set "
                f"data.captions={CLIP_CAPTIONS} or data.cache=null"
            )
        check_choice("data.reader", self.reader, READERS)
        if self.reader == "stream":
            self._check_stream()
        check_range("data.frames", self.frames, 2, 1024)
        check_range("data.decode_seconds", self.decode_seconds, 0.1, 24 * 3600)
        check_side("data.height", self.height)
        check_side("data.width", self.width)

    def _check_stream(self) -> None:
        """Refuse what only indexed shards have. Raises UserError."""
        if self.storyworld is not None or self.stream is None:
            raise UserError("data.reader=stream needs shards that exist: choose data=webvid10m with data.shards")
        for name in ("crops", "cache", "verify"):
            if value := getattr(self, name):
                raise UserError(f"data.{name}={value} needs indexed shards: leave it out, or set data.reader=indexed")


@dataclasses.dataclass
class LoggerConfig:
    """conf/logger/*.yaml: the log besides metrics.csv."""

    wandb: str | None
    project: str

    def __post_init__(self) -> None:
        if self.wandb is not None:
            check_choice("logger.wandb", self.wandb, WANDB_MODES)


@dataclasses.dataclass
class TransitionTrainConfig:
    """Training of the semantic motion predictor, the motion modules, or both."""

    run_dir: str
    export: str
    cache: str
    trainer: TrainerConfig
    recipe: TransitionRecipe
    model: ModelConfig
    predictor: PredictorConfig
    data: DataConfig
    logger: LoggerConfig

    def __post_init__(self) -> None:
        self.recipe.steps = self.trainer.max_steps or self.recipe.steps
        video = self.model.video
        assert video is not None  # training_schema has checked it
        if video.motion_adapter is None and "motion_module" not in self.recipe.trainable:
            raise UserError(
                "model.video.motion_adapter=null creates new motion modules: give trained ones, or add motion_module "
                "to recipe.trainable"
            )
        if self.recipe.boundary_frame_prob and self.data.frames < 3:
            raise UserError(f"data.frames={self.data.frames} has no frame between the boundary frames: take 3 or more")
        recipe = self.recipe
        is_predicting = recipe.diffusion_weight and recipe.teacher_forcing < 1
        is_untaught = not is_predicting and not recipe.semantic_weight
        if "predictor" in recipe.trainable and self.predictor.layers and is_untaught:
            raise UserError(
                f"recipe.teacher_forcing={recipe.teacher_forcing:g} and recipe.diffusion_weight="
                f"{recipe.diffusion_weight:g} with recipe.semantic_weight=0 leave the transformer without a loss: "
                "change one of them, or take predictor.layers=0"
            )
        if self.data.captions != CLIP_CAPTIONS and recipe.diffusion_weight:
            raise UserError(
                f"data.captions={self.data.captions} captions every frame, but the diffusion error needs one caption "
                f"a clip: set data.captions={CLIP_CAPTIONS}, or recipe.diffusion_weight=0"
            )
        if self.trainer.strategy == "deepspeed" and self.recipe.optimizer == "muon":
            raise UserError("recipe.optimizer=muon needs whole matrices, which DeepSpeed shards: take adamw")
