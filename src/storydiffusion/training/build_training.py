"""Build a training from its configuration: data, module, callbacks and Trainer."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from storydiffusion.config import TrainConfig, TransitionTrainConfig
from storydiffusion.training.build_transition import build_transition_callbacks
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.health_check import HealthCheck
from storydiffusion.training.callbacks.preemption import Preemption
from storydiffusion.training.callbacks.random_states import RandomStates
from storydiffusion.training.callbacks.run_checkpoints import RunCheckpoints
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.callbacks.stopwatch import Stopwatch
from storydiffusion.training.checkpoint_io import VerifiedCheckpointIO
from storydiffusion.training.data_module import ClipData, build_clip_data
from storydiffusion.training.distributed import build_environment, build_strategy
from storydiffusion.training.loggers import build_loggers
from storydiffusion.training.messages import hide_expected_messages
from storydiffusion.training.modules import MODULES
from storydiffusion.training.process_group import end_with_launcher
from storydiffusion.training.run_config import ConfigFile
from storydiffusion.training.training_run import TrainingRun


def build_training(config: TrainConfig | TransitionTrainConfig) -> TrainingRun:
    """Return the module of `config.recipe` with its data, trainer, callbacks and loggers, ready to fit.

    Raises:
        UserError: something that the configuration names is missing, or its values do not fit together.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the node's first process may outlive the shell that started it
        end_with_launcher()
    hide_expected_messages()
    is_transition = isinstance(config, TransitionTrainConfig)
    strategy = build_strategy(config.trainer, has_unused=is_transition and not config.recipe.diffusion_weight)
    data = build_clip_data(config) if is_transition else None  # the miniature's recipes draw their own batches
    module: Any = MODULES[config.recipe.part](config)
    if config.trainer.compile:
        for network in module.trained_networks():
            network.compile(dynamic=False)  # shapes are few; each gets code of its own
    gradient = GradientNorm(config.recipe.gradient_clip if is_transition else None)
    agreement, stopwatch = StepAgreement(), Stopwatch()
    ema = EMA(config.recipe.ema_decay, SkipNonFiniteSteps(config.trainer.max_bad_steps, gradient, agreement))
    checkpoints = RunCheckpoints(f"{config.run_dir}/checkpoints", config.trainer.checkpoint_minutes, agreement)
    callbacks = [
        HealthCheck(),
        ConfigFile(config.run_dir, asdict(config)),
        gradient,
        agreement,
        ema.guard,
        ema,
        stopwatch,
        RandomStates(),
        *build_own_callbacks(config, module, data, ema),
        Preemption(checkpoints.save, config.trainer.requeue, agreement),
        checkpoints,
        TQDMProgressBar(refresh_rate=config.trainer.log_every),
    ]
    trainer = build_trainer(config, strategy, callbacks)
    return TrainingRun(module, trainer, ema, stopwatch, checkpoints, data)


def build_own_callbacks(
    config: TrainConfig | TransitionTrainConfig, module: Any, data: ClipData | None, ema: EMA
) -> list[L.Callback]:
    """Return the callbacks of one recipe: the logs and samples of the video model, or those of the module."""
    if isinstance(config, TransitionTrainConfig) and data is not None:
        return build_transition_callbacks(config, module, data, ema)
    return module.build_callbacks(Path(config.run_dir), ema)


def build_trainer(config: TrainConfig | TransitionTrainConfig, strategy: Any, callbacks: list[L.Callback]) -> L.Trainer:
    """Return Lightning's Trainer with verified checkpoints and the loggers of the run."""
    recipe, is_transition = config.recipe, isinstance(config, TransitionTrainConfig)
    is_fast = config.trainer.kernels == "fast"
    torch.set_float32_matmul_precision("high" if is_fast else "highest")  # high: TF32 on NVIDIA GPUs
    return L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=strategy,
        precision=config.trainer.precision,  # type: ignore[arg-type]  # one of config.PRECISIONS
        benchmark=is_fast,
        max_steps=recipe.steps,
        accumulate_grad_batches=recipe.accumulate if is_transition else 1,
        # every other strategy clips in `GradientNorm`
        gradient_clip_val=recipe.gradient_clip if is_transition and config.trainer.strategy == "deepspeed" else None,
        default_root_dir=os.devnull,  # no folder: a Slurm job would resume from any hpc_ckpt_*.ckpt in it
        logger=build_loggers(config),
        callbacks=callbacks,
        plugins=[VerifiedCheckpointIO(), *build_environment(config.trainer)],
        log_every_n_steps=config.trainer.log_every,
        enable_model_summary=False,
        use_distributed_sampler=False,  # each data set distributes its clips among the processes itself
    )
