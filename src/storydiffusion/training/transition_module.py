"""Training of the video model, section 3.2 of arXiv 2405.01434: encode → noise → predict → loss.

The semantic motion predictor, the motion modules, or both are trained; the paper trains both together. Everything else
is frozen: without gradients, in eval mode, and left out of checkpoints. Options beyond the paper: clean boundary frames
as input, the error in x_0 or v, a semantic error, a text error, semantic tokens dropped for guidance.

Shapes: B clips on this process, F frames, C latent channels, H × W pixels, h × w latents, T text tokens, D the width
of the cross-attention's context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from storydiffusion.config import TransitionRecipe
from storydiffusion.data.loader import ClipBatch, FeatureBatch
from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import write_training_record
from storydiffusion.loaders.video import encode_example_words
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.motion_adapters import get_adapter_arguments
from storydiffusion.models.predictor_files import save_predictor
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines.transition_sampling import encode_images
from storydiffusion.training.clip_noise import ClipNoise, draw_clip_noise
from storydiffusion.training.diffusion_loss import DiffusionLoss, NoisedLatents, semantic_loss, text_loss
from storydiffusion.training.optim.learning_rate import build_schedule
from storydiffusion.training.optim.optimizers import OPTIMIZERS
from storydiffusion.training.record import machine
from storydiffusion.training.run_config import check_same_config

VAE_BATCH = 16  # frames encoded at once, so that the VAE's memory does not grow with the batch
MUTABLE_KEYS = (
    "run_dir", "export", "cache", "trainer", "logger", "recipe.steps", "recipe.sample_every", "recipe.sample_clips",
    "data.shards", "data.cache", "data.workers", "model.device", "model.offload", "model.steps", "model.guidance_scale",
    "model.variant", "model.guidance_rescale", "model.guidance_start", "model.controlnet", "model.controlnet_scale",
    "model.freeu", "model.video.fps", "model.video.steps", "model.video.guidance_scale", "model.video.boundary_frames",
)  # fmt: skip
"""Configuration keys that may change when a run resumes; shards are identified by their content."""


@dataclass(frozen=True)
class EncodedClips:
    """A batch encoded by the frozen networks: latents (B, C, F, h, w) and text (B, T, D)."""

    latents: Tensor
    text: Tensor


class TransitionModule(L.LightningModule):
    """Train the parts of `model` that `recipe.trainable` names, in float32, or cast to half precision by DeepSpeed.

    Args:
        model: all parts, in float32; under mixed precision the frozen ones may be in half precision.
        recipe: see `TransitionRecipe`.
        predictor_settings: the predictor's arguments, exported beside its weights; None if it is not trained.
        config: the run's configuration as plain data; checkpoints of another configuration are refused.
    """

    EDGES = ("positions", "latents", "to_tokens.proj_in", "to_tokens.1", "context_projection")
    """Parts of the names of first and last layers, which Muon leaves to AdamW."""

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
        self.text_variance = _measure_text_variance(model, self.text_encoder.window) if recipe.text_weight else 1.0
        self.batches = 0  # batches started so far, on each process
        self.requires_grad_(False)
        for weight in self.trained_weights():
            weight.data = weight.data.float()
            weight.requires_grad_()
        if recipe.gradient_checkpointing:
            self.video_unet.unet.enable_gradient_checkpointing()
            if self.predictor is not None:
                self.predictor.gradient_checkpointing = True
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_allow_missing_frozen)
        self.train()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the trained and exported parts."""
        return tuple(self.recipe.trainable)

    def trained_weights(self) -> list[nn.Parameter]:
        weights: list[nn.Parameter] = []
        if "predictor" in self.parts and self.predictor is not None:
            weights += self.predictor.parameters()
        if "motion_module" in self.parts:
            weights += self.video_unet.motion_parameters()
        return weights

    @property
    def trained_dtype(self) -> torch.dtype:
        """The dtype of the trained weights, in which the networks compute outside autocast.

        It is float32, except in DeepSpeed's engine, which casts the whole module and opens no autocast.
        """
        return next(weight.dtype for weight in self.parameters() if weight.requires_grad)

    def trained_networks(self) -> list[nn.Module]:
        """Return the networks that gradients pass through, for torch.compile.

        A step calls methods of the predictor, which compiling the predictor itself would leave out.
        """
        parts = [] if self.predictor is None else [self.predictor.to_tokens, *self.predictor.layers]
        return [*parts, self.video_unet.unet]

    def train(self, mode: bool = True) -> "TransitionModule":
        """Set train mode for the trained parts only; the frozen ones stay in eval mode."""
        super().train(False)
        self.training = mode
        self.video_unet.train(mode)
        if self.predictor is not None:
            self.predictor.train(mode and "predictor" in self.parts)
        return self

    def on_fit_start(self) -> None:
        self.cast_buffers()

    def cast_buffers(self) -> None:
        """Cast the floating buffers to the dtype of the trained weights: DeepSpeed's engine casts parameters only."""
        for network in self.modules():
            for name, buffer in network.named_buffers(recurse=False):
                if buffer.is_floating_point() and self.trained_dtype != torch.float32:
                    setattr(network, name, buffer.to(self.trained_dtype))

    def training_step(self, batch: ClipBatch | FeatureBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the `loss` to minimise, and for the log, all (B,): `losses` per clip and the terms with non-zero
        weight, the diffusion `errors` with their `timesteps`, the `semantic` and the `text` errors.
        """
        recipe = self.recipe
        if isinstance(batch, FeatureBatch):
            tokens = None if batch.image is None else self.encode_tokens(batch.image)
        else:
            tokens = self.semantic_tokens(batch.frames)
        losses = torch.zeros(len(batch.keys), device=self.device)
        outputs: dict[str, Tensor] = {}
        if recipe.diffusion_weight:
            outputs = self.diffusion_errors(self.encode(batch), tokens)
            losses = losses + recipe.diffusion_weight * outputs["errors"]
        if tokens is not None and recipe.semantic_weight:
            outputs["semantic"] = self.semantic_errors(tokens)
            losses = losses + recipe.semantic_weight * outputs["semantic"]
        if tokens is not None and recipe.text_weight:
            outputs["text"] = self.text_errors(tokens, batch.captions)
            losses = losses + recipe.text_weight * outputs["text"]
        loss = losses.mean()
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return {name: value.detach() for name, value in (outputs | {"losses": losses}).items()} | {"loss": loss}

    def semantic_tokens(self, frames: Tensor) -> Tensor | None:
        """Encode frames (B, F, 3, H, W) into semantic tokens (B, F, N, width), or only the boundary frames if no loss
        reads the others, (B, 2, N, width). Return None without a predictor.
        """
        features = self.image_features(frames)
        return None if features is None else self.encode_tokens(features)

    @torch.no_grad()
    def image_features(self, frames: Tensor) -> Tensor | None:
        """Return the image features (B, F or 2, M, W) of frames (B, F, 3, H, W); None without a predictor."""
        if self.image_encoder is None or self.predictor is None:
            return None
        read = frames if self.recipe.reads_all_frames else frames[:, [0, -1]]
        return self.image_encoder.features(read.flatten(0, 1), self.model.features).unflatten(0, read.shape[:2])

    def encode_tokens(self, features: Tensor) -> Tensor:
        """Encode image features (B, R, M, W) into semantic tokens (B, R, N, width)."""
        assert self.predictor is not None
        tokens = self.predictor.encode(features.flatten(0, 1).to(self.trained_dtype))
        return tokens.unflatten(0, features.shape[:2])

    def diffusion_errors(self, clips: EncodedClips, tokens: Tensor | None) -> dict[str, Tensor]:
        """Noise the clips and return the `errors` of the prediction with their `timesteps`, each (B,)."""
        noise = self.noise(clips)
        noised = self.diffusion.add_noise(clips.latents, noise.noise, noise.timesteps)
        is_given = noise.boundary < self.recipe.boundary_frame_prob
        errors = self.errors(noised, is_given, self.text(clips, noise), self.semantic_context(tokens, noise))
        return {"errors": errors, "timesteps": noise.timesteps}

    @torch.no_grad()
    def encode(self, batch: ClipBatch | FeatureBatch) -> EncodedClips:
        """Encode a batch with the frozen networks, unless a cache has its features.

        The VAE's mode is taken, as for boundary frames in sampling.
        """
        if isinstance(batch, FeatureBatch):
            return EncodedClips(batch.latents.float(), batch.text.float())
        count, frames = batch.frames.shape[:2]
        images = batch.frames.flatten(0, 1)
        latents = torch.cat([encode_images(self.vae, part) for part in images.split(VAE_BATCH)]).float()
        # One window, as in the training of the frozen networks: a clip's context must not depend on other clips.
        text = self.text_encoder(batch.captions)[:, : self.text_encoder.window].float()
        return EncodedClips(latents.unflatten(0, (count, frames)).transpose(1, 2), text)

    def noise(self, clips: EncodedClips) -> ClipNoise:
        """Draw the random numbers of this step's clips and count the step."""
        count = len(clips.latents)
        whole = count * self.trainer.world_size
        first = self.batches * whole + self.trainer.global_rank * count
        self.batches += 1
        steps = len(self.diffusion.alphas_cumprod)
        drawn = draw_clip_noise(self.recipe.seed, range(first, first + count), clips.latents.shape[1:], steps)
        values = (drawn.noise, drawn.timesteps, drawn.boundary, drawn.dropout, drawn.forcing, drawn.joint)
        return ClipNoise(*(value.to(self.device, non_blocking=True) for value in values))

    def text(self, clips: EncodedClips, noise: ClipNoise) -> Tensor:
        """Return the clips' text (B, T, D), that of the empty caption where text and tokens are dropped together."""
        if not self.recipe.joint_dropout:
            return clips.text
        empty = self.text_encoder([""]).to(clips.text)
        return torch.where((noise.joint < self.recipe.joint_dropout).view(-1, 1, 1), empty, clips.text)

    def semantic_context(self, tokens: Tensor | None, noise: ClipNoise) -> Tensor | None:
        """Return the semantic context of each frame, (B, F, N, D): P_1 … P_F, or the true frames' tokens for
        teacher-forced clips; zero where the tokens are dropped.
        """
        if self.predictor is None or tokens is None:
            return None
        predicted, recipe = self.predictor.predict(tokens[:, 0], tokens[:, -1], noise.noise.shape[2]), self.recipe
        if recipe.teacher_forcing:
            is_forced = (noise.forcing < recipe.teacher_forcing).view(-1, 1, 1, 1)
            predicted = torch.where(is_forced, tokens, predicted)
        is_kept = (noise.dropout >= recipe.semantic_dropout) & (noise.joint >= recipe.joint_dropout)
        context = self.predictor.context(predicted)
        return context * is_kept.view(-1, 1, 1, 1).to(context)

    def errors(self, noised: NoisedLatents, is_given: Tensor, text: Tensor, semantic: Tensor | None) -> Tensor:
        """Return each clip's error (B,) over all frames, or over the frames between given boundary frames."""
        ends = with_boundary_frames(noised.latents, noised.clean[:, :, 0], noised.clean[:, :, -1])
        latents = torch.where(is_given.view(-1, 1, 1, 1, 1), ends, noised.latents)
        dtype = self.trained_dtype
        predicted = self.video_unet(latents.to(dtype), noised.timesteps, text.to(dtype), semantic)
        errors = self.diffusion(predicted, noised)
        if not self.recipe.boundary_frame_prob:
            return errors
        between = slice(1, -1)
        return torch.where(is_given, self.diffusion(predicted[:, :, between], noised.frames(between)), errors)

    def semantic_errors(self, tokens: Tensor) -> Tensor:
        """Return the error of P_1 … P_F against the true frames' tokens, (B,).

        Only the transformer learns from it: the token encoder could lower this error by collapsing all tokens.
        """
        assert self.predictor is not None
        true = tokens.detach()
        return semantic_loss(self.predictor.predict(true[:, 0], true[:, -1], true.shape[1]), true)

    def text_errors(self, tokens: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the error of the frames' own tokens (B, F, N, width) against their captions, (B,); 0 without caption.

        The target of a frame's N tokens is the text encoder's states 1 … N of its caption, which follow the start
        token and leave out `recipe.text_skipped`: with the empty caption as text, such tokens act on the U-Net as the
        caption would.
        """
        assert self.predictor is not None
        batch, frames, count = tokens.shape[:3]
        states = self.text_encoder.encode_words(
            captions, count, self.recipe.text_skipped
        ).float()  # of B or B · F texts
        states = states.view(batch, -1, count, states.shape[-1]).expand(-1, frames, -1, -1)
        errors = text_loss(self.predictor.context(tokens), states, self.text_variance)
        is_named = torch.tensor([bool(text) for text in captions[:: len(captions) // batch]], device=errors.device)
        return torch.where(is_named, errors, 0.0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = OPTIMIZERS[self.recipe.optimizer](self, self.recipe)
        return {"optimizer": optimizer, "lr_scheduler": build_schedule(optimizer, self.recipe)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming and a release need beside the weights: counters, configuration, part arguments, machine."""
        checkpoint["batches"], checkpoint["config"] = self.batches, dict(self.config)
        checkpoint["parts"], checkpoint["machine"] = self.part_arguments(), machine()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters; raise UserError for a checkpoint of another configuration."""
        check_same_config(checkpoint.get("config"), self.config, MUTABLE_KEYS)
        self.batches = checkpoint["batches"]

    def part_arguments(self) -> dict[str, dict[str, Any]]:
        """Return the constructor arguments of each trained part as plain data, by the name of its folder."""
        arguments: dict[str, dict[str, Any]] = {}
        if "predictor" in self.parts:
            arguments["predictor"] = dict(self.predictor_settings or {})
        if "motion_module" in self.parts:
            arguments["motion_adapter"] = get_adapter_arguments(self.video_unet.unet.config)
        return arguments

    def export(self, folder: Path) -> dict[str, float]:
        """Write the trained ones of predictor/ and motion_adapter/; return their number of parameters."""
        if "predictor" in self.parts and self.predictor is not None:
            save_predictor(self.predictor, self.predictor_settings or {}, folder / "predictor")
        if "motion_module" in self.parts:
            self.video_unet.unet.save_motion_modules(str(folder / "motion_adapter"))
            write_training_record(folder / "motion_adapter", self.recipe.boundary_frame_prob)
        return {"trained parameters": float(sum(weight.numel() for weight in self.trained_weights()))}


def _measure_text_variance(model: VideoModel, window: int) -> float:
    """Return the variance of the text encoder's states of words; `window` is its number of states.

    Raises:
        UserError: the predictor has more tokens than a caption has states after its start token.
    """
    count = 0 if model.predictor is None else model.predictor.tokens_per_frame
    if count >= window:
        raise UserError(
            f"predictor.tokens_per_frame={count}, but a caption has only {window - 1} states after its start token: "
            "use fewer, or set recipe.text_weight=0"
        )
    return encode_example_words(model).var().item()


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    """State dict hook: keep the trained weights only."""
    trained = {prefix + name for name, weight in module.named_parameters() if weight.requires_grad}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _allow_missing_frozen(module: nn.Module, incompatible: Any) -> None:
    """Hook of `load_state_dict`: frozen weights may be missing, trained ones may not."""
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in trained]
