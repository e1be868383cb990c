"""Training of the video model, section 3.2 of arXiv 2405.01434: encode → noise → predict → loss.

Trained are the semantic motion predictor, the motion modules, or both; the author trains both together. Everything
else is frozen: without gradients, in eval mode, and in no checkpoint. Beyond the paper, as options: end frames given
clean, the error in x_0 or v, a semantic error, tokens dropped for guidance.

Shapes: B clips on this process, F frames, C latent channels, H × W pixels, h × w latents, T text tokens, D the width
of the cross-attention's context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from storydiffusion.config import TransitionRecipe
from storydiffusion.data.loader import ClipBatch
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.motion_adapters import adapter_arguments
from storydiffusion.models.predictor_files import save_predictor
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines.transition import encode_pictures
from storydiffusion.training.clip_noise import ClipNoise, draw_clip_noise
from storydiffusion.training.diffusion_loss import DiffusionLoss, NoisedLatents, semantic_loss
from storydiffusion.training.optim.learning_rate import rate_at
from storydiffusion.training.optim.muon import Muon, split_parameters
from storydiffusion.training.record import machine
from storydiffusion.training.run_config import check_same_config

PICTURES_AT_ONCE = 16  # that the VAE encodes, so that its memory does not grow with the batch
FREE = (
    "run_dir", "export", "cache", "trainer", "logger", "recipe.steps", "recipe.sample_every", "recipe.sample_clips",
    "data.shards", "data.workers", "model.device", "model.offload", "model.steps", "model.guidance_scale",
    "model.video.fps", "model.video.steps", "model.video.guidance_scale", "model.video.boundary_frames",
)  # fmt: skip
"""Keys of the configuration that may change when a run goes on; shards are told apart by what is in them."""


@dataclass(frozen=True)
class EncodedClips:
    """What the frozen networks make of a batch: latents (B, C, F, h, w) and text (B, T, D)."""

    latents: Tensor
    text: Tensor


class TransitionModule(L.LightningModule):
    """Trains the parts of `model` that `recipe.trainable` names, in float32.

    Args:
        model: all parts, in float32 or, where the trainer works in mixed precision, the frozen ones in half precision.
        recipe: see `TransitionRecipe`.
        predictor_settings: the predictor's arguments, to be written beside its weights; None without a predictor.
        config: of the run, plain data: a checkpoint of another one is refused.
    """

    EDGES = ("positions", "latents", "to_tokens.proj_in", "to_tokens.1", "context_projection")
    """parts of the names of first and last layers, which AdamW trains when Muon trains the matrices"""

    def __init__(
        self,
        model: VideoModel,
        recipe: TransitionRecipe,
        predictor_settings: Mapping[str, Any] | None,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.predictor_settings, self.config = model, recipe, predictor_settings, config
        self.video_unet, self.vae, self.predictor = model.video_unet, model.vae, model.predictor
        self.text_encoder: Any = model.encode_text
        self.image_encoder = model.image_encoder
        schedule = model.scheduler
        self.diffusion = DiffusionLoss(schedule.alphas_cumprod, schedule.config.prediction_type, recipe.loss)
        self.batches = 0  # begun so far, on each process
        self.requires_grad_(False)
        for weight in self.trained_weights():
            weight.data = weight.data.float()
            weight.requires_grad_()
        if recipe.gradient_checkpointing:
            self.video_unet.unet.enable_gradient_checkpointing()
            if self.predictor is not None:
                self.predictor.gradient_checkpointing = True
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_post_hook(_excuse_frozen)
        self.train()

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained and exported."""
        return tuple(self.recipe.trainable)

    def trained_weights(self) -> list[nn.Parameter]:
        weights: list[nn.Parameter] = []
        if "predictor" in self.parts and self.predictor is not None:
            weights += self.predictor.parameters()
        if "motion_module" in self.parts:
            weights += self.video_unet.motion_parameters()
        return weights

    def trained_networks(self) -> list[nn.Module]:
        """Return the networks that gradients pass through, for torch.compile."""
        return [network for network in (self.predictor, self.video_unet.unet) if network is not None]

    def train(self, mode: bool = True) -> "TransitionModule":
        """Puts into train mode what is trained; everything else stays in eval mode."""
        super().train(False)
        self.training = mode
        self.video_unet.train(mode)
        if self.predictor is not None:
            self.predictor.train(mode and "predictor" in self.parts)
        return self

    def training_step(self, batch: ClipBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the `loss` to minimise; for the log each clip's part of it, `losses`, and those terms of it that have
        weight: its diffusion `errors`, with their `timesteps`, and its `semantic` error; all (B,).
        """
        recipe = self.recipe
        tokens = self.semantic_tokens(batch.frames)
        losses = torch.zeros(len(batch.frames), device=self.device)
        outputs: dict[str, Tensor] = {}
        if recipe.diffusion_weight:
            outputs = self.diffusion_errors(self.encode(batch), tokens)
            losses = losses + recipe.diffusion_weight * outputs["errors"]
        if tokens is not None and recipe.semantic_weight:
            outputs["semantic"] = self.semantic_errors(tokens)
            losses = losses + recipe.semantic_weight * outputs["semantic"]
        loss = losses.mean()
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return {name: value.detach() for name, value in (outputs | {"losses": losses}).items()} | {"loss": loss}

    def semantic_tokens(self, frames: Tensor) -> Tensor | None:
        """Frames (B, F, 3, H, W) → the semantic tokens of each, (B, F, N, width), or of the two ends alone, where no
        others are read, (B, 2, N, width); None without a predictor.
        """
        if self.image_encoder is None or self.predictor is None:
            return None
        reads_all = self.recipe.semantic_weight or self.recipe.teacher_forcing
        read = frames if reads_all else frames[:, [0, -1]]
        with torch.no_grad():
            features = self.image_encoder.features(read.flatten(0, 1), self.model.features).float()
        return self.predictor.encode(features).unflatten(0, read.shape[:2])

    def diffusion_errors(self, clips: EncodedClips, tokens: Tensor | None) -> dict[str, Tensor]:
        """The `errors` of the noised clips and their `timesteps`, each (B,)."""
        noise = self.noise(clips)
        noised = self.diffusion.add_noise(clips.latents, noise.noise, noise.timesteps)
        is_given = noise.given < self.recipe.boundary_frame_prob
        errors = self.errors(noised, is_given, clips.text, self.semantic_context(tokens, noise))
        return {"errors": errors, "timesteps": noise.timesteps}

    @torch.no_grad()
    def encode(self, batch: ClipBatch) -> EncodedClips:
        """The frozen networks' part of a step; of the VAE the mode, so that given ends are those of sampling."""
        count, frames = batch.frames.shape[:2]
        pictures = batch.frames.flatten(0, 1)
        latents = torch.cat([encode_pictures(self.vae, part) for part in pictures.split(PICTURES_AT_ONCE)]).float()
        # One window, as where the frozen networks were trained: what a clip is told must not depend on its neighbours.
        text = self.text_encoder(batch.captions)[:, : self.text_encoder.window].float()
        return EncodedClips(latents.unflatten(0, (count, frames)).transpose(1, 2), text)

    def noise(self, clips: EncodedClips) -> ClipNoise:
        """The randomness of this step's clips; counts the step."""
        count = len(clips.latents)
        whole = count * self.trainer.world_size
        first = self.batches * whole + self.trainer.global_rank * count
        self.batches += 1
        steps = len(self.diffusion.alphas_cumprod)
        drawn = draw_clip_noise(self.recipe.seed, range(first, first + count), clips.latents.shape[1:], steps)
        values = (drawn.noise, drawn.timesteps, drawn.given, drawn.told, drawn.forced)
        return ClipNoise(*(value.to(self.device, non_blocking=True) for value in values))

    def semantic_context(self, tokens: Tensor | None, noise: ClipNoise) -> Tensor | None:
        """(B, F, N, D), what tells of each frame: P_1 … P_F, or where teacher forcing falls on a clip the tokens of its
        true frames; zero where they are dropped.
        """
        if self.predictor is None or tokens is None:
            return None
        predicted, recipe = self.predictor.predict(tokens[:, 0], tokens[:, -1], noise.noise.shape[2]), self.recipe
        if recipe.teacher_forcing:
            is_forced = (noise.forced < recipe.teacher_forcing).view(-1, 1, 1, 1)
            predicted = torch.where(is_forced, tokens, predicted)
        is_told = noise.told >= recipe.semantic_dropout
        context = self.predictor.context(predicted)
        return context * is_told.view(-1, 1, 1, 1).to(context)

    def errors(self, noised: NoisedLatents, is_given: Tensor, text: Tensor, semantic: Tensor | None) -> Tensor:
        """(B,): each clip's error over all frames, or over those between the ends where these are given."""
        ends = with_boundary_frames(noised.latents, noised.clean[:, :, 0], noised.clean[:, :, -1])
        latents = torch.where(is_given.view(-1, 1, 1, 1, 1), ends, noised.latents)
        predicted = self.video_unet(latents, noised.timesteps, text, semantic)
        errors = self.diffusion(predicted, noised)
        if not self.recipe.boundary_frame_prob:
            return errors
        between = slice(1, -1)
        return torch.where(is_given, self.diffusion(predicted[:, :, between], noised.frames(between)), errors)

    def semantic_errors(self, tokens: Tensor) -> Tensor:
        """(B,): P_1 … P_F against the true frames' tokens. It teaches the transformer alone: what encodes the tokens is
        held fixed, as it could lower this error by drawing the tokens of all frames together.
        """
        assert self.predictor is not None
        true = tokens.detach()
        return semantic_loss(self.predictor.predict(true[:, 0], true[:, -1], true.shape[1]), true)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        if recipe.optimizer == "muon":
            optimizer: torch.optim.Optimizer = Muon(
                *split_parameters(self, self.EDGES),
                lr=recipe.learning_rate,
                adam_lr=recipe.adam_learning_rate or 0.0,
                weight_decay=recipe.weight_decay,
            )
        else:
            optimizer = torch.optim.AdamW(
                self.trained_weights(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(recipe, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a release needs beside the weights is in it too: the parts' own arguments, and the machine."""
        checkpoint["batches"], checkpoint["config"] = self.batches, dict(self.config)
        checkpoint["parts"], checkpoint["machine"] = self.part_arguments(), machine()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError for a checkpoint of another configuration."""
        check_same_config(checkpoint.get("config"), self.config, FREE)
        self.batches = checkpoint["batches"]

    def part_arguments(self) -> dict[str, dict[str, Any]]:
        """The arguments with which each trained part is made, plain data, by the name of its folder."""
        arguments: dict[str, dict[str, Any]] = {}
        if "predictor" in self.parts:
            arguments["predictor"] = dict(self.predictor_settings or {})
        if "motion_module" in self.parts:
            arguments["motion_adapter"] = adapter_arguments(self.video_unet.unet.config)
        return arguments

    def export(self, folder: Path) -> dict[str, float]:
        """Writes predictor/ and motion_adapter/, those that were trained; returns their numbers of parameters."""
        if "predictor" in self.parts and self.predictor is not None:
            save_predictor(self.predictor, self.predictor_settings or {}, folder / "predictor")
        if "motion_module" in self.parts:
            self.video_unet.unet.save_motion_modules(str(folder / "motion_adapter"))
        return {"trained parameters": float(sum(weight.numel() for weight in self.trained_weights()))}


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    """A state dict hook: only weights that are trained stay."""
    trained = {prefix + name for name, weight in module.named_parameters() if weight.requires_grad}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _excuse_frozen(module: nn.Module, incompatible: Any) -> None:
    """A hook of `load_state_dict`: what is frozen may be missing; what is trained may not."""
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in trained]
