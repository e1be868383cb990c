"""PhotoMaker (2312.04461), a baseline of the paper's table 1: a class word's embedding is fused with reference images.

diffusers does not include it, so this module reads the authors' weights of version 1 (photomaker-v1.bin):

- a CLIP image encoder with two projections, one for each of SDXL's text encoders, embeds each image;
- the class word of the person ("girl") is repeated in the prompt once for each image, and at each of these places two
  small MLPs fuse the embeddings of text and image: the stacked ID embedding;
- the first steps are conditioned only on the text, the rest on the fused embeddings;
- LoRA weights are added to the U-Net's attention.

It was trained on photographs of people with cropped faces; cropping is left to the user, and drawn animals are out of
its domain. Version 2, which adds a face recognition network, is not implemented. The tests do not run the authors' own
weights.

Shapes: B panels, N tokens of text, C channels of both text encoders, K images of a reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from storydiffusion.errors import UserError, first_line
from storydiffusion.models.prompt_encoding import encode_prompts, encode_windows, padded_windows
from storydiffusion.pipelines.conditioning import CharacterReference, Conditions

HEAD_WIDTH = 64  # of every CLIP image encoder up to ViT-L, which this one is


class MLP(nn.Module):
    """Apply a norm and two linear layers."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))


class Fuse(nn.Module):
    """Fuse embeddings of a word (K, C) and of images (K, C) to the stacked ID embedding (K, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp1 = MLP(2 * width, width)
        self.mlp2 = MLP(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, words: Tensor, images: Tensor) -> Tensor:
        mixed = self.mlp1(torch.cat([words, images], dim=-1)) + words
        return self.layer_norm(self.mlp2(mixed) + mixed)


class IDEncoder(CLIPVisionModelWithProjection):
    """Embed images, with a second projection and the fusing MLPs; parameters are named as in the authors' file."""

    def __init__(self, config: CLIPVisionConfig, second_width: int) -> None:
        super().__init__(config)
        self.visual_projection_2 = nn.Linear(config.hidden_size, second_width, bias=False)
        self.fuse_module = Fuse(config.projection_dim + second_width)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> "IDEncoder":
        """Build the encoder with the sizes of the tensors. Raises UserError for missing or unexpected tensors."""
        embeddings, layer = "vision_model.embeddings.", "vision_model.encoder.layers."
        try:
            width, _, patch, _ = weights[f"{embeddings}patch_embedding.weight"].shape
            places = len(weights[f"{embeddings}position_embedding.weight"])
            config = CLIPVisionConfig(
                hidden_size=width,
                intermediate_size=len(weights[f"{layer}0.mlp.fc1.weight"]),
                num_hidden_layers=len({name.split(".")[3] for name in weights if name.startswith(layer)}),
                num_attention_heads=max(1, width // HEAD_WIDTH),
                patch_size=patch,
                image_size=patch * round((places - 1) ** 0.5),
                projection_dim=len(weights["visual_projection.weight"]),
            )
            encoder = cls(config, len(weights["visual_projection_2.weight"]))
            own = {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
            encoder.load_state_dict(own)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"it contains no ID encoder of PhotoMaker version 1 ({first_line(error)})") from error
        return encoder.requires_grad_(False).eval()

    def id_embeddings(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed K images, (K, C)."""
        side = self.config.image_size
        processor = CLIPImageProcessor(size=side, crop_size=side)
        pixels = processor(list(images), return_tensors="pt").pixel_values
        features = self.vision_model(pixels.to(self.device, self.dtype)).pooler_output
        return torch.cat([self.visual_projection(features), self.visual_projection_2(features)], dim=-1)


class PhotoMaker:
    """Install PhotoMaker in a pipeline: its LoRA weights are added to the U-Net for good.

    Args:
        pipe: StableDiffusionXLPipeline or another with its two text encoders.
        weights: `id_encoder` and `lora_weights`, each name → tensor, as in the authors' file.
        text_steps: fraction of the steps conditioned on the text only; the first step always is.

    Raises:
        UserError: a pipeline of another kind, or weights made for another.
    """

    def __init__(self, pipe: Any, weights: Mapping[str, Mapping[str, Tensor]], text_steps: float) -> None:
        if getattr(pipe, "text_encoder_2", None) is None:
            raise UserError("PhotoMaker needs the two text encoders of SDXL: choose model=sdxl")
        self.pipe, self.text_steps = pipe, text_steps
        self.encoder: Any = IDEncoder.from_weights(weights["id_encoder"]).to(pipe.unet.dtype)
        found, expected = self.encoder.fuse_module.layer_norm.weight.shape[0], pipe.unet.config.cross_attention_dim
        if found != expected:
            raise UserError(f"its embeddings have width {found}, the U-Net reads {expected}: use weights made for it")
        add_lora(pipe.unet, weights["lora_weights"])

    @torch.no_grad()
    def conditions(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        references: Sequence[CharacterReference | None],
        steps: int,
        guidance_scale: float,
    ) -> Conditions:
        """Return text, and for later steps text with stacked ID embeddings; see `conditioning.Baseline`.

        Raises:
            UserError: a prompt without the reference's class word, or without room for all of its images.
        """
        text = encode_prompts(self.pipe, list(prompts), list(negative_prompts))
        fused, pooled = self._fused(prompts, references, text.prompt_embeds.shape[1])
        if guidance_scale > 1:
            assert text.negative_pooled_prompt_embeds is not None  # SDXL's
            fused = torch.cat([text.negative_prompt_embeds, fused])
            pooled = torch.cat([text.negative_pooled_prompt_embeds, pooled])
        later = int(self.text_steps * steps) + 1, {"prompt_embeds": fused, "add_text_embeds": pooled}
        return Conditions({**text.as_arguments()}, later)

    def _fused(
        self, prompts: Sequence[str], references: Sequence[CharacterReference | None], tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts, each class word repeated per image and fused with it: (B, N, C), and pooled (B, D)."""
        pipe = self.pipe
        ids, places = [], []
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):  # one vocabulary: the places are the same in both
            windows = tokens // tokenizer.model_max_length
            stacked = [stack(tokenizer, *one, windows) for one in zip(prompts, references, strict=True)]
            ids.append([panel for panel, _ in stacked])
            places = [place for _, place in stacked]
        embeddings, pooled = encode_windows(pipe, ids)
        assert pooled is not None  # the second text encoder has a projection
        self.encoder.to(embeddings.device)
        for panel, (reference, place) in enumerate(zip(references, places, strict=True)):
            if reference is not None:
                words = embeddings[panel, place]
                embeddings[panel, place] = self.encoder.fuse_module(words, self.encoder.id_embeddings(reference.images))
        return embeddings, pooled


def stack(
    tokenizer: Any, prompt: str, reference: CharacterReference | None, windows: int
) -> tuple[list[list[int]], slice]:
    """Return the prompt's tokens in windows, with the last token of the class word once per image; and their slice.

    Raises:
        UserError: no such word in the prompt, or no room for all images.
    """
    pieces = padded_windows(tokenizer, prompt, windows)
    if reference is None:
        return pieces, slice(0, 0)
    word, more = tokenizer(reference.word, add_special_tokens=False).input_ids, len(reference.images) - 1
    for number, piece in enumerate(pieces):
        for first in range(len(piece) - len(word) + 1):
            if piece[first : first + len(word)] == word:
                at = first + len(word) - 1
                if piece.index(tokenizer.eos_token_id) + more >= len(piece):
                    raise UserError(
                        f"{prompt!r} leaves no room for {more + 1} images of the {reference.word}: shorten it"
                    )
                pieces[number] = [*piece[:at], *[piece[at]] * (more + 1), *piece[at + 1 : len(piece) - more]]
                place = number * len(piece) + at
                return pieces, slice(place, place + more + 1)
    raise UserError(f"{prompt!r} has no word {reference.word!r}: name the class word of the character in every prompt")


def add_lora(unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Add low-rank weights, up @ down, to the linear layers that they are named after, for good.

    Raises:
        UserError: a name or a shape that the U-Net does not have; the U-Net is then unchanged.
    """
    short = {name.removeprefix("unet.").replace(".processor", ""): tensor for name, tensor in weights.items()}
    halves: dict[str, Tensor] = convert_unet_state_dict_to_peft(short)
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)}
    sums = {}
    for name in halves:
        layer, _, half = name.rpartition(".lora_")
        if half not in ("A.weight", "B.weight") or layer not in layers:
            raise UserError(f"its LoRA weight {name} fits no layer of this U-Net: use weights made for it")
        if layer in sums:
            continue
        down, up = (halves.get(f"{layer}.lora_{half}.weight") for half in ("A", "B"))
        if down is None or up is None:
            raise UserError(f"one half of its LoRA weight of {layer} is missing: fetch the file again")
        found, expected = (up.shape[0], down.shape[1]), tuple(layers[layer].weight.shape)
        if found != expected or up.shape[1] != down.shape[0]:
            raise UserError(f"its LoRA weight of {layer} is {found}, not {expected}: use weights made for this U-Net")
        sums[layer] = up.float() @ down.float()
    with torch.no_grad():
        for layer, total in sums.items():
            weight = layers[layer].weight
            weight.copy_((weight.float() + total.to(weight.device)).to(weight.dtype))
