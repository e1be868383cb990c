"""Trains the video model or a part of the miniature: python train.py [key=value …]; --help shows more."""

from pathlib import Path

from storydiffusion.commands.train import training
from storydiffusion.config import TrainConfig, TransitionTrainConfig, training_schema
from storydiffusion.config.command_line import command


@command(TransitionTrainConfig, "train", training_schema)
def main(config: TransitionTrainConfig | TrainConfig) -> None:
    trained = training(config)
    trained.fit()
    if trained.is_first_process:
        figures = trained.export(Path(config.export))
        print(f"trained: {config.export}", *(f"{name} {value:.4g}" for name, value in figures.items()), sep="\n  ")


if __name__ == "__main__":
    main()
