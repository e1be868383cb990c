"""The loggers of a run: metrics.csv in its folder, and Weights & Biases where it is chosen."""

import secrets
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from storydiffusion.config import TrainConfig, TransitionTrainConfig
from storydiffusion.training.csv_log import CSVLog

RUN_ID = "run_id"


def build_loggers(config: TrainConfig | TransitionTrainConfig) -> list[Logger]:
    """Return the loggers that the configuration asks for; metrics.csv is always one of them."""
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
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(4))
    except FileExistsError:
        pass
    return file.read_text(encoding="utf-8")
