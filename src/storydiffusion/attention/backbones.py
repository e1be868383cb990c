"""Backbones: what consistent self-attention must know of a pipeline's denoiser.

A denoiser of another architecture takes one class that satisfies `Backbone`, registered under the name of the
denoiser's class. Shape letters: B panels in the batch of one call, N tokens, C channels.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import AttentionPlan, attend, mean_attention_maps
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.attention.text_maps import TextRecorder
from storydiffusion.attention.unet_text import RecordingProcessor, choose_text_grid, find_text_factors
from storydiffusion.errors import UserError


class AttentionLayer(Protocol):
    """A diffusers attention layer, whose processor can be replaced."""

    def get_processor(self) -> Any: ...

    def set_processor(self, processor: Any) -> Any: ...


Planner = Callable[[str, Tensor, Callable[[], Tensor]], AttentionPlan | None]
"""(layer's name, its hidden states (B, N, C), function that computes its attention maps (B, N, N)) → the plan of this
call, None for plain attention"""


class Backbone(Protocol):
    """What consistent self-attention must know of a denoiser."""

    denoiser: nn.Module

    def __init__(self, denoiser: nn.Module) -> None: ...

    def self_attention_layers(self, blocks: str) -> dict[str, AttentionLayer]:
        """Return the layers in which the tokens of an image attend to each other, by name.

        Args:
            blocks: `up`, those of the decoder; `all`, every one; `joint` or `single`, those of a transformer with two
                streams or one.

        Raises:
            UserError: where these blocks hold none.
        """
        ...

    def prepare(self, config: ConsistentSelfAttentionConfig) -> None:
        """Take the settings before any call.

        Raises:
            UserError: for a setting that this denoiser does not have.
        """
        ...

    def begin_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Look at the arguments of the denoiser's call before it runs."""
        ...

    def input_shape(self, args: tuple, kwargs: dict[str, Any]) -> InputShape:
        """Return the shape of the latents among the arguments of the denoiser's call."""
        ...

    def latents(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Return the latents (B, C, h, w) among the arguments of the denoiser's call, without other conditions."""
        ...

    def timestep(self, args: tuple, kwargs: dict[str, Any]) -> float | None:
        """Return the timestep of a denoiser that guidance calls several times a step; None where a call is a step."""
        ...

    def grid(self, tokens: int, shape: InputShape) -> Grid:
        """Return the grid of a layer with that many tokens."""
        ...

    def guidance_parts(self, pipe: Any) -> int | None:
        """Return the number of parts that the pipeline's properties state; None where it has none."""
        ...

    def make_processor(self, plan: Planner, layer: str, original: Any) -> Any:
        """Return a processor for a layer: attention as planned, `original` where the plan is None."""
        ...

    def text_layers(self) -> dict[str, AttentionLayer]:
        """Return the layers whose attention from image to text shows who is where, by name.

        Raises:
            UserError: where there are none.
        """
        ...

    def text_grid(self, shape: InputShape) -> Grid:
        """Return the grid on which the attention to text is recorded in a call."""
        ...

    def has_prompts(self, call: int) -> bool:
        """Return whether a call of a step, counted from 1, has the prompts; others have the negative ones alone."""
        ...

    def make_recording_processor(self, recorder: TextRecorder, layer: str, original: Any) -> Any:
        """Return a processor for a text layer that lets `recorder` see it and computes what `original` does."""
        ...

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Return where a pipeline's text encoder has the tokens of a prompt.

        Raises:
            UserError: for a text encoder in which they are not found.
        """
        ...


BACKBONES: dict[str, type[Backbone]] = {}
"""name of a denoiser's class → its backbone"""


Kind = TypeVar("Kind", bound=type[Backbone])


def register_backbone(*denoisers: str) -> Callable[[Kind], Kind]:
    """Return a decorator that registers a backbone for denoisers of these class names and their subclasses.

    Raises:
        UserError: for a name that is taken.
    """
    if taken := sorted(BACKBONES.keys() & set(denoisers)):
        raise UserError(f"denoiser {taken[0]} already has a backbone: leave it out.")

    def register(backbone: Kind) -> Kind:
        BACKBONES.update(dict.fromkeys(denoisers, backbone))
        return backbone

    return register


def get_backbone(denoiser: nn.Module) -> Backbone:
    """Return the backbone of a denoiser, compiled or not.

    Raises:
        UserError: for a denoiser of an unknown class, listing the known ones; for one that was compiled as one graph.
    """
    if getattr(getattr(denoiser, "dynamo_ctx", None), "fullgraph", False):
        raise UserError("the denoiser was compiled with fullgraph=True, which allows no sharing: set fullgraph=False.")
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # below torch.compile
    for kind in type(denoiser).__mro__:
        if kind.__name__ in BACKBONES:
            return BACKBONES[kind.__name__](denoiser)
    raise UserError(
        f"consistent self-attention does not know the denoiser {type(denoiser).__name__}: take one of "
        f"{', '.join(BACKBONES)}, or register a backbone for it."
    )


def find_denoiser(pipe: Any) -> nn.Module:
    """Return the denoiser of a diffusers pipeline, its `.unet` or `.transformer`.

    Raises:
        UserError: for a pipeline without one.
    """
    for name in ("unet", "transformer"):
        if isinstance(denoiser := getattr(pipe, name, None), nn.Module):
            return denoiser
    raise UserError(f"{type(pipe).__name__} has no denoiser: take a diffusers pipeline with .unet or .transformer.")


@register_backbone("UNet2DConditionModel", "UNetMotionModel", "UNetControlNetXSModel")
class UNetBackbone:
    """The U-Net of Stable Diffusion 1.5 and SDXL, alone or with motion modules; diffusers' `attn1` layers."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self._text_factors: dict[str, int] = {}

    def self_attention_layers(self, blocks: str) -> dict[str, AttentionLayer]:
        if blocks in ("joint", "single"):
            raise UserError(f"blocks is {blocks!r}, which a U-Net does not have: choose up or all.")
        found: dict[str, Any] = {
            name: module
            for name, module in self.denoiser.named_modules()
            if name.endswith("attn1")
            and (blocks == "all" or name.startswith("up_blocks."))
            and "motion_modules" not in name  # those attend over time
            and not getattr(module, "is_cross_attention", True)  # blocks with only_cross_attention read text in attn1
        }
        if not found:
            raise UserError(
                f"{type(self.denoiser).__name__} has no self-attention for blocks {blocks!r}: choose blocks 'all'."
            )
        return found

    def prepare(self, config: ConsistentSelfAttentionConfig) -> None:
        if config.positions not in (None, "same"):
            raise UserError(
                f"positions is {config.positions!r}, but {type(self.denoiser).__name__} has no rotary positions: leave "
                "it out."
            )

    def begin_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Do nothing: a layer's inputs say all that its processor needs."""

    def timestep(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Return None: without a callback every call counts as a step."""

    def input_shape(self, args: tuple, kwargs: dict[str, Any]) -> InputShape:
        sample = args[0] if args else kwargs["sample"]
        return InputShape(sample.shape[0], *sample.shape[-2:])

    def latents(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Return the first channels, as many as the U-Net predicts; inpainting and the like append others."""
        return (args[0] if args else kwargs["sample"])[:, : getattr(self.denoiser.config, "out_channels", None)]

    def grid(self, tokens: int, shape: InputShape) -> Grid:
        """Every down block halves height and width, rounding up."""
        factor = 2 ** round(math.log2(shape.height * shape.width / tokens) / 2)
        return Grid(factor, -(-shape.height // factor), -(-shape.width // factor))

    def guidance_parts(self, pipe: Any) -> int | None:
        try:
            doubled = pipe.do_classifier_free_guidance
        except AttributeError:
            return None
        return 1 + bool(doubled) + bool(getattr(pipe, "do_perturbed_attention_guidance", False))

    def make_processor(self, plan: Planner, layer: str, original: Any) -> "ConsistentAttnProcessor":
        return ConsistentAttnProcessor(plan, layer, original)

    def text_layers(self) -> dict[str, AttentionLayer]:
        self._text_factors = find_text_factors(self.denoiser)
        layers: dict[str, Any] = {name: self.denoiser.get_submodule(name) for name in self._text_factors}
        return layers

    def text_grid(self, shape: InputShape) -> Grid:
        return choose_text_grid(set(self._text_factors.values()), shape)

    def has_prompts(self, call: int) -> bool:
        """Return True: guidance doubles the batch, prompts last."""
        return True

    def make_recording_processor(self, recorder: TextRecorder, layer: str, original: Any) -> RecordingProcessor:
        return RecordingProcessor(recorder, self._text_factors[layer], original)

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        tokenizer = getattr(pipe, "tokenizer", None) or pipe.tokenizer_2
        return PromptTokens(tokenizer, first=1, length=tokenizer.model_max_length)


class ConsistentAttnProcessor:
    """A diffusers attention processor for `attn1` of a transformer block.

    Args:
        plan: returns the plan of each call.
        layer: the layer's name in the denoiser.
        original: the processor that it replaces, called where nothing is shared.
    """

    def __init__(self, plan: Planner, layer: str, original: Any):
        self.plan = plan
        self.layer = layer
        self.original = original
        attend: Any = torch.compiler.disable(self._attend)  # a plan changes in every step: no graph holds it
        self._attend_uncompiled: Callable[..., Tensor] = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        return self._attend_uncompiled(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _attend(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        def attention_maps() -> Tensor:
            return mean_attention_maps(attn.to_q(hidden_states), attn.to_k(hidden_states), attn.heads)

        plan = self.plan(self.layer, hidden_states, attention_maps)
        if plan is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)
        if attention_mask is not None:
            raise UserError("consistent self-attention takes no attention_mask: leave it out of the denoiser's call.")
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        output = attend(query, key, value, plan, attn.heads)
        return attn.to_out[1](attn.to_out[0](output))
