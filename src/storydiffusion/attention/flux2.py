"""FLUX.2: two-stream blocks, then blocks that compute attention and MLP in parallel; text first."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from storydiffusion.attention.backbones import register_backbone
from storydiffusion.attention.consistent_self_attention import AttentionPlan
from storydiffusion.attention.flux import ConsistentFluxAttnProcessor, FluxBackbone, embed
from storydiffusion.attention.joint_processor import JointAttnProcessor, JointInputs
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.attention.transformer_backbone import JointCall
from storydiffusion.errors import UserError


class ConsistentFlux2ParallelAttnProcessor(JointAttnProcessor):
    """In place of `Flux2ParallelSelfAttnProcessor`, which projects query, key, value and MLP at once."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        inputs = JointInputs(hidden_states, positions=image_rotary_emb, attention_mask=attention_mask)
        return self.run(attn, inputs, hidden_states, attention_mask, image_rotary_emb)

    def select_image(self, inputs: JointInputs) -> Tensor:
        return inputs.hidden_states[:, self.backbone.call.image]

    def project(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = self._project_all(attn, inputs)
        return query, key, value

    def attend(self, attn: Any, inputs: JointInputs, plan: AttentionPlan) -> Any:
        query, key, value, mlp = self._project_all(attn, inputs)
        output = self.share(query, key, value, plan)
        return attn.to_out(torch.cat([output, attn.mlp_act_fn(mlp)], dim=-1))

    def _project_all(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return query, key and value (B, S, H, D) and the MLP's hidden states (B, S, C)."""
        sizes = [attn.inner_dim] * 3 + [attn.mlp_hidden_dim * attn.mlp_mult_factor]
        query, key, value, mlp = attn.to_qkv_mlp_proj(inputs.hidden_states).split(sizes, dim=-1)
        query, key, value = (x.unflatten(-1, (attn.heads, attn.head_dim)) for x in (query, key, value))
        query, key = embed(attn.norm_q(query), inputs.positions), embed(attn.norm_k(key), inputs.positions)
        return query, key, value, mlp


@register_backbone("Flux2Transformer2DModel")
class Flux2Backbone(FluxBackbone):
    """FLUX.2. It was trained to see its reference image k at 10 · k on the first position axis."""

    positions = ("reference", "same", "beside")
    processors: ClassVar = {
        "Flux2AttnProcessor": ConsistentFluxAttnProcessor,
        "Flux2ParallelSelfAttnProcessor": ConsistentFlux2ParallelAttnProcessor,
    }
    slot = 10

    def read_call(self, arguments: Mapping[str, Any]) -> JointCall:
        if arguments.get("kv_cache_mode") is not None:
            raise UserError(
                "the pipeline keeps keys and values of reference images (kv_cache_mode), which sharing does not "
                "support: take Flux2KleinPipeline."
            )
        return super().read_call(arguments)

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Raise UserError: the template of the chat, with a system message, differs between text encoders."""
        raise UserError(
            f"the words of characters are not found in prompts of {type(pipe).__name__}, whose text encoder reads them "
            "in the template of a chat: give PanelGroup(characters=…) with the numbers of their tokens."
        )
