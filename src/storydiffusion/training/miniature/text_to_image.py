"""The miniature's U-Net and its text encoder: latent diffusion as in Stable Diffusion, trained from scratch.

v-prediction (2202.00512) on a cosine schedule, on batches of `captioned_latents`. Errors on characters can weigh more
than those on the background, which changes what is learned first, not what is learned in the end; words can be bound to
their characters (`binding`). With `recipe.freeze_text_encoder` only the U-Net is trained, so that semantic tokens and
other denoisers trained on the text encoder's states stay valid.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import Text2ImageRecipe
from storydiffusion.errors import UserError
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.models.image_encoders import load_clip
from storydiffusion.training.miniature.binding import (
    AttentionRecorder,
    binding_loss,
    find_own_words,
    record_cross_attention,
)
from storydiffusion.training.miniature.captioned_latents import CaptionedLatents, shift_times, spread_evenly
from storydiffusion.training.miniature.recipe_module import RecipeModule, declare_float32, write_card
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer


def build_unet(recipe: Text2ImageRecipe, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    levels = len(recipe.block_out_channels)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=text_width,
        # diffusers' name notwithstanding, this is the NUMBER of heads
        attention_head_dim=tuple(width // recipe.head_width for width in recipe.block_out_channels),  # type: ignore[arg-type]
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> Any:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class NoisedLatents:
    """`noised` and the `target` v, (B, C, H, W); `timesteps` (B,); `tokens` (B, T), T of the edition's captions;
    `weights` (B, 1, H, W) of the squared errors; `own_words` (B, C, T) and `cover` (B, C, H, W) of `binding_loss`.
    """

    noised: Tensor
    target: Tensor
    timesteps: Tensor
    tokens: Tensor
    weights: Tensor
    own_words: Tensor
    cover: Tensor


class Text2ImageModule(RecipeModule):
    """Train `self.unet` and `self.text_encoder` on the latents of the miniature's autoencoder.

    Args:
        recipe: see `Text2ImageRecipe`.
        miniature: folder with vae/ and image_encoder/, whose text tower initializes the text encoder; with
            `recipe.warm_start` its unet/ and text_encoder/ initialize both networks.
        cache: folder for the latents, computed once for each recipe.
    """

    EDGES = ("conv_in", "conv_out", "text_encoder", "time_embedding")

    def __init__(self, recipe: Text2ImageRecipe, miniature: Path, cache: Path) -> None:
        super().__init__(recipe)
        self.recipe: Text2ImageRecipe = recipe
        self.miniature = miniature
        self.tokenizer = build_tokenizer(recipe.edition)
        self.data = CaptionedLatents(recipe, miniature / "vae", cache, self.tokenizer)
        self.scheduler = build_scheduler()
        if recipe.warm_start:
            self.text_encoder = extend_text_encoder(
                CLIPTextModel.from_pretrained(miniature / "text_encoder", dtype=torch.float32),
                CLIPTokenizer.from_pretrained(miniature / "tokenizer"),
                self.tokenizer,
            )
            self.unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
        else:
            clip = load_clip(miniature / "image_encoder")
            if clip.config.text_config.vocab_size != len(self.tokenizer):
                raise UserError(
                    f"{miniature / 'image_encoder'} knows other words than edition {recipe.edition} of StoryWorld: "
                    "train it on that edition first, or start from a text encoder with recipe.warm_start=true"
                )
            self.text_encoder = CLIPTextModel(clip.config.text_config)
            self.text_encoder.load_state_dict(clip.text_model.state_dict())
            channels = json.loads((miniature / "vae" / "config.json").read_text())["latent_channels"]
            self.unet = build_unet(recipe, channels, clip.config.text_config.hidden_size)
        self.text_encoder.train().requires_grad_(not recipe.freeze_text_encoder)
        unet: Any = self.unet.train()
        unet.to(memory_format=torch.channels_last)
        self.recorders: list[AttentionRecorder] = []

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        return cls(config.recipe, find_model_folder(config.miniature, None), Path(config.cache))

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            # in bfloat16 the backward pass of torch's fused attention takes up to 9 times as long as explicit products
            self.unet.set_attn_processor(AttnProcessor())
            self.text_encoder.set_attn_implementation("eager")
        if self.recipe.binding_weight:
            self.recorders = record_cross_attention(self.unet)

    def prepare_data(self) -> None:
        self.data.prepare()

    def train_dataloader(self) -> Stream:
        latents, cover = self.data.load()
        return Stream(lambda step: self.noised(latents, cover, step), self.recipe.steps)

    def noised(self, latents: np.ndarray, cover: np.ndarray, step: int) -> NoisedLatents:
        """Return batch `step`: random images, timesteps spread evenly over the batch and then shifted."""
        generator = self.generator(step)
        layout = self.data.draw_layout(len(latents), generator)
        clean, covered = layout.join(latents).float(), layout.split(cover).float() / 255
        weights = self.data.weigh(covered)
        times = shift_times(spread_evenly(len(clean), generator), self.recipe.timestep_shift)
        timesteps = self._timesteps(times)
        noise = torch.randn(clean.shape, generator=generator)
        noised = self.scheduler.add_noise(clean, noise, timesteps)
        target = self.scheduler.get_velocity(clean, noise, timesteps)
        captions = self.data.draw_captions(layout, step, generator)
        tokens = captions.tokens
        own_words = [
            find_own_words(self.data.edition, self.tokenizer, *each, tokens.shape[1])
            for each in zip(captions.truths, captions.prompts, strict=True)
        ]
        own = torch.stack(own_words) & captions.kept[:, None, None]
        if reference := self.data.draw_reference(layout, clean, times, generator):
            clearer = self.scheduler.add_noise(clean, noise, self._timesteps(reference.times))
            noised, weights = torch.where(reference.mask, clearer, noised), weights * ~reference.mask
        noised = noised.contiguous(memory_format=torch.channels_last)
        return NoisedLatents(noised, target, timesteps, tokens, weights, own, covered)

    def _timesteps(self, times: Tensor) -> Tensor:
        return (times * self.scheduler.config.num_train_timesteps).long()

    def loss(self, batch: NoisedLatents) -> dict[str, Tensor]:
        context = self.text_encoder(batch.tokens).last_hidden_state
        predicted = self.unet(batch.noised, batch.timesteps, context).sample
        error = (predicted - batch.target).square()
        loss = (batch.weights * error).mean()
        parts = {"error": error.detach().mean()}
        if self.recorders:
            losses = [binding_loss(each.take(), batch.own_words, batch.cover) for each in self.recorders]
            parts["binding"] = torch.stack(losses).mean()
            loss = loss + self.recipe.binding_weight * parts["binding"]
        return {"loss": loss, **parts}

    def export(self, folder: Path) -> dict[str, float]:
        """Write the whole pipeline in diffusers' layout, including the autoencoder; measure nothing."""
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(self.miniature / "vae"),
            text_encoder=self.text_encoder,
            tokenizer=build_tokenizer(self.recipe.edition),  # the training's own has padding switched on
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,  # type: ignore[arg-type]  # may be None
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        ).to(dtype=torch.float16)
        for network in (pipe.vae, pipe.unet):
            network.register_to_config(_name_or_path="")  # do not record the folder it was loaded from
        pipe.save_pretrained(folder)
        declare_float32(folder / "text_encoder")
        write_card(folder, self.recipe.edition)
        return {}


def extend_text_encoder(encoder: CLIPTextModel, known: CLIPTokenizer, wanted: CLIPTokenizer) -> CLIPTextModel:
    """Return the text encoder of tokenizer `known` as one of `wanted`, which may have more words and longer texts.

    Embeddings move with their words; those of new words are drawn as `draw_embeddings` says. New positions start as the
    last one.
    """
    config = copy.deepcopy(encoder.config)
    config.vocab_size, config.max_position_embeddings = len(wanted), wanted.model_max_length
    extended = CLIPTextModel(config)
    weights = encoder.state_dict()
    words, positions = (f"embeddings.{name}_embedding.weight" for name in ("token", "position"))
    prefix = next(name for name in weights if name.endswith(words)).removesuffix(words)
    old, new = known.get_vocab(), wanted.get_vocab()
    fresh = draw_embeddings(weights[prefix + words], len(wanted))
    for word in old.keys() & new.keys():
        fresh[new[word]] = weights[prefix + words][old[word]]
    places = torch.arange(wanted.model_max_length).clamp(max=known.model_max_length - 1)
    weights |= {prefix + words: fresh, prefix + positions: weights[prefix + positions][places]}
    extended.load_state_dict(weights)
    return extended


def draw_embeddings(known: Tensor, count: int) -> Tensor:
    """Return `count` embeddings drawn from the normal distribution that has the mean and covariance of `known`, (N, D).

    In random directions, which a trained encoder has not learned to read, its states for two new words differ less than
    half as much (Hewitt 2021, "Initializing new word embeddings for pretrained language models"; the measurement is in
    docs/training_miniature.md).
    """
    mean = known.mean(0)
    mixes = torch.randn(count, len(known), generator=torch.Generator().manual_seed(0)) / len(known) ** 0.5
    return mean + mixes @ (known - mean)
