"""The miniature's recipes: what each training of StoryWorld is made of. Plain dataclasses, nothing heavy imported."""

from dataclasses import dataclass, field


@dataclass
class Recipe:
    """What every recipe has: length, batch and learning rates.

    The learning rate warms up linearly, stays, and falls linearly to zero over the last `decay` of the steps.
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 0.01
    """of matrices and convolutions, by Muon"""
    adam_learning_rate: float = 1e-3
    """of everything else, by AdamW"""
    warmup: int = 50
    decay: float = 0.6
    average_decay: float = 0.998
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps {self.steps} and batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}: give the share of the steps, 0 to 1")


@dataclass
class AutoencoderRecipe(Recipe):
    """AutoencoderKL on random crops of pictures; see `autoencoder.py`."""

    crop: int = 64
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (16, 32, 64, 128)
    layers_per_block: int = 1
    kl_weight: float = 3e-4
    edge_weight: float = 1.0


@dataclass
class ClipRecipe(Recipe):
    """Image-text encoder by contrastive learning; see `clip.py`."""

    width: int = 192
    text_layers: int = 3
    image_layers: int = 5
    patch_size: int = 16
    projection: int = 128


@dataclass
class JudgeRecipe(Recipe):
    """Attribute classifier; see `judge.py`."""

    channels: tuple[int, ...] = (24, 48, 96, 128, 192)


@dataclass
class Text2ImageRecipe(Recipe):
    """Latent diffusion U-Net with its text encoder; see `text2image.py`."""

    pictures: int = 40_000
    """pictures whose latents are cached before the first step"""
    block_out_channels: tuple[int, ...] = (96, 192)
    layers_per_block: int = 1
    head_width: int = 32
    caption_dropout: float = 0.1
    unknown_word_probability: float = 0.01
    from_shipped: bool = False
    """start from the shipped U-Net and text encoder instead of from nothing"""
    adam_parts: tuple[str, ...] = field(default=("conv_in", "conv_out", "text_encoder"))
