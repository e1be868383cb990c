"""The loggers of a run: metrics.csv in its folder, and Weights & Biases where it is chosen."""

import os
import re
import secrets
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from storydiffusion.config import TrainConfig, TransitionTrainConfig
from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft_path, write_atomically
from storydiffusion.training.csv_log import CSVLog

RUN_ID = "run_id"


def build_loggers(config: TrainConfig | TransitionTrainConfig) -> list[Logger]:
    """Return the loggers that the configuration requests; metrics.csv is always one of them."""
    loggers: list[Logger] = [CSVLog(config.run_dir)]
    if isinstance(config, TransitionTrainConfig) and config.logger.wandb is not None:
        loggers.append(_build_wandb_logger(config))
    return loggers


def _build_wandb_logger(config: TransitionTrainConfig) -> WandbLogger:
    """Return the wandb logger under the id kept in the run folder, so that a resumed run continues its own curves."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        name=folder.name,
        save_dir=folder,
        id=load_run_id(folder),
        project=config.logger.project,
        offline=config.logger.wandb == "offline",
        resume="allow",
        config=asdict(config),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning always passes it; wandb warns that it has no effect
    return logger


def load_run_id(folder: str | Path) -> str:
    """Return the run's id, eight hexadecimal digits; the first call draws it, all processes read the same one."""
    file = Path(folder) / RUN_ID
    own = draft_path(file)
    write_atomically(own, secrets.token_hex(4).encode())
    with suppress(FileExistsError):
        os.link(own, file)  # of several processes, the first one draws it
    own.unlink()
    found = file.read_bytes()
    if not re.fullmatch(rb"[0-9a-f]{8}", found):
        raise UserError(f"{file} holds {found[:20]!r}, not the id of a wandb run: remove it to begin a new one")
    return found.decode()
