"""What the attention processors of diffusion transformers have in common; flux.py and its neighbors hold the rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.attention.backbones import Planner
from storydiffusion.attention.consistent_self_attention import AttentionPlan, mean_attention_maps
from storydiffusion.attention.joint_attention import attend_joint
from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from storydiffusion.attention.transformer_backbone import TransformerBackbone

RecordText = Callable[[Tensor, Tensor, Tensor | None], None]
"""takes queries of the image (B, N, H, D), keys of the text (B, T, H, D) and its mask (B, T), None without padding"""


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

    Attributes:
        record: takes what the image asks of the text in each call; None: nothing is recorded.
    """

    def __init__(self, backbone: "TransformerBackbone", plan: Planner, layer: str, original: Any):
        self.backbone = backbone
        self.plan = plan
        self.layer = layer
        self.original = original
        self.record: RecordText | None = None
        run: Any = torch.compiler.disable(self._run)  # a plan changes in every step: no graph holds it
        self.run: Callable[..., Any] = run

    def _run(self, attn: Any, inputs: JointInputs, *arguments: Any) -> Any:
        """Compute attention as planned, or by the original processor, which takes `arguments`."""
        if self.record is not None:
            query, key, _ = self.project(attn, inputs)
            call = self.backbone.call
            self.record(query[:, call.image], key[:, call.text], inputs.text_mask)
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
        angles, image = self.backbone.key_angles(query.device), self.backbone.call.image
        return attend_joint(query, key, value, plan, image, self.kernel, angles, mask).flatten(2).to(query.dtype)

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Compute attention by the backend that diffusers chose for the original processor."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self.original._attention_backend)

    def _attention_maps(self, attn: Any, inputs: JointInputs) -> Tensor:
        """(B, N, N): softmax among the image tokens alone, averaged over heads."""
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
