"""Stable Diffusion 3 and 3.5: joint attention, image first; 3.5 also has attention over only the image (`attn2`)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from storydiffusion.attention.backbones import register_backbone
from storydiffusion.attention.consistent_self_attention import AttentionPlan
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.joint_processor import (
    JointAttnProcessor,
    JointInputs,
    join_streams,
    project_heads,
    project_out,
    torch_kernel,
)
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.attention.transformer_backbone import JointCall, TransformerBackbone


class ConsistentJointAttnProcessor(JointAttnProcessor):
    """In place of `JointAttnProcessor2_0`, which calls torch's attention whatever backend is set."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        inputs = JointInputs(hidden_states, encoder_hidden_states, attention_mask=attention_mask)
        return self.run(attn, inputs, hidden_states, encoder_hidden_states, attention_mask)

    def project(self, attn: Any, inputs: JointInputs) -> tuple[Tensor, Tensor, Tensor]:
        image = project_heads(attn, inputs.hidden_states)
        return image if inputs.text is None else join_streams(image, project_heads(attn, inputs.text, added=True))

    def attend(self, attn: Any, inputs: JointInputs, plan: AttentionPlan) -> Any:
        output = self.share(*self.project(attn, inputs), plan)
        tokens = inputs.hidden_states.shape[1]
        image, text = project_out(attn, output[:, :tokens]), output[:, tokens:]
        if inputs.text is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return torch_kernel(query, key, value, mask)


@register_backbone("SD3Transformer2DModel")
class StableDiffusion3Backbone(TransformerBackbone):
    """Stable Diffusion 3. Positions are added to the input, so keys cannot be moved; guidance doubles the batch."""

    positions = ("same",)
    layers = ("attn", "attn2")
    processors: ClassVar = {"JointAttnProcessor2_0": ConsistentJointAttnProcessor}

    def read_call(self, arguments: Mapping[str, Any]) -> JointCall:
        batch, _, height, width = arguments["hidden_states"].shape
        patch = self.denoiser.config.patch_size
        return JointCall(batch, height // patch, width // patch, first=0)

    def input_shape(self, args: tuple, kwargs: dict[str, Any]) -> InputShape:
        patch = self.denoiser.config.patch_size
        return InputShape(self.call.batch, self.call.height * patch, self.call.width * patch)

    def latents(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        return self.arguments(args, kwargs)["hidden_states"]

    def grid(self, tokens: int, shape: InputShape) -> Grid:
        return Grid(self.denoiser.config.patch_size, self.call.height, self.call.width)

    def guidance_parts(self, pipe: Any) -> int | None:
        doubled = getattr(pipe, "do_classifier_free_guidance", None)
        return None if doubled is None else 1 + bool(doubled)

    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Return the place of a prompt among the tokens of CLIP, which come before those of T5."""
        return PromptTokens(pipe.tokenizer, first=1, length=pipe.tokenizer.model_max_length)
