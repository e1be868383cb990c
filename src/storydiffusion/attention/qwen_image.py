"""Qwen-Image and Qwen-Image-Edit: two-stream blocks, text first, with a mask where prompts differ in length."""

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch.nn.functional as F
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
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.attention.transformer_backbone import JointCall, TransformerBackbone
from storydiffusion.errors import UserError


class ConsistentQwenAttnProcessor(JointAttnProcessor):
    """In place of `QwenDoubleStreamAttnProcessor2_0`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        inputs = JointInputs(
            hidden_states, encoder_hidden_states, image_rotary_emb, encoder_hidden_states_mask, attention_mask
        )
        return self.run(
            attn,
            inputs,
            hidden_states,
            encoder_hidden_states,
            encoder_hidden_states_mask,
            attention_mask,
            image_rotary_emb,
        )

    def project(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor]:
        of_image, of_text = inputs.positions or (None, None)
        text = embed_stream(project_heads(attn, inputs.text, added=True), of_text)
        return join_streams(text, embed_stream(project_heads(attn, inputs.hidden_states), of_image))

    def attend(self, attn: Any, inputs: JointInputs, plan: AttentionPlan) -> Any:
        query, key, value = self.project(attn, inputs)
        text, mask = query.shape[1] - inputs.hidden_states.shape[1], inputs.text_mask
        if mask is not None:
            mask = F.pad(mask.bool(), (0, inputs.hidden_states.shape[1]), value=True)
        output = self.share(query, key, value, plan, mask)
        return project_out(attn, output[:, text:]), attn.to_add_out(output[:, :text])


def embed_stream(stream: tuple[Tensor, Tensor, Tensor], positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Apply Qwen's rotary embedding to query and key of a stream."""
    from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

    if positions is None:
        return stream
    query, key, value = stream
    embedded: list[Any] = [apply_rotary_emb_qwen(x, positions, use_real=False) for x in (query, key)]
    return embedded[0], embedded[1], value


@register_backbone("QwenImageTransformer2DModel")
class QwenImageBackbone(TransformerBackbone):
    """Qwen-Image. Qwen-Image-Edit sees its reference image k at k on the first position axis."""

    processors: ClassVar = {"QwenDoubleStreamAttnProcessor2_0": ConsistentQwenAttnProcessor}

    def read_call(self, arguments: Mapping[str, Any]) -> JointCall:
        if self.denoiser.config.use_layer3d_rope:
            raise UserError(
                "the transformer denoises layers of an image (use_layer3d_rope), in which sharing is not supported: "
                "take QwenImagePipeline or QwenImageEditPipeline."
            )
        latents, shapes = arguments["hidden_states"], arguments["img_shapes"]
        images = shapes[0] if isinstance(shapes[0], list) else [shapes[0]]
        if any(each != shapes[0] for each in shapes) or sum(map(prod, images)) != latents.shape[1]:
            raise UserError(
                f"img_shapes {shapes} do not give all {len(latents)} panels the same {latents.shape[1]} image tokens: "
                "call the pipeline with images of one size."
            )
        _, height, width = images[0]
        text = arguments["encoder_hidden_states"].shape[1]
        return JointCall(len(latents), height, width, text, references=len(images) - 1)

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Return the place of a prompt behind what is left of the template of a chat.

        Raises:
            UserError: for a pipeline whose template also has images.
        """
        if getattr(pipe, "processor", None) is not None:
            raise UserError(
                f"the words of characters are not found in prompts of {type(pipe).__name__}, whose text encoder reads "
                "them beside images: give PanelGroup(characters=…) with the numbers of their tokens."
            )
        before = len(pipe.tokenizer(pipe.prompt_template_encode.split("{}")[0]).input_ids)
        return PromptTokens(pipe.tokenizer, before - pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length)
