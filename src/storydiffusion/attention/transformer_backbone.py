"""What the backbones of diffusion transformers have in common; flux.py and its neighbors hold one family each."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storydiffusion.attention.backbones import AttentionLayer, Grid, InputShape, Planner
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import AttentionPlan, mean_attention_maps
from storydiffusion.attention.joint_attention import attend_joint, shift_angles
from storydiffusion.errors import UserError


@dataclass(frozen=True)
class JointCall:
    """Of one call of a diffusion transformer.

    Attributes:
        batch: images in all guidance parts.
        height, width: of an image in tokens.
        first: place of the first image token in the joint sequence of text and image.
        references: number of reference images behind the image.
    """

    batch: int
    height: int
    width: int
    first: int
    references: int = 0

    @property
    def tokens(self) -> int:
        """N, tokens of an image."""
        return self.height * self.width

    @property
    def image(self) -> slice:
        """The place of the image tokens in the joint sequence."""
        return slice(self.first, self.first + self.tokens)


class TransformerBackbone(ABC):
    """A diffusion transformer with joint attention over text and image tokens, all on one grid.

    Where `blocks` is `up` or `all`, every block shares tokens: a transformer has no decoder.

    Attributes:
        positions: choices of the setting `positions`, the default first.
        layers: names of the attention layers in a block.
        processors: name of a diffusers attention processor → the one that shares tokens in its place.
        slot: distance along the first position axis at which the model was trained to see a reference image.
    """

    positions: ClassVar[Sequence[str]] = ("beside", "same", "reference")
    layers: ClassVar[Sequence[str]] = ("attn",)
    processors: ClassVar[Mapping[str, "type[JointAttnProcessor]"]]
    slot: ClassVar[int] = 1

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser: Any = denoiser
        self.call = JointCall(0, 0, 0, 0)
        self._positions = self.positions[0]

    def prepare(self, config: ConsistentSelfAttentionConfig) -> None:
        if config.panels_at_once is not None:
            raise UserError(
                f"panels_at_once is {config.panels_at_once!r}, which {type(self.denoiser).__name__} does not support: "
                "leave it out, or choose a U-Net."
            )
        if config.positions is not None and config.positions not in self.positions:
            raise UserError(
                f"positions is {config.positions!r}, but {type(self.denoiser).__name__} has no rotary positions: leave "
                "it out."
            )
        self._positions = config.positions or self.positions[0]

    def self_attention_layers(self, blocks: str) -> dict[str, AttentionLayer]:
        prefix = {"joint": "", "single": "single_"}.get(blocks, "(single_)?")
        found: dict[str, Any] = {
            name: module
            for name, module in self.denoiser.named_modules()
            if re.fullmatch(rf"{prefix}transformer_blocks\.\d+\.({'|'.join(self.layers)})", name)
        }
        if not found:
            raise UserError(f"blocks is {blocks!r}, which {type(self.denoiser).__name__} does not have: choose all.")
        return found

    def begin_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Read the layout of the sequence from the arguments.

        Raises:
            UserError: for a denoiser or a call whose attention could not be shared correctly.
        """
        if (cache := getattr(self.denoiser, "_cache_config", None)) is not None:
            raise UserError(
                f"{type(cache).__name__} is enabled, which reuses attention of other steps: call "
                "pipe.transformer.disable_cache() first."
            )
        if getattr(self.denoiser, "_parallel_config", None) is not None:
            raise UserError("the transformer is divided among devices, which is not supported: load it on one device.")
        self.call = self.read_call(self.arguments(args, kwargs))

    @abstractmethod
    def read_call(self, arguments: Mapping[str, Any]) -> JointCall:
        """Return the layout of a call from its arguments by name."""

    def input_shape(self, args: tuple, kwargs: dict[str, Any]) -> InputShape:
        return InputShape(self.call.batch, self.call.height, self.call.width)

    def latents(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Return the image tokens (B, N, C), without reference images."""
        return self.arguments(args, kwargs)["hidden_states"][:, : self.call.tokens]

    def timestep(self, args: tuple, kwargs: dict[str, Any]) -> float:
        """Return the timestep: guidance with a second call repeats it."""
        return float(self.arguments(args, kwargs)["timestep"].flatten()[0])

    def grid(self, tokens: int, shape: InputShape) -> Grid:
        return Grid(1, shape.height, shape.width)

    def guidance_parts(self, pipe: Any) -> int | None:
        """Return 1: guidance calls the transformer once for each part."""
        return 1

    def make_processor(self, plan: Planner, layer: str, original: Any) -> "JointAttnProcessor":
        name = type(original).__name__
        if name not in self.processors:
            raise UserError(
                f"{name} computes the attention of {layer}, in which sharing is not supported: unload adapters and "
                f"undo fused projections, so that it is {' or '.join(self.processors)}."
            )
        return self.processors[name](self, plan, layer, original)

    def key_angles(self) -> Tensor | None:
        """Return the angles (D / 2,) that move the keys of other panels as `positions` says; None for no move."""
        if self._positions == "same":
            return None
        embedding = self.denoiser.pos_embed
        shift = [0.0] * len(embedding.axes_dim)
        if self._positions == "beside":
            shift[2] = self.call.width
        else:
            shift[0] = self.slot * (self.call.references + 1)
        return shift_angles(shift, embedding.axes_dim, embedding.theta)

    def arguments(self, args: tuple, kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of a call by name."""
        return inspect.signature(type(self.denoiser).forward).bind(self.denoiser, *args, **kwargs).arguments


class JointInputs(NamedTuple):
    """Of an attention layer in one call.

    Attributes:
        hidden_states: (B, S, C) image tokens, or the joint sequence where `text` is None in a block of one stream.
        text: (B, T, C) text tokens of a block of two streams.
        positions: the rotary embedding, in the family's own form.
        text_mask: (B, T), false or 0 at padding; None without padding.
        attention_mask: any other mask, which sampled tokens would need too.
    """

    hidden_states: Tensor
    text: Tensor | None = None
    positions: Any = None
    text_mask: Tensor | None = None
    attention_mask: Tensor | None = None


class JointAttnProcessor(ABC):
    """A diffusers attention processor that shares image tokens. Base class of all families' processors.

    A subclass has a `__call__` that names the arguments of the processor it replaces, since diffusers passes on no
    others, and hands them to `run`.

    Args:
        backbone: knows the layout of the current call.
        plan: returns the plan of each call.
        layer: the layer's name in the denoiser.
        original: the processor that it replaces, called where nothing is shared.
    """

    def __init__(self, backbone: TransformerBackbone, plan: Planner, layer: str, original: Any):
        self.backbone = backbone
        self.plan = plan
        self.layer = layer
        self.original = original
        run: Any = torch.compiler.disable(self._run)  # a plan changes in every step: no graph holds it
        self.run: Callable[..., Any] = run

    def _run(self, attn: Any, inputs: JointInputs, *arguments: Any) -> Any:
        """Compute attention as planned, or by the original processor, which takes `arguments`."""
        plan = self.plan(self.layer, self.select_image(inputs), lambda: self._attention_maps(attn, inputs))
        if plan is None:
            return self.original(attn, *arguments)
        if inputs.attention_mask is not None:
            raise UserError("consistent self-attention takes no attention_mask: leave it out of the denoiser's call.")
        if getattr(self.original, "_parallel_config", None) is not None:
            raise UserError("attention is divided among devices, which is not supported: load the model on one device.")
        return self.attend(attn, inputs, plan)

    def select_image(self, inputs: JointInputs) -> Tensor:
        """Return the image tokens (B, N, C) among the layer's inputs."""
        return inputs.hidden_states[:, : self.backbone.call.tokens]

    @abstractmethod
    def project(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (B, S, H, D) of the joint sequence, with rotary embedding."""

    @abstractmethod
    def attend(self, attn: Any, inputs: JointInputs, plan: AttentionPlan) -> Any:
        """Return what the original processor returns, with tokens shared as planned."""

    def share(
        self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, mask: Tensor | None = None
    ) -> Tensor:
        """(B, S, H, D) ×3 → (B, S, H · D)."""
        angles = self.backbone.key_angles()
        angles = None if angles is None else angles.to(query.device)
        image = self.backbone.call.image
        return attend_joint(query, key, value, plan, image, self.kernel, angles, mask).flatten(2).to(query.dtype)

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Compute attention by the backend that diffusers chose for the original processor."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self.original._attention_backend)

    def _attention_maps(self, attn: Any, inputs: JointInputs) -> Tensor:
        """(B, N, N): softmax among only the image tokens, averaged over heads."""
        query, key, _ = self.project(attn, inputs)
        image = self.backbone.call.image
        return mean_attention_maps(query[:, image].flatten(2), key[:, image].flatten(2), query.shape[2])


def project_heads(attn: Any, x: Any, added: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens (B, S, C) to query, key and value (B, S, H, D), normalized as the layer does.

    Args:
        added: use the layer's projections of text.
    """
    if attn.fused_projections:
        query, key, value = (attn.to_added_qkv if added else attn.to_qkv)(x).chunk(3, dim=-1)
    else:
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
        query, key, value = (getattr(attn, name)(x) for name in names)
    width = attn.inner_dim // attn.heads
    query, key, value = (each.unflatten(-1, (-1, width)) for each in (query, key, value))
    norm_q, norm_k = (attn.norm_added_q, attn.norm_added_k) if added else (attn.norm_q, attn.norm_k)
    return query if norm_q is None else norm_q(query), key if norm_k is None else norm_k(key), value


def join_streams(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate query, key and value of two streams of tokens."""
    query, key, value = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
    return query, key, value


def project_out(attn: Any, x: Tensor) -> Tensor:
    """Apply a layer's output projection and its dropout to image tokens."""
    return attn.to_out[1](attn.to_out[0](x))


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention over (B, S, H, D) by torch."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def read_grid(ids: Tensor) -> tuple[int, int, int]:
    """Return height and width of an image in tokens, and the number of reference images behind it.

    Args:
        ids: (S, A) or (B, S, A) positions of the image tokens: axis 0 is 0 in the image, axes 1 and 2 are row and
            column.

    Raises:
        UserError: for an image whose tokens are not one full grid, row by row, such as several packed images.
    """
    ids = ids[0] if ids.ndim == 3 else ids
    of_image = ids[:, 0] == 0
    tokens = int(of_image.sum())
    rows, columns = (ids[:tokens, axis].long() for axis in (1, 2))
    height, width = (int(axis.max()) + 1 if tokens else 0 for axis in (rows, columns))
    place = torch.arange(tokens, device=ids.device)
    if not (height * width == tokens and of_image[:tokens].all() and torch.equal(rows * width + columns, place)):
        raise UserError(
            f"the positions of {tokens} image tokens are not those of one {height} × {width} grid: call the pipeline "
            "with images of one size, not packed into one sequence."
        )
    return height, width, len(ids[tokens:, 0].unique())
