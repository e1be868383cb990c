"""The miniature's U-Net and its text encoder: latent diffusion as in Stable Diffusion, trained from scratch.

v-prediction (2202.00512) on a cosine schedule. Latents are computed once and cached; captions are drawn anew at every
step and name each part of the attire half of the time, so that words bind to what they name. A share of the batches
shows one character twice in one image. Errors on characters can weigh more than those on the background, which
changes what is learned first, not what is learned in the end; words can be bound to their characters (`binding`).
"""

import copy
import json
from collections.abc import Sequence
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
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.models.image_encoders import load_clip
from storydiffusion.storyworld.captions import Prompt, join_prompts
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.training.miniature.binding import (
    AttentionRecorder,
    binding_loss,
    find_own_words,
    record_cross_attention,
)
from storydiffusion.training.miniature.recipe_module import RecipeModule, declare_float32
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer
from storydiffusion.training.miniature.world_cache import cache_world, name_caches


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


@dataclass(frozen=True)
class Layout:
    """The images of a batch: one list of indices, or two of images side by side along the dimension `dim`."""

    images: tuple[list[int], ...]
    dim: int = -1

    def join(self, maps: np.ndarray) -> Tensor:
        """Gather from maps of all images, (images, …, 16, 16)."""
        return torch.cat([torch.from_numpy(maps[indices]) for indices in self.images], self.dim)

    def split(self, maps: np.ndarray) -> Tensor:
        """Gather likewise with channels of its own for each image, (B, lists · C, H, W), 0 in those of the others."""
        parts = [torch.from_numpy(maps[indices]) for indices in self.images]
        placed = [
            torch.cat([part if i == k else torch.zeros_like(part) for k in range(len(parts))], self.dim)
            for i, part in enumerate(parts)
        ]
        return torch.cat(placed, dim=1)


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
        miniature: folder with vae/ and image_encoder/, whose text tower initialises the text encoder; with
            `recipe.warm_start` its unet/ and text_encoder/ initialise both networks.
        cache: folder for the latents, computed once for each recipe.
    """

    EDGES = ("conv_in", "conv_out", "text_encoder", "time_embedding")

    def __init__(self, recipe: Text2ImageRecipe, miniature: Path, cache: Path) -> None:
        super().__init__(recipe)
        self.recipe: Text2ImageRecipe = recipe
        self.miniature = miniature
        self.edition = get_edition(recipe.edition)
        world = f"storyworld_pairs_{recipe.edition}_{recipe.seed}_{recipe.pictures}"
        self.cache, self.cover_cache = name_caches(cache, world, miniature / "vae")
        self.tokenizer = build_tokenizer(recipe.edition)
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
        self.text_encoder.train()
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
        cache_world(
            self.cache, self.cover_cache, self.miniature / "vae", self.edition, self.truth, self.recipe.pictures
        )

    def train_dataloader(self) -> Stream:
        latents, cover = (np.load(file, mmap_mode="r") for file in (self.cache, self.cover_cache))
        return Stream(lambda step: self.noised(latents, cover, step), self.recipe.steps)

    def noised(self, latents: np.ndarray, cover: np.ndarray, step: int) -> NoisedLatents:
        """Return batch `step`: random images, timesteps spread evenly over the batch."""
        generator = self.generator(step)
        paired = torch.rand((), generator=generator) < self.recipe.pair_probability
        layout = (self.pairs if paired else self.singles)(len(latents), generator)
        clean, covered = layout.join(latents).float(), layout.split(cover).float() / 255
        weights = 1 + (self.recipe.character_weight - 1) * covered.sum(1, keepdim=True)
        count = len(clean)
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (spread * self.scheduler.config.num_train_timesteps).long()
        noise = torch.randn(clean.shape, generator=generator)
        noised = self.scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        target = self.scheduler.get_velocity(clean, noise, timesteps)
        truths = list(zip(*([self.truth(index) for index in indices] for indices in layout.images), strict=True))
        prompts = [self.prompts(each, step * count + number) for number, each in enumerate(truths)]
        tokens, kept = self.tokens([join_prompts(each).text for each in prompts], generator)
        own_words = [
            find_own_words(self.edition, self.tokenizer, *each, tokens.shape[1])
            for each in zip(truths, prompts, strict=True)
        ]
        return NoisedLatents(
            noised, target, timesteps, tokens, weights, torch.stack(own_words) & kept[:, None, None], covered
        )

    def singles(self, images: int, generator: torch.Generator) -> Layout:
        """Choose single images."""
        return Layout((torch.randint(images, (self.recipe.batch_size,), generator=generator).tolist(),))

    def pairs(self, images: int, generator: torch.Generator) -> Layout:
        """Choose collages of two images of one character, half as many, beside or below each other.

        They teach self-attention that similar characters in one image wear the same attire; consistent self-attention
        itself is not used in training.
        """
        firsts = (2 * torch.randint(images // 2, (self.recipe.batch_size // 2,), generator=generator)).tolist()
        below_or_beside = int(torch.randint(2, (), generator=generator)) - 2
        return Layout((firsts, [index + 1 for index in firsts]), below_or_beside)

    def prompts(self, truths: Sequence[Any], seed: int) -> tuple[Prompt, ...]:
        """Return new prompts of one image or of a pair side by side."""
        if len(truths) == 1:
            return (self.edition.draw_prompt(truths[0], seed),)
        return self.edition.draw_pair_prompts(truths[0], truths[1], seed)

    def truth(self, index: int) -> Any:
        return self.edition.sample_pair_member(self.recipe.seed, index)

    def tokens(self, captions: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokenize captions, int64 (B, T); drop some for classifier-free guidance and make some words unknown.

        Also returns which captions were kept, bool (B,).
        """
        recipe = self.recipe
        dropped = torch.rand(len(captions), generator=generator) < recipe.caption_dropout
        kept = ["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)]
        tokens = self.tokenizer(kept, padding="max_length", return_tensors="pt").input_ids
        unknown = torch.rand(tokens.shape, generator=generator) < recipe.unknown_word_probability
        return tokens.masked_fill(unknown & (tokens > 1), self.tokenizer.unk_token_id), ~dropped

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
        write_atomically(
            folder / "storydiffusion.json", json_bytes({"kind": "miniature", "edition": self.recipe.edition})
        )
        return {}


def extend_text_encoder(encoder: CLIPTextModel, known: CLIPTokenizer, wanted: CLIPTokenizer) -> CLIPTextModel:
    """Return the text encoder of tokenizer `known` as one of `wanted`, which may have more words and longer texts.

    Embeddings move with their words; those of new words are new. New positions start as the last one.
    """
    config = copy.deepcopy(encoder.config)
    config.vocab_size, config.max_position_embeddings = len(wanted), wanted.model_max_length
    extended = CLIPTextModel(config)
    weights = encoder.state_dict()
    words, positions = (f"embeddings.{name}_embedding.weight" for name in ("token", "position"))
    prefix = next(name for name in weights if name.endswith(words)).removesuffix(words)
    fresh = extended.state_dict()[prefix + words].clone()
    old = known.get_vocab()
    for word, index in wanted.get_vocab().items():
        if word in old:
            fresh[index] = weights[prefix + words][old[word]]
    places = torch.arange(wanted.model_max_length).clamp(max=known.model_max_length - 1)
    weights |= {prefix + words: fresh, prefix + positions: weights[prefix + positions][places]}
    extended.load_state_dict(weights)
    return extended
