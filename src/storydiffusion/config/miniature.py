"""The recipes of the miniature's parts, which are trained on StoryWorld."""

from collections.abc import Mapping
from dataclasses import dataclass

from storydiffusion.config.loading import check_choice, check_range
from storydiffusion.errors import UserError

TOWERS = {"vit": None, "resnet": 32, "plain": 16}
"""Tower of images → its stride in pixels; None: that of recipe.patch_size"""


@dataclass
class Recipe:
    """The settings of every recipe: length, batch and learning rates.

    The learning rate warms up linearly, stays, and falls linearly to zero over the last `decay` of the steps.
    """

    part: str
    steps: int
    batch_size: int
    learning_rate: float  # of matrices and convolutions, by Muon
    adam_learning_rate: float  # of everything else, by AdamW
    warmup_steps: int
    decay: float
    ema_decay: float
    seed: int
    edition: int  # of StoryWorld, 1 or 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"recipe.steps={self.steps} and recipe.batch_size={self.batch_size}: give at least 1")
        if not 0 <= self.decay <= 1:
            raise UserError(f"recipe.decay={self.decay}: give the share of the steps, 0 to 1")
        if self.edition not in (1, 2):
            raise UserError(f"recipe.edition={self.edition}: give the edition of StoryWorld, 1 or 2")


@dataclass
class AutoencoderRecipe(Recipe):
    """AutoencoderKL on random crops of images; see training/miniature/autoencoder.py."""

    warm_start: bool  # train the autoencoder of the miniature folder further
    freeze_encoder: bool  # train its decoder only; needs warm_start
    crop: int  # pixels; batch_size counts crops
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    kl_weight: float
    edge_weight: float
    character_weight: float  # of pixels where a character is, beside 1 for the background

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("recipe.character_weight", self.character_weight, 0, 1000)
        if self.freeze_encoder and not self.warm_start:
            raise UserError("recipe.freeze_encoder=true with a new autoencoder: also set recipe.warm_start=true")


@dataclass
class ClipRecipe(Recipe):
    """Image-text encoder by contrastive learning; see training/miniature/contrastive.py."""

    width: int  # of the text tower
    text_layers: int
    tower: str  # of TOWERS
    image_width: int
    image_layers: int  # of vit; of resnet: blocks in each of its four stages
    patch_size: int  # of resnet: 32, of plain: 16
    projection: int
    family_share: float  # of a batch, in families that differ only in attire
    naming_probability: float | None  # of each part of the attire in a caption; null: the edition's own
    attribute_weight: float  # weight of the attributes' cross-entropy beside the contrastive loss
    degrade: bool  # blur, tint and add noise to the images

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe.tower", self.tower, tuple(TOWERS))
        check_range("recipe.family_share", self.family_share, 0, 1)
        if self.naming_probability is not None:
            check_range("recipe.naming_probability", self.naming_probability, 0, 1)
        check_range("recipe.attribute_weight", self.attribute_weight, 0, 1000)
        stride = TOWERS[self.tower]
        if stride is not None and (self.image_width % 64 or self.patch_size != stride):
            raise UserError(
                f"recipe.tower={self.tower} has image_width={self.image_width} and patch_size={self.patch_size}: give a"
                f" multiple of 64 and {stride}"
            )


@dataclass
class AttributeClassifierRecipe(Recipe):
    """Attribute classifier; see training/miniature/attribute_classifier.py."""

    channels: tuple[int, ...]


@dataclass
class EmotionProbeRecipe(Recipe):
    """Linear probe of emotions on the image encoder; see training/miniature/emotion_probe.py."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edition != 2:
            raise UserError(f"recipe.edition={self.edition} of StoryWorld shows no moods: pass recipe.edition=2")
        if self.batch_size < 2:
            raise UserError(f"recipe.batch_size={self.batch_size} has no spread to standardize by: give at least 2")


@dataclass
class CaptionedLatentsRecipe(Recipe):
    """Images of characters as latents, with captions; see training/miniature/captioned_latents.py."""

    pictures: int  # images whose latents are cached before the first step, two per character
    pair_probability: float  # of a batch whose images show one character twice, side by side or stacked
    reference_probability: float  # of a batch of these with one of both less noisy, for the other to learn from
    caption_dropout: float
    unknown_word_probability: float
    character_weight: float  # of squared errors where a character is, beside 1 for the background
    timestep_shift: float  # towards noise, where the layout is settled; 1: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 2 or self.pictures % 2 or self.batch_size % 2:
            raise UserError(
                f"recipe.pictures={self.pictures} and recipe.batch_size={self.batch_size}: give even numbers, because"
                " images come in pairs"
            )
        if not 0 <= self.pair_probability <= 1:
            raise UserError(f"recipe.pair_probability={self.pair_probability}: give a number from 0 to 1")
        check_range("recipe.reference_probability", self.reference_probability, 0, 1)
        check_range("recipe.character_weight", self.character_weight, 0, 1000)
        check_range("recipe.timestep_shift", self.timestep_shift, 0.01, 100)


@dataclass
class Text2ImageRecipe(CaptionedLatentsRecipe):
    """Latent diffusion U-Net with its text encoder; see training/miniature/text_to_image.py."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    head_width: int
    warm_start: bool  # start from the U-Net and the text encoder of the miniature folder
    freeze_text_encoder: bool  # train the U-Net only; needs warm_start
    binding_weight: float  # of the loss that binds words to their character, see training/miniature/binding.py

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_text_encoder and not self.warm_start:
            raise UserError("recipe.freeze_text_encoder=true with a new U-Net: also set recipe.warm_start=true")
        check_range("recipe.binding_weight", self.binding_weight, 0, 1000)


@dataclass
class TrainedCSARecipe(Recipe):
    """Self-attention that shares tokens, trained on stories; see training/miniature/trained_csa.py."""

    panels: int  # of a story; batch_size counts the panels of all
    pictures: int  # panels whose latents are cached before the first step
    rates: tuple[float, ...]  # of sharing, one drawn for each step
    caption_dropout: float  # of all captions of a story
    character_weight: float  # of squared errors where a character is, beside 1 for the background

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("recipe.panels", self.panels, 2, 64)
        for name in ("batch_size", "pictures"):
            if (value := getattr(self, name)) < self.panels or value % self.panels:
                raise UserError(
                    f"recipe.{name}={value} is not a whole number of stories: give a multiple of recipe.panels="
                    f"{self.panels}"
                )
        if not self.rates:
            raise UserError("recipe.rates=[] shares nothing: give one rate or more, such as [0.5]")
        for rate in self.rates:
            check_range("recipe.rates", rate, 0, 1)
        check_range("recipe.caption_dropout", self.caption_dropout, 0, 1)
        check_range("recipe.character_weight", self.character_weight, 0, 1000)


@dataclass
class DitRecipe(CaptionedLatentsRecipe):
    """Diffusion transformer on a frozen text encoder; see training/miniature/diffusion_transformer.py."""

    layers: int  # blocks with a stream of text and one of image
    single_layers: int  # blocks with one stream of both
    heads: int
    head_width: int  # channels; a multiple of 16, of which 2 : 3 : 3 parts are for the three axes of positions
    text_tokens: int  # of a caption; longer ones are cut
    sample_every: int  # steps between sampled images; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.layers, self.single_layers) < 0 or not self.layers + self.single_layers:
            raise UserError(f"recipe.layers={self.layers}, recipe.single_layers={self.single_layers}: give a block")
        if self.heads < 1 or self.head_width < 16 or self.head_width % 16:
            raise UserError(
                f"recipe.heads={self.heads} and recipe.head_width={self.head_width}: give at least 1, and a multiple "
                "of 16"
            )
        check_range("recipe.text_tokens", self.text_tokens, 2, 1000)
        check_range("recipe.sample_every", self.sample_every, 0, 10**9)


RECIPES: Mapping[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "clip": ClipRecipe,
    "attribute_classifier": AttributeClassifierRecipe,
    "emotion_probe": EmotionProbeRecipe,
    "text2image": Text2ImageRecipe,
    "trained_csa": TrainedCSARecipe,
    "dit": DitRecipe,
}
"""The parts of the miniature, in the order in which they depend on each other."""
