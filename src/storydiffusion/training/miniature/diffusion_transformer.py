"""The miniature's diffusion transformer: FLUX's classes at a few million parameters, trained from scratch.

Rectified flow (2209.03003) with logit-normal times (2403.03206): with latents x, noise ε and time t,

    z_t = (1 - t) x + t ε        the transformer predicts ε - x

The text encoder is that of the miniature's U-Net, frozen; it stands in both places of FLUX's CLIP and T5. Latents are
packed as FLUX packs them: 2 × 2 of them are a token. Batches are those of `captioned_latents`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from storydiffusion.attention.flux import project_joint, project_outputs
from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import RECIPES, DitRecipe
from storydiffusion.errors import UserError
from storydiffusion.files.model_files import read_config
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.text_to_image import load_tokenizer
from storydiffusion.pipelines.calls import build_text_arguments, pack
from storydiffusion.storyworld.images import IMAGE_SIZE
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.sample_sheet import SampleSheet
from storydiffusion.training.miniature.captioned_latents import CaptionedLatents, shift_times, spread_evenly
from storydiffusion.training.miniature.recipe_module import RecipeModule, declare_float32, write_card
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer
from storydiffusion.training.record import read_record, write_record

PATCH = 2  # latents on a token's side
READERS = ("attribute_classifier", "image_encoder", "emotion_probe")
"""parts of the miniature's folder that read images, for benchmarks"""
SAMPLED, SAMPLING_STEPS, GUIDANCE = 8, 10, 3.0  # images of a sheet, and how they are sampled


def build_transformer(recipe: DitRecipe, latent_channels: int, text_width: int) -> FluxTransformer2DModel:
    """Build the transformer, which at first predicts zero: its blocks pass tokens through unchanged [adaLN-Zero]."""
    axis = recipe.head_width // 8
    transformer = FluxTransformer2DModel(
        in_channels=latent_channels * PATCH**2,
        num_layers=recipe.layers,
        num_single_layers=recipe.single_layers,
        attention_head_dim=recipe.head_width,
        num_attention_heads=recipe.heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=text_width,
        axes_dims_rope=(2 * axis, 3 * axis, 3 * axis),
    )
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and (".norm" in f".{name}" or name == "proj_out"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return transformer


def build_scheduler(recipe: DitRecipe) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=recipe.timestep_shift)


def get_positions(height: int, width: int) -> Tensor:
    """Return (height · width, 3), the positions of an image's tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class NoisedTokens:
    """`noised` and the `target`, (B, N, 4 C); `times` (B,) in (0, 1); `positions` (N, 3); `words` (B, T); `weights`
    (B, N, 4 C) of the squared errors.
    """

    noised: Tensor
    target: Tensor
    times: Tensor
    positions: Tensor
    words: Tensor
    weights: Tensor


class DiffusionTransformerModule(RecipeModule):
    """Train `self.transformer` on the latents of the miniature's autoencoder and the words of its text encoder.

    Args:
        recipe: see `DitRecipe`.
        miniature: folder with vae/, text_encoder/ and tokenizer/.
        cache: folder for the latents, computed once for each recipe and shared with `Text2ImageModule`.
    """

    EDGES = ("x_embedder", "context_embedder", "time_text_embed", ".norm", "transformer.proj_out")

    def __init__(self, recipe: DitRecipe, miniature: Path, cache: Path) -> None:
        super().__init__(recipe)
        self.recipe: DitRecipe = recipe
        self.miniature = miniature
        self.tokenizer = load_tokenizer(miniature)
        if self.tokenizer.get_vocab() != build_tokenizer(recipe.edition).get_vocab():
            raise UserError(
                f"{miniature / 'tokenizer'} knows other words than edition {recipe.edition} of StoryWorld: set "
                "miniature to a folder of that edition"
            )
        self.text_encoder = CLIPTextModel.from_pretrained(miniature / "text_encoder", dtype=torch.float32)
        self.text_encoder.requires_grad_(False).eval()
        text = self.text_encoder.config
        if recipe.text_tokens > text.max_position_embeddings:
            raise UserError(
                f"recipe.text_tokens={recipe.text_tokens}, but {miniature / 'text_encoder'} takes "
                f"{text.max_position_embeddings} tokens: give at most that"
            )
        self.tokenizer.model_max_length = recipe.text_tokens
        self.data = CaptionedLatents(recipe, miniature / "vae", cache, self.tokenizer)
        channels = read_config(miniature / "vae" / "config.json")["latent_channels"]
        self.transformer = build_transformer(recipe, channels, text.hidden_size).train()

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        miniature = find_model_folder(config.miniature, None)
        if Path(config.export).resolve() == miniature.resolve():
            raise UserError(f"export={config.export} has the pipeline of a U-Net: choose a folder of its own")
        return cls(config.recipe, miniature, Path(config.cache))

    def build_callbacks(self, run_dir: Path, ema: EMA) -> list[L.Callback]:
        if not self.recipe.sample_every:
            return []
        return [SampleImages(self.recipe.sample_every, run_dir, ema)]

    def trained_networks(self) -> list[nn.Module]:
        return [self.transformer]

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            # in bfloat16 the backward pass of torch's fused attention takes up to 9 times as long as explicit products
            processor: Any = ExplicitFluxAttnProcessor()
            self.transformer.set_attn_processor(processor)

    def prepare_data(self) -> None:
        self.data.prepare()

    def train_dataloader(self) -> Stream:
        latents, cover = self.data.load()
        return Stream(lambda step: self.noised(latents, cover, step), self.recipe.steps)

    def noised(self, latents: np.ndarray, cover: np.ndarray, step: int) -> NoisedTokens:
        """Return batch `step`: random images, quantiles of shifted logit-normal times spread evenly over the batch."""
        generator = self.generator(step)
        layout = self.data.draw_layout(len(latents), generator)
        clean = layout.join(latents).float()
        weights = self.data.weigh(layout.split(cover).float() / 255).expand_as(clean)
        times = torch.special.ndtri(spread_evenly(len(clean), generator).clamp(1e-4, 1 - 1e-4)).sigmoid()
        times = shift_times(times, self.recipe.timestep_shift)
        noise = torch.randn(clean.shape, generator=generator)
        captions = self.data.draw_captions(layout, step, generator)
        noised = _mix(clean, noise, times)
        if reference := self.data.draw_reference(layout, clean, times, generator):
            noised = torch.where(reference.mask, _mix(clean, noise, reference.times), noised)
            weights = weights * ~reference.mask
        height, width = (side // PATCH for side in clean.shape[-2:])
        return NoisedTokens(
            pack(noised),
            pack(noise - clean),
            times,
            get_positions(height, width),
            captions.tokens,
            pack(weights),
        )

    def loss(self, batch: NoisedTokens) -> dict[str, Tensor]:
        with torch.no_grad():
            text = self.text_encoder(batch.words)
        predicted = self.transformer(
            hidden_states=batch.noised,
            timestep=batch.times,
            encoder_hidden_states=text.last_hidden_state,
            pooled_projections=text.pooler_output,
            txt_ids=batch.positions.new_zeros(batch.words.shape[1], 3),
            img_ids=batch.positions,
            return_dict=False,
        )[0]
        error = (predicted - batch.target).square()
        return {"loss": (batch.weights * error).mean(), "error": error.detach().mean()}

    def export(self, folder: Path) -> dict[str, float]:
        """Write a FluxPipeline in diffusers' layout, with the parts that benchmarks read images by; measure nothing."""
        self.build_pipeline().to(dtype=torch.float16).save_pretrained(folder)
        for encoder in ("text_encoder", "text_encoder_2"):
            declare_float32(folder / encoder)
        for part in READERS:
            if (self.miniature / part).is_dir():
                shutil.copytree(self.miniature / part, folder / part)
        write_record(folder, {part: entry for part, entry in read_record(self.miniature).items() if part in RECIPES})
        write_card(folder, self.recipe.edition)
        return {}

    def build_pipeline(self) -> FluxPipeline:
        """Return the pipeline of the weights as they are, with the text encoder in the places of CLIP and of T5."""
        vae = AutoencoderKL.from_pretrained(self.miniature / "vae", torch_dtype=torch.float32)
        vae.register_to_config(shift_factor=0.0, _name_or_path="")  # FLUX adds it to latents
        tokenizer_2 = load_tokenizer(self.miniature)
        tokenizer_2.model_max_length = self.recipe.text_tokens
        return FluxPipeline(
            scheduler=build_scheduler(self.recipe),
            vae=vae,
            text_encoder=self.text_encoder,
            tokenizer=load_tokenizer(self.miniature),
            text_encoder_2=self.text_encoder,  # type: ignore[arg-type]
            tokenizer_2=tokenizer_2,
            transformer=self.transformer,
        )


class SampleImages(SampleSheet):
    """Writes the images of a held-out world's first captions, side by side."""

    def draw(self, module: Any) -> np.ndarray:
        edition, pipe = module.data.edition, module.build_pipeline()
        pipe.set_progress_bar_config(disable=True)
        truths = [edition.sample(module.recipe.seed + 1, index) for index in range(SAMPLED)]
        prompts = [edition.draw_prompt(truth, index).text for index, truth in enumerate(truths)]
        images: Any = pipe(
            **build_text_arguments(pipe, prompts, [""] * SAMPLED),
            true_cfg_scale=GUIDANCE,
            num_inference_steps=SAMPLING_STEPS,
            height=IMAGE_SIZE,
            width=IMAGE_SIZE,
            generator=[torch.Generator().manual_seed(index) for index in range(SAMPLED)],
        ).images
        return np.concatenate([np.asarray(image) for image in images], axis=1)


class ExplicitFluxAttnProcessor:
    """FLUX's attention by explicit products, in place of diffusers' `FluxAttnProcessor`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        query, key, value = project_joint(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        output = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return project_outputs(attn, output, encoder_hidden_states)


def _mix(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    share = times.view(-1, 1, 1, 1)
    return (1 - share) * clean + share * noise
