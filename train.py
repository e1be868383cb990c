"""Trains the video model or a part of the miniature: python train.py [key=value …]; --help shows more."""

from pathlib import Path

from storydiffusion import assembly
from storydiffusion.command_line import command
from storydiffusion.config import TrainConfig, TransitionTrainConfig, training_schema


@command(TransitionTrainConfig, "train", training_schema)
def main(config: TransitionTrainConfig | TrainConfig) -> None:
    training = assembly.training(config)
    training.fit()
    if training.is_first_process:
        figures = training.export(Path(config.export))
        print(f"trained: {config.export}", *(f"{name} {value:.4g}" for name, value in figures.items()), sep="\n  ")


if __name__ == "__main__":
    main()
