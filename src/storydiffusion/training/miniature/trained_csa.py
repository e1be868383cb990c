"""Self-attention of the miniature's U-Net, trained with consistent self-attention in the loop.

A batch has stories of P panels that show the same characters. All panels of a story are noised to one timestep and
denoised together, sharing tokens as in generation, drawn anew in every step. What all captions leave open, or what only
another panel's caption names, is seen only in the other panels' tokens: only sharing lowers that error. The model so
learns the joint distribution of a story's panels, and panels sampled from it agree.

The projections of the layers that share are trained: 4 % of the U-Net's weights, few enough that low-rank updates would
save nothing. The exported U-Net has them in their usual place.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from storydiffusion.attention.backbones import get_backbone
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import TrainedCSARecipe
from storydiffusion.errors import UserError
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.training.miniature.recipe_module import RecipeModule
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer
from storydiffusion.training.miniature.world_cache import cache_world, name_caches

FOLDER = "unet_trained_csa"
"""of the exported U-Net, beside the folder's own"""


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class NoisedStories:
    """`noised` and the `target` v, (B, C, H, W), B = stories · panels; `timesteps` (B,), equal within a story;
    `tokens` (B, T); `weights` (B, 1, H, W) of the squared errors; the `stories` and the `rate` of sharing.
    """

    noised: Tensor
    target: Tensor
    timesteps: Tensor
    tokens: Tensor
    weights: Tensor
    stories: list[PanelGroup]
    rate: float


class TrainedCSAModule(RecipeModule):
    """Train the self-attention of `self.unet` that shares tokens; all else is frozen.

    Args:
        recipe: see `TrainedCSARecipe`; `batch_size` counts panels.
        miniature: folder of the model.
        cache: folder for the latents of drawn stories, computed once for each recipe.

    Raises:
        UserError: the model knows another edition's words.
    """

    def __init__(self, recipe: TrainedCSARecipe, miniature: Path, cache: Path) -> None:
        super().__init__(recipe)
        self.recipe: TrainedCSARecipe = recipe
        self.miniature = miniature
        self.edition = get_edition(recipe.edition)
        world = f"storyworld_stories_{recipe.edition}_{recipe.seed}_{recipe.panels}_{recipe.pictures}"
        self.cache, self.cover_cache = name_caches(cache, world, miniature / "vae")
        self.tokenizer = build_tokenizer(recipe.edition)
        self.scheduler: Any = DDIMScheduler.from_pretrained(miniature / "scheduler")
        self.text_encoder = CLIPTextModel.from_pretrained(miniature / "text_encoder", dtype=torch.float32)
        if self.text_encoder.config.vocab_size != len(self.tokenizer):
            raise UserError(
                f"{miniature / 'text_encoder'} knows other words than edition {recipe.edition} of StoryWorld: pass "
                "miniature=FOLDER of a model of that edition, or another recipe.edition"
            )
        self.unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
        unet: Any = self.unet
        unet.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        for layer in get_backbone(self.unet).self_attention_layers("up").values():
            assert isinstance(layer, nn.Module)
            layer.requires_grad_(True)

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        return cls(config.recipe, find_model_folder(config.miniature, None), Path(config.cache))

    def trained_networks(self) -> list[nn.Module]:
        """Return none: attention processors change in every step, which a compiled graph would have to follow."""
        return []

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":  # as in Text2ImageModule
            self.unet.set_attn_processor(AttnProcessor())
            self.text_encoder.set_attn_implementation("eager")

    def prepare_data(self) -> None:
        cache_world(
            self.cache, self.cover_cache, self.miniature / "vae", self.edition, self.truth, self.recipe.pictures
        )

    def truth(self, index: int) -> Any:
        return self.edition.sample_story_member(self.recipe.seed, index, self.recipe.panels)

    def train_dataloader(self) -> Stream:
        latents, cover = (np.load(file, mmap_mode="r") for file in (self.cache, self.cover_cache))
        return Stream(lambda step: self.noised(latents, cover, step), self.recipe.steps)

    def noised(self, latents: np.ndarray, cover: np.ndarray, step: int) -> NoisedStories:
        """Return batch `step`: random stories, their timesteps spread evenly over the batch."""
        recipe, generator = self.recipe, self.generator(step)
        panels, count = recipe.panels, recipe.batch_size // recipe.panels
        chosen = torch.randint(len(latents) // panels, (count,), generator=generator).tolist()
        indices = [story * panels + panel for story in chosen for panel in range(panels)]
        clean = torch.from_numpy(latents[indices]).float()
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (spread * self.scheduler.config.num_train_timesteps).long().repeat_interleave(panels)
        noise = torch.randn(clean.shape, generator=generator)
        covered = torch.from_numpy(cover[indices]).float().sum(1, keepdim=True) / 255
        truths = [self.truth(index) for index in indices]
        stories = [truths[first : first + panels] for first in range(0, len(truths), panels)]
        return NoisedStories(
            self.scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last),
            self.scheduler.get_velocity(clean, noise, timesteps),
            timesteps,
            self.tokens(stories, step, generator),
            1 + (recipe.character_weight - 1) * covered,
            [self.group(story, step * count + number) for number, story in enumerate(stories)],
            recipe.rates[int(torch.randint(len(recipe.rates), (), generator=generator))],
        )

    def group(self, truths: list[Any], key: int) -> PanelGroup:
        """Return a story whose panels share tokens where they show a character in common."""
        casts = [set(self.edition.get_looks(truth)) for truth in truths]
        return PanelGroup(len(truths), key, torch.tensor([[bool(one & other) for other in casts] for one in casts]))

    def tokens(self, stories: list[list[Any]], step: int, generator: torch.Generator) -> Tensor:
        """Draw and tokenize captions, int64 (B, T); drop all of some stories, as the part without text in guidance."""
        captions = []
        dropped = torch.rand(len(stories), generator=generator) < self.recipe.caption_dropout
        for number, (truths, drop) in enumerate(zip(stories, dropped.tolist(), strict=True)):
            drawn = self.edition.draw_story_captions(truths, step * len(stories) + number)
            captions += [""] * len(truths) if drop else drawn
        return self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids

    def loss(self, batch: NoisedStories) -> dict[str, Tensor]:
        with torch.no_grad():
            context = self.text_encoder(batch.tokens).last_hidden_state
        sharing = ConsistentSelfAttentionConfig(rate=batch.rate, seed=self.recipe.seed)
        with consistent_self_attention(SimpleNamespace(unet=self.unet), sharing, batch.stories, parts=1):
            predicted = self.unet(batch.noised, batch.timesteps, context).sample
        error = (predicted - batch.target).square()
        return {"loss": (batch.weights * error).mean(), "error": error.detach().mean()}

    def export(self, folder: Path) -> dict[str, float]:
        """Write the U-Net in diffusers' layout; measure nothing."""
        unet: Any = self.unet
        unet.register_to_config(_name_or_path="")  # do not record the folder it was loaded from
        unet.to(torch.float16).save_pretrained(folder / FOLDER)
        return {}
