"""The resampler of IP-Adapter-plus (arXiv 2308.06721): N tokens from the M of an image encoder.

Shape letters: B batch, M tokens of the image encoder, N tokens of a frame, I image width, C channels, W width.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from storydiffusion.attention.consistent_self_attention import multi_head_attention
from storydiffusion.errors import UserError


class Resampler(nn.Module):
    """Perceiver with N learnt queries, (B, M, I) → (B, N, W).

    Names and shapes are those of IP-Adapter-plus up to the last layer. A projection to W replaces its projection to the
    U-Net's cross-attention width.
    """

    def __init__(self, image_width: int, width: int, heads: int, head_width: int, layers: int, tokens: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.latents = nn.Parameter(torch.randn(1, tokens, inner) / inner**0.5)
        self.proj_in = nn.Linear(image_width, inner)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(inner, heads), perceiver_mlp(inner)]) for _ in range(layers)
        )
        self.to_width = nn.Linear(inner, width)

    def forward(self, features: Tensor) -> Tensor:
        x = self.proj_in(features)
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attend, mlp = layer
            latents = latents + attend(x, latents)
            latents = latents + mlp(latents)
        return self.to_width(latents)


class PerceiverAttention(nn.Module):
    """Latents (B, N, C) attend to the image's tokens (B, M, C) and to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)
        key, value = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        return self.to_out(multi_head_attention(self.to_q(latents), key, value, self.heads))


def perceiver_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


def read_ip_adapter(file: str | Path) -> dict[str, Tensor]:
    """Read the resampler of an IP-Adapter-plus file: `image_proj` in a .bin, `image_proj.…` in a .safetensors.

    Raises:
        UserError: for a file that is missing, cannot be read, or has no such part.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file} is not a file: give an IP-Adapter-plus file such as ip-adapter-plus_sd15.safetensors.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            prefix = "image_proj."
            weights = {k.removeprefix(prefix): v for k, v in load_file(file).items() if k.startswith(prefix)}
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
            weights = content.get("image_proj") if isinstance(content, dict) else None
    except Exception as error:  # unpickling damaged bytes can raise anything
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read {file} as an IP-Adapter-plus file ({reason}): fetch it again.") from error
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{file} has no image_proj: give an IP-Adapter-plus file such as ip-adapter-plus_sd15.")
    return weights


def check_ip_adapter(file: str | Path, weights: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the weights read from `file` have exactly the names and shapes given.

    Raises:
        UserError: names the first tensor that is missing, has another shape, or is unexpected.
    """
    for name, shape in shapes.items():
        tensor = weights.get(name)
        if not isinstance(tensor, Tensor):
            raise UserError(f"{file} lacks image_proj.{name}: give an IP-Adapter-plus file of the predictor's depth.")
        if tensor.shape != shape:
            raise UserError(
                f"image_proj.{name} of {file} is {tuple(tensor.shape)}, the predictor's is {shape}: give another file."
            )
    if unexpected := sorted(weights.keys() - shapes.keys()):
        raise UserError(f"{file} has image_proj.{unexpected[0]}, which the predictor does not have: give another file.")
