"""Typed configuration: the dataclasses that the YAML files under conf/ are loaded as.

Hydra composes, `load` turns the result into these dataclasses, strictly and once; no later code sees a DictConfig.
conf/ holds the values, this folder the types and checks. It imports nothing heavy: commands must answer quickly.
"""

from storydiffusion.config.baseline import IPAdapterConfig, PhotoMakerConfig
from storydiffusion.config.infer import CSAConfig, InferConfig, StoriesBenchmark, TransitionsBenchmark
from storydiffusion.config.loading import closest_key, flat, keys, load
from storydiffusion.config.model import FreeUConfig, ModelConfig, SparseControlConfig, VideoConfig
from storydiffusion.config.slurm_resources import register_slurm_resolver
from storydiffusion.config.train import (
    DataConfig,
    LoggerConfig,
    PredictorConfig,
    StoryWorldClips,
    TrainConfig,
    TrainerConfig,
    TransitionRecipe,
    TransitionTrainConfig,
    training_schema,
)

__all__ = [
    "CSAConfig",
    "DataConfig",
    "FreeUConfig",
    "IPAdapterConfig",
    "InferConfig",
    "LoggerConfig",
    "ModelConfig",
    "PhotoMakerConfig",
    "PredictorConfig",
    "SparseControlConfig",
    "StoriesBenchmark",
    "StoryWorldClips",
    "TrainConfig",
    "TrainerConfig",
    "TransitionRecipe",
    "TransitionTrainConfig",
    "TransitionsBenchmark",
    "VideoConfig",
    "closest_key",
    "flat",
    "keys",
    "load",
    "training_schema",
]

register_slurm_resolver()
