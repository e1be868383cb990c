"""Trains a part of the miniature: python train.py experiment=storyworld_text2image [key=value …]; --help shows more."""

from pathlib import Path

from storydiffusion import build
from storydiffusion.command_line import command
from storydiffusion.config import TrainConfig


@command(TrainConfig, "train")
def main(config: TrainConfig) -> None:
    training = build.training(config)
    training.fit()
    figures = training.export(Path(config.export))
    print(f"trained: {config.export}", *(f"{name} {value:.4g}" for name, value in figures.items()), sep="\n  ")


if __name__ == "__main__":
    main()
