"""FLUX.1 and FLUX.1 Kontext: two-stream blocks, then blocks over one sequence of text and image, text first."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from storydiffusion.attention.backbones import register_backbone
from storydiffusion.attention.consistent_self_attention import AttentionPlan
from storydiffusion.attention.joint_processor import (
    JointAttnProcessor,
    JointInputs,
    join_streams,
    project_heads,
    project_out,
)
from storydiffusion.attention.prompt_tokens import PromptTokens, count_start_tokens
from storydiffusion.attention.transformer_backbone import JointCall, TransformerBackbone, read_grid


class ConsistentFluxAttnProcessor(JointAttnProcessor):
    """In place of `FluxAttnProcessor` and `Flux2AttnProcessor`, in blocks of two streams and of one."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        inputs = JointInputs(hidden_states, encoder_hidden_states, image_rotary_emb, attention_mask=attention_mask)
        return self.run(attn, inputs, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    def select_image(self, inputs: JointInputs) -> Tensor:
        call = self.backbone.call
        return inputs.hidden_states[:, call.image if inputs.text is None else slice(call.tokens)]

    def project(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor]:
        return project_joint(attn, inputs.hidden_states, inputs.text, inputs.positions)

    def attend(self, attn: Any, inputs: JointInputs, plan: AttentionPlan) -> Any:
        return project_outputs(attn, self.share(*self.project(attn, inputs), plan), inputs.text)


@register_backbone("FluxTransformer2DModel")
class FluxBackbone(TransformerBackbone):
    """FLUX.1. Kontext sees its reference image at 1 on the first position axis."""

    processors: ClassVar = {"FluxAttnProcessor": ConsistentFluxAttnProcessor}

    def read_call(self, arguments: Mapping[str, Any]) -> JointCall:
        text = arguments["encoder_hidden_states"].shape[1]
        height, width, references = read_grid(arguments["img_ids"])
        return JointCall(len(arguments["hidden_states"]), height, width, text, references)

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Return the place of a prompt among the tokens of T5, or of what stands in its place."""
        tokenizer = pipe.tokenizer_2
        return PromptTokens(tokenizer, count_start_tokens(tokenizer), tokenizer.model_max_length)


def project_joint(
    attn: Any, hidden_states: Tensor, text: Tensor | None, positions: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (B, S, H, D), those of `text` first and all at their rotary `positions`.

    In a block of one stream, `hidden_states` has both text and image and `text` is None.
    """
    query, key, value = project_heads(attn, hidden_states)
    if text is not None:
        query, key, value = join_streams(project_heads(attn, text, added=True), (query, key, value))
    return embed(query, positions), embed(key, positions), value


def project_outputs(attn: Any, output: Tensor, text: Tensor | None) -> Any:
    """Return what the block expects of the attention's `output` (B, S, C): image and text apart if `text` is given."""
    if text is None:
        return output
    tokens = text.shape[1]
    return project_out(attn, output[:, tokens:]), attn.to_add_out(output[:, :tokens])


def embed(x: Tensor, positions: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply the rotary embedding of FLUX to (B, S, H, D)."""
    from diffusers.models.embeddings import apply_rotary_emb

    if positions is None:
        return x
    rotate: Any = apply_rotary_emb  # annotated without sequence_dim's single result
    return rotate(x, positions, sequence_dim=1)
