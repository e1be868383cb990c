"""Trains the video model or a part of the miniature: python train.py [key=value …]; --help shows more."""

from storydiffusion.commands.train import train
from storydiffusion.config import TrainConfig, TransitionTrainConfig, training_schema
from storydiffusion.config.command_line import command


@command(TransitionTrainConfig, "train", training_schema)
def main(config: TransitionTrainConfig | TrainConfig) -> None:
    train(config)


if __name__ == "__main__":
    main()
