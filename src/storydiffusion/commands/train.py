"""Train the video model or a part of the miniature: config → data → module → callbacks → Trainer → fit → export."""

from contextlib import nullcontext
from pathlib import Path

from storydiffusion.config import TrainConfig, TransitionTrainConfig, training_schema
from storydiffusion.config.command_line import command
from storydiffusion.files.atomic import remove_drafts
from storydiffusion.output.folder_lock import is_first_process, own_folder


@command(TransitionTrainConfig, training_schema)
def main(config: TrainConfig | TransitionTrainConfig) -> None:
    """Train, resuming from the newest checkpoint of `config.run_dir`, and export the averaged weights."""
    with own_folder(config.run_dir) if is_first_process() else nullcontext():
        train(config)


def train(config: TrainConfig | TransitionTrainConfig) -> None:
    """Train in a folder that the first process of the training owns."""
    from storydiffusion.training.build_training import build_training

    if is_first_process():
        remove_drafts(Path(config.run_dir) / "samples")
    run = build_training(config)
    run.fit()
    if run.is_first_process:
        metrics = run.export(Path(config.export))
        print(f"trained: {config.export}", *(f"{name} {value:.4g}" for name, value in metrics.items()), sep="\n  ")
