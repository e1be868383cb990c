"""Semantic motion predictor (SMP): the motion between two images, in the semantic tokens of an image encoder.

StoryDiffusion (arXiv 2405.01434), section 3.2. From the start and end frame F_s and F_e of a clip,

    K_s, K_e = E(F_s), E(F_e)                            semantic tokens: a frozen encoder, then the resampler
    K_i      = K_s + (i − 1)/(F − 1) · (K_e − K_s)       linear interpolation to F frames
    P_1…P_F  = B(K_1…K_F)                                a transformer over all F·N tokens at once
    V_i      = CrossAttention(V_i, concat(T, P_i), concat(T, P_i))      in the U-Net, see video_unet.py

The paper gives 8 layers, hidden size 1024, and 12 heads. 12 does not divide 1024, so the heads are 64 wide, as those
of IP-Adapter's resampler: queries, keys and values have 768 channels and are projected back to 1024. A layer is
pre-norm: LayerNorm, attention, LayerNorm, MLP of 4 · 1024; every linear layer has a bias, both norms have weight and
bias, and no norm follows the last layer. That makes 11,546,880 parameters a layer, 92,375,040 in all.

Shape letters: B batch, F frames, N tokens of a frame, M tokens of the image encoder, W width, D cross-attention width.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from storydiffusion.attention.consistent_self_attention import multi_head_attention
from storydiffusion.errors import UserError
from storydiffusion.models.resampler import Resampler, check_ip_adapter, read_ip_adapter

Tokens = Literal["resampler", "pooled", "patch"]

# ViT-H-14 at 224² has 256 patches and a class token; 16 is what IP-Adapter-plus makes of them.
TOKENS_PER_FRAME: dict[Tokens, int] = {"resampler": 16, "pooled": 1, "patch": 257}


@dataclass(frozen=True)
class SemanticMotion:
    """`tokens` (B, F, N, W), the paper's P_1…P_F; `context` (B, F, N, D), the same for the U-Net's cross-attention."""

    tokens: Tensor
    context: Tensor


class SemanticMotionPredictor(nn.Module):
    """Predict semantic tokens of all F frames from the image encoder's features of the first and the last.

    The defaults are the paper's. An untrained predictor returns the interpolation: every branch of the transformer ends
    in a zero projection. With `layers=0` it always interpolates, with the same projection to the U-Net.

    Attributes:
        layers: the transformer.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.

    Args:
        tokens: semantic tokens of a frame: `resampler`, N learnt queries that attend to all tokens of the image encoder
            (the author's advice, to save compute); `pooled`, the encoder's one embedding; `patch`, all its tokens.
        image_width: channels of the image features: 1280 for ViT-H-14's hidden states, 1024 for its pooled features.
        width: W.
        heads, head_width: of each attention; the resampler's width is their product.
        context_width: D.
        frames: the largest number of frames, such as that of AnimateDiff's motion modules.
        tokens_per_frame: N; None is 16, 1 or 257, depending on `tokens`.
        resampler_layers: depth of the resampler; IP-Adapter-plus has 4.

    Raises:
        UserError: for an unknown kind of tokens or a size out of its range.
    """

    def __init__(
        self,
        tokens: Tokens = "resampler",
        image_width: int = 1280,
        width: int = 1024,
        layers: int = 8,
        heads: int = 12,
        head_width: int = 64,
        context_width: int = 768,
        frames: int = 32,
        tokens_per_frame: int | None = None,
        resampler_layers: int = 4,
    ) -> None:
        super().__init__()
        if tokens not in get_args(Tokens):
            raise UserError(f"tokens is {tokens!r}: choose one of {', '.join(get_args(Tokens))}.")
        count = TOKENS_PER_FRAME[tokens] if tokens_per_frame is None else tokens_per_frame
        if tokens == "pooled" and count != 1:
            raise UserError(
                f"tokens_per_frame is {count} but tokens is pooled, which makes 1: leave tokens_per_frame out."
            )
        _check_sizes(
            1, image_width=image_width, width=width, heads=heads, head_width=head_width, context_width=context_width,
            tokens_per_frame=count, resampler_layers=resampler_layers,
        )  # fmt: skip
        _check_sizes(0, layers=layers)
        _check_sizes(2, frames=frames)
        self.settings: dict[str, Any] = {
            "tokens": tokens, "image_width": image_width, "width": width, "layers": layers, "heads": heads,
            "head_width": head_width, "context_width": context_width, "frames": frames, "tokens_per_frame": count,
            "resampler_layers": resampler_layers,
        }  # fmt: skip
        self.frames = frames
        self.tokens_per_frame = count
        self.image_width = image_width
        self.gradient_checkpointing = False
        self.to_tokens = (
            Resampler(image_width, width, heads, head_width, resampler_layers, count)
            if tokens == "resampler"
            else nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))
        )
        self.layers = nn.ModuleList(TransformerLayer(width, heads, head_width) for _ in range(layers))
        self.positions = Positions(count, width) if layers else None
        # CLIP's text tokens come out of a LayerNorm too, so neither part dominates their common softmax.
        self.context_projection = nn.Linear(width, context_width)
        self.context_norm = nn.LayerNorm(context_width)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "SemanticMotionPredictor":
        """Load the predictor in a folder (config.json, model.safetensors), in eval mode.

        Raises:
            UserError: a file that is missing or damaged, or weights that do not fit.
        """
        from storydiffusion.models.predictor_files import load_predictor

        return load_predictor(folder, dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder, for `from_pretrained`."""
        from storydiffusion.models.predictor_files import save_predictor

        save_predictor(self, self.settings, folder)

    def forward(self, start: Tensor, end: Tensor, frames: int) -> SemanticMotion:
        """Features (B, M, image_width) of the first and the last frame → the semantic motion over `frames` frames.

        Raises:
            UserError: for features of other shapes, or a number of frames outside 2…`self.frames`.
        """
        if isinstance(frames, bool) or not isinstance(frames, int) or not 2 <= frames <= self.frames:
            raise UserError(f"frames is {frames!r}: this predictor makes 2 to {self.frames} frames.")
        if start.shape != end.shape:
            raise UserError(
                f"the start frame's features are {_shape(start)}, the end frame's {_shape(end)}: give both alike."
            )
        tokens = self.predict(self.encode(start), self.encode(end), frames)
        return SemanticMotion(tokens, self.context(tokens))

    def encode(self, features: Tensor) -> Tensor:
        """The image encoder's features (B, M, image_width) → semantic tokens (B, N, W) of each image.

        M is 1 for `pooled`, N for `patch`, and any number for `resampler`.

        Raises:
            UserError: for features of another shape.
        """
        count = "M" if isinstance(self.to_tokens, Resampler) else self.tokens_per_frame
        wrong_count = isinstance(count, int) and features.shape[1:2] != (count,)
        if features.ndim != 3 or features.shape[-1] != self.image_width or wrong_count:
            raise UserError(
                f"the image features are {_shape(features)}, the predictor takes (B, {count}, {self.image_width}): "
                "use the image encoder that it was trained with, and its kind of features."
            )
        return self.to_tokens(features)

    def predict(self, start: Tensor, end: Tensor, frames: int) -> Tensor:
        """Semantic tokens K_s and K_e (B, N, W) of the boundary frames → P_1…P_F (B, F, N, W)."""
        tokens = interpolate(start, end, frames)
        return tokens if self.positions is None else self.transform(tokens, self.positions(frames))

    def context(self, tokens: Tensor) -> Tensor:
        """Semantic tokens (…, W) → their form for the U-Net's cross-attention (…, D)."""
        return self.context_norm(self.context_projection(tokens))

    def transform(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """K (B, F, N, W) → P (B, F, N, W), all F·N tokens attending to each other; positions are (F, N, W)."""
        x, place = tokens.flatten(1, 2), positions.flatten(0, 1)
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, place, use_reentrant=False)
            else:
                x = layer(x, place)
        return x.view_as(tokens)

    def without_transformer(self) -> "SemanticMotionPredictor":
        """Return a copy that interpolates, with the same projection to the U-Net, as with `layers=0`."""
        copied = copy.deepcopy(self)
        copied.layers, copied.positions = nn.ModuleList(), None
        copied.settings = {**self.settings, "layers": 0}
        return copied

    @torch.no_grad()
    def match_text_statistics(self, text_tokens: Tensor) -> None:
        """Initialize the context with the mean and standard deviation of text tokens (count, D), channel by channel.

        The paper does not say how its predictor is initialized. Text tokens share a large mean, on which the U-Net's
        keys rely: tokens without it can be off by a factor of e^100 in the common softmax, and then get no gradient.
        """
        self.context_norm.weight.copy_(text_tokens.std(0))
        self.context_norm.bias.copy_(text_tokens.mean(0))

    def load_ip_adapter(self, file: str | Path) -> None:
        """Copy the resampler of an IP-Adapter-plus file such as ip-adapter-plus_sd15.

        IP-Adapter ends in a projection to the U-Net and a norm, which here follow the transformer. In between, an
        orthogonal matrix maps the resampler's 768 channels to the transformer's W. With an untrained transformer the
        predictor gives the first and the last frame exactly the tokens of IP-Adapter-plus.

        Raises:
            UserError: for a file that cannot be read or whose tensors have other names or shapes; nothing is changed.
        """
        resampler, projection, norm = self.to_tokens, self.context_projection, self.context_norm
        if not isinstance(resampler, Resampler):
            raise UserError(f"{file} holds a resampler's weights: set tokens to resampler, or leave the file out.")
        width, inner = resampler.to_width.weight.shape
        if width < inner:
            raise UserError(f"width is {width}: to load {file} make it at least the resampler's {inner}.")
        targets = {k: v for k, v in resampler.state_dict().items() if not k.startswith("to_width.")}
        targets |= {"proj_out.weight": torch.empty(projection.out_features, inner), "proj_out.bias": projection.bias}
        targets |= {"norm_out.weight": norm.weight, "norm_out.bias": norm.bias}
        weights = read_ip_adapter(file)
        check_ip_adapter(file, weights, {name: tuple(target.shape) for name, target in targets.items()})
        turn = nn.init.orthogonal_(torch.empty(width, inner), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(weights[name])
            resampler.to_width.weight.copy_(turn)
            resampler.to_width.bias.zero_()
            projection.weight.copy_(targets["proj_out.weight"] @ turn.T)


def interpolate(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """(B, N, W), (B, N, W) → (B, F, N, W), F ≥ 2: equal steps from exactly `start` to exactly `end`."""
    fractions = torch.linspace(0, 1, frames, device=start.device).to(start.dtype)[:, None, None]
    return torch.lerp(start[:, None], end[:, None], fractions)


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP over one sequence, (B, L, W) → (B, L, W); the identity at initialization."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width)
        self.to_out = zero(nn.Linear(heads * head_width, width))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), zero(nn.Linear(4 * width, width)))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add positions (L, W) after the norm: their weight does not depend on the tokens' scale, and they stay out of
        the tokens themselves."""
        query, key, value = self.to_qkv(self.norm1(x) + positions).chunk(3, -1)
        x = x + self.to_out(multi_head_attention(query, key, value, self.heads))
        return x + self.mlp(self.norm2(x))


def zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Positions(nn.Module):
    """Learnt positions (F, N, W): a frame's time and a token's slot among the N of its frame.

    Time is the fraction from start to end, encoded as a sum of cosines with learnt coefficients rather than by a table
    of frame numbers: K_i depends only on that fraction, and a table's rows beyond the frames seen in training would
    stay random, which would rule out other numbers of frames.
    """

    COSINES = 8  # half waves over the clip, enough to encode 8 frames independently and 32 smoothly

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        # Together about as large as the normalized tokens that they are added to.
        self.time = nn.Parameter(torch.randn(self.COSINES, width) * self.COSINES**-0.5)
        self.slot = nn.Parameter(torch.randn(tokens, width) * 0.5**0.5)

    def forward(self, frames: int) -> Tensor:
        phase = torch.linspace(0, torch.pi, frames, device=self.time.device)
        waves = torch.cos(phase[:, None] * torch.arange(self.COSINES, device=phase.device))
        return (waves.to(self.time.dtype) @ self.time)[:, None] + self.slot


def _check_sizes(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise UserError(f"{name} is {size!r}: choose a whole number, {least} or more.")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
