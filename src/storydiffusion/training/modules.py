"""Which LightningModule trains what: the registry behind the key `recipe.part`."""

from collections.abc import Callable, Mapping
from typing import Any

from storydiffusion.training.build_transition import build_transition_module
from storydiffusion.training.miniature.attribute_classifier import AttributeClassifierModule
from storydiffusion.training.miniature.autoencoder import AutoencoderModule
from storydiffusion.training.miniature.contrastive import ClipModule
from storydiffusion.training.miniature.diffusion_transformer import DiffusionTransformerModule
from storydiffusion.training.miniature.emotion_probe import EmotionProbeModule
from storydiffusion.training.miniature.text_to_image import Text2ImageModule
from storydiffusion.training.miniature.trained_csa import TrainedCSAModule
from storydiffusion.training.training_run import TrainableModule

MODULES: Mapping[str, Callable[[Any], TrainableModule]] = {
    "transition": build_transition_module,
    "autoencoder": AutoencoderModule.from_config,
    "clip": ClipModule.from_config,
    "attribute_classifier": AttributeClassifierModule.from_config,
    "emotion_probe": EmotionProbeModule.from_config,
    "text2image": Text2ImageModule.from_config,
    "trained_csa": TrainedCSAModule.from_config,
    "dit": DiffusionTransformerModule.from_config,
}
"""recipe.part → function that builds its module from the run's configuration."""
