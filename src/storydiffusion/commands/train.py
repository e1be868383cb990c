"""Training: config → module, data, trainer."""

import os
import warnings
from dataclasses import asdict, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.config import TrainConfig, TrainerConfig, TransitionTrainConfig
from storydiffusion.config.miniature import AttributeClassifierRecipe, AutoencoderRecipe, ClipRecipe
from storydiffusion.errors import UserError
from storydiffusion.loaders.text_to_image import model_folder
from storydiffusion.loaders.video import (
    features_of,
    load_drawing_parts,
    load_image_encoder,
    new_predictor,
    with_trained_predictor,
    word_tokens,
)
from storydiffusion.pipelines.transition import sampling_of

if TYPE_CHECKING:
    import lightning as L
    import torch

    from storydiffusion.models.video_model import VideoModel
    from storydiffusion.pipelines.transition import TransitionSampling
    from storydiffusion.training.callbacks.ema import EMA
    from storydiffusion.training.data_module import ClipData
    from storydiffusion.training.miniature.recipe_module import RecipeModule
    from storydiffusion.training.training_run import Training
    from storydiffusion.training.transition_module import TransitionModule

HALF = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""The dtype of frozen weights under each precision, where model.dtype is auto."""


def training(config: TrainConfig | TransitionTrainConfig) -> "Training":
    """The module of `config.recipe` with its data, trainer, callbacks and loggers, ready to fit."""
    from storydiffusion.training.process_group import end_with_launcher

    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first of a node's processes may outlive the shell it came from
        end_with_launcher()
    if isinstance(config, TransitionTrainConfig):
        return _transition_training(config)
    strategy = _strategy(config.trainer)
    module = _recipe_module(config)
    if config.trainer.compile:
        for network in module.children():
            network.compile(dynamic=False)  # few shapes, each with code of its own
    return _training(config, strategy, module, _average(config))


def _training(
    config: TrainConfig | TransitionTrainConfig,
    strategy: Any,
    module: Any,
    average: "EMA",
    data: "L.LightningDataModule | None" = None,
    callbacks: "tuple[L.Callback, ...]" = (),
    loggers: tuple[Any, ...] = (),
    **options: Any,
) -> "Training":
    """What all trainings have: checkpoints, weight averaging and its guard against losses that are not finite,
    preemption, stopwatch, progress bar, metrics.csv, config.yaml.
    """
    import lightning as L
    from lightning.pytorch.callbacks import TQDMProgressBar

    from storydiffusion.training.callbacks.preemption import Preemption
    from storydiffusion.training.callbacks.random_states import RandomStates
    from storydiffusion.training.callbacks.stopwatch import Stopwatch
    from storydiffusion.training.checkpoint_io import VerifiedCheckpointIO
    from storydiffusion.training.csv_log import CSVLog
    from storydiffusion.training.run_config import ConfigFile
    from storydiffusion.training.training_run import RunCheckpoints, Training

    for on_purpose in (
        r"Found \d+ module\(s\) in eval mode",  # what is frozen
        ".* directory .* exists and is not empty",  # of a run that goes on
        "The `srun` command is available",  # a training need not be a job where Slurm is
    ):
        warnings.filterwarnings("ignore", on_purpose)
    stopwatch = Stopwatch()
    checkpoints = RunCheckpoints(f"{config.run_dir}/checkpoints", config.trainer.checkpoint_minutes)
    progress = TQDMProgressBar(refresh_rate=config.trainer.log_every)
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=strategy,
        precision=config.trainer.precision,  # type: ignore[arg-type]  # one of config.PRECISIONS
        max_steps=config.recipe.steps,
        default_root_dir=os.devnull,  # no folder: a job of Slurm would go on from any hpc_ckpt_*.ckpt that lies in one
        logger=[CSVLog(config.run_dir), *loggers],
        callbacks=[
            ConfigFile(config.run_dir, asdict(config)),
            average.guard,
            average,
            stopwatch,
            RandomStates(),
            *callbacks,
            Preemption(checkpoints.save, config.trainer.requeue),
            checkpoints,
            progress,
        ],
        plugins=[VerifiedCheckpointIO(), *_environment(config.trainer)],
        log_every_n_steps=config.trainer.log_every,
        enable_model_summary=False,
        use_distributed_sampler=False,  # each data set shares its clips among the processes itself
        **options,
    )
    return Training(module, trainer, average, stopwatch, checkpoints, data)


def _average(config: TrainConfig | TransitionTrainConfig) -> "EMA":
    from storydiffusion.training.callbacks.ema import EMA
    from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps

    return EMA(config.recipe.ema_decay, SkipNonFiniteSteps(config.trainer.max_bad_steps))


def _strategy(config: TrainerConfig, has_unused: bool = False) -> Any:
    """The trainer's strategy; DeepSpeed is looked for only where it is chosen.

    Args:
        has_unused: there are trained weights that the loss does not depend on.

    Raises:
        UserError: for GPUs that are not there, or a DeepSpeed that is not.
    """
    import torch

    gpus = torch.cuda.device_count()
    if config.strategy == "deepspeed":
        if not gpus:
            raise UserError(
                "trainer.strategy=deepspeed works on CUDA, which torch does not find here: take trainer=ddp"
            )
        if find_spec("deepspeed") is None:
            raise UserError("trainer.strategy=deepspeed: install storydiffusion[deepspeed] for it, or take trainer=ddp")
    if config.accelerator == "gpu" and not gpus and not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU here: take trainer=cpu")
    if gpus and config.accelerator != "cpu" and config.devices > gpus:
        raise UserError(f"trainer.devices={config.devices}, but there are {gpus} GPUs here: take as many at most")
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy == "deepspeed":
        return DeepSpeedStrategy(stage=2, exclude_frozen_parameters=True, timeout=timeout)
    devices = max(1, gpus) if config.devices == -1 else config.devices
    if config.strategy == "auto" and devices * config.nodes == 1:
        return "auto"
    return DDPStrategy(timeout=timeout, find_unused_parameters=has_unused)


def _environment(config: TrainerConfig) -> list[Any]:
    """Slurm's, where it started this process: without Lightning's handling of signals, for which there is `Preemption`.

    Raises:
        UserError: where the job is not this run's to queue again.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if config.requeue and "SLURM_JOB_ID" not in os.environ:
        raise UserError("trainer.requeue=true, but this is no job of Slurm: submit slurm/train.sbatch, which sets it")
    if config.requeue and "SUBMITIT_EXECUTOR" in os.environ:
        raise UserError("trainer.requeue=true, but submitit queues its jobs again itself: set trainer.requeue=false")
    is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun may run in a job
    return [SLURMEnvironment(auto_requeue=False)] if is_slurm else []


def _recipe_module(config: TrainConfig) -> "RecipeModule":
    """The module of each part; those that build on others load them from the miniature folder."""
    from storydiffusion.training.miniature.attribute_classifier import AttributeClassifierModule
    from storydiffusion.training.miniature.autoencoder import AutoencoderModule
    from storydiffusion.training.miniature.contrastive import ClipModule

    recipe = config.recipe
    if isinstance(recipe, AutoencoderRecipe):
        return AutoencoderModule(recipe)
    if isinstance(recipe, ClipRecipe):
        return ClipModule(recipe)
    if isinstance(recipe, AttributeClassifierRecipe):
        return AttributeClassifierModule(recipe)
    from storydiffusion.training.miniature.text_to_image import Text2ImageModule

    return Text2ImageModule(recipe, model_folder(config.miniature, None), Path(config.cache))


def _transition_training(config: TransitionTrainConfig) -> "Training":
    from storydiffusion.training.callbacks.sample_grid import SampleGrid
    from storydiffusion.training.callbacks.training_log import TrainingLog

    recipe = config.recipe
    strategy = _strategy(config.trainer, has_unused=not recipe.diffusion_weight)  # only the transformer learns then
    data = _clip_data(config)
    module = _transition_module(config)
    if config.trainer.compile:
        for network in module.trained_networks():
            network.compile(dynamic=False)
    average, timesteps = _average(config), len(module.diffusion.alphas_cumprod)
    callbacks: list[Any] = [TrainingLog(config.trainer.log_every, timesteps, average.guard)]
    if recipe.sample_every:
        example = lambda: data.example(recipe.sample_clips)  # noqa: E731
        callbacks.append(SampleGrid(recipe.sample_every, config.run_dir, example, _sampling(config), average))
    return _training(
        config,
        strategy,
        module,
        average,
        data,
        tuple(callbacks),
        loggers=_wandb(config),
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.gradient_clip,
    )


def _clip_data(config: TransitionTrainConfig) -> "ClipData":
    """The clips; those of StoryWorld are drawn when the training begins. Shards that are missing are named here."""
    from storydiffusion.data.clip_sampling import ClipOptions
    from storydiffusion.data.loader import LoaderOptions
    from storydiffusion.data.shards import check_local, find_shards
    from storydiffusion.training.data_module import ClipData

    data = config.data
    if data.storyworld is None:
        find_shards(data.shards)
    elif not isinstance(data.shards, str):
        raise UserError(f"data.shards={data.shards}: StoryWorld's clips are drawn into one folder, name it")
    else:
        check_local(data.shards)
    try:
        options = LoaderOptions(
            shards=data.shards,
            batch_size=config.recipe.batch_size,
            clips=ClipOptions(
                data.frames, data.stride, data.height, data.width, data.flip, data.brightness, data.caption_dropout
            ),
            workers=data.workers,
            seed=config.recipe.seed,
            backend=data.backend,
            window=data.window,
            rejected_share=data.rejected_share,
            decode_seconds=data.decode_seconds,
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error
    return ClipData(options, data.storyworld, data.verify, Path(config.run_dir) / "quarantine")


def _transition_module(config: TransitionTrainConfig) -> "TransitionModule":
    """Its new weights are those of the recipe's seed, whatever was drawn before."""
    import torch

    from storydiffusion.training.transition_module import TransitionModule

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.recipe.seed)
        model, settings = _video_model(config, _frozen_dtype(config))
    if config.data.frames > model.max_frames:
        raise UserError(
            f"data.frames={config.data.frames}, but this video model places {model.max_frames} at most: take fewer"
        )
    return TransitionModule(model, config.recipe, settings, asdict(config))


def _video_model(config: TransitionTrainConfig, dtype: "torch.dtype") -> tuple["VideoModel", dict[str, Any] | None]:
    """The parts to train and those around them; and the arguments of the predictor, where that is trained."""
    assert config.model.video is not None  # the configuration has seen to it
    model = load_drawing_parts(config.model, dtype)
    if "predictor" not in config.recipe.trainable:
        return with_trained_predictor(model, config.model.video, dtype), None
    encoder = load_image_encoder(config.model.video.image_encoder, dtype)
    width = model.video_unet.unet.config.cross_attention_dim
    predictor, settings = new_predictor(config.predictor, encoder, width)
    if config.predictor.start is None:
        predictor.start_among(word_tokens(model))
    features = features_of(config.predictor.tokens)
    return replace(model, predictor=predictor, image_encoder=encoder, features=features), settings


def _frozen_dtype(config: TransitionTrainConfig) -> "torch.dtype":
    import torch

    name, precision = config.model.dtype, config.trainer.precision
    if name == "auto":
        name = HALF[precision]
    if precision == "32-true" and name != "float32":
        raise UserError(
            f"model.dtype={name} needs a mixed precision: take trainer.precision=bf16-mixed, or model.dtype=float32"
        )
    return getattr(torch, name)


def _sampling(config: TransitionTrainConfig) -> "TransitionSampling":
    """Of the samples that are drawn between the steps, whose clips are as long as the training's."""
    assert config.model.video is not None
    return replace(sampling_of(config.model.video), frames=config.data.frames)


def _wandb(config: TransitionTrainConfig) -> tuple[Any, ...]:
    """The wandb logger, where it is chosen, under an id kept in the run directory: a resumed run goes on in its own."""
    if config.logger.wandb is None:
        return ()
    from lightning.pytorch.loggers import WandbLogger

    from storydiffusion.training.run_id import run_id

    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return (
        WandbLogger(
            name=folder.name,
            save_dir=folder,
            id=run_id(folder),
            project=config.logger.project,
            offline=config.logger.wandb == "offline",
            resume="allow",
            config=asdict(config),
        ),
    )
