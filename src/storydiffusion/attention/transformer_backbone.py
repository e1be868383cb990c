"""What the backbones of diffusion transformers have in common; flux.py and its neighbors hold one family each."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from storydiffusion.attention.backbones import AttentionLayer, Planner
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.joint_attention import shift_angles
from storydiffusion.attention.joint_processor import JointAttnProcessor
from storydiffusion.attention.prompt_tokens import PromptTokens
from storydiffusion.attention.text_maps import TextRecorder
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

    @property
    def text(self) -> slice:
        """The place of the text tokens in the joint sequence: before the image, or behind it."""
        return slice(0, self.first) if self.first else slice(self.tokens, None)


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
    processors: ClassVar[Mapping[str, type[JointAttnProcessor]]]
    slot: ClassVar[int] = 1

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser: Any = denoiser
        self.call = JointCall(0, 0, 0, 0)
        self._positions = self.positions[0]
        self._angles: dict[tuple, Tensor] = {}

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

    def make_processor(self, plan: Planner, layer: str, original: Any) -> JointAttnProcessor:
        name = type(original).__name__
        if name not in self.processors:
            raise UserError(
                f"{name} computes the attention of {layer}, in which sharing is not supported: unload adapters and "
                f"undo fused projections, so that it is {' or '.join(self.processors)}."
            )
        return self.processors[name](self, plan, layer, original)

    def text_layers(self) -> dict[str, AttentionLayer]:
        """Return the layers of the middle third of the blocks with two streams.

        In the first third image tokens show little but noise, and in the last one the text has served its purpose. In
        blocks of one stream, text and image have the same projections.
        """
        every = {name: layer for name, layer in self.self_attention_layers("joint").items() if name.endswith(".attn")}
        first, end = len(every) // 3, -(-2 * len(every) // 3)
        return dict(list(every.items())[first : max(end, first + 1)])

    def text_grid(self, shape: InputShape) -> Grid:
        return self.grid(self.call.tokens, shape)

    def has_prompts(self, call: int) -> bool:
        """Return whether it is the first call of a step: guidance calls again for the negative prompts."""
        return call == 1

    def make_recording_processor(self, recorder: TextRecorder, layer: str, original: Any) -> JointAttnProcessor:
        """Return a processor of the same kind that also records; `original` may share tokens already."""
        if isinstance(original, JointAttnProcessor):
            processor = self.make_processor(original.plan, layer, original.original)
        else:
            processor = self.make_processor(lambda *call: None, layer, original)
        processor.record = recorder.record_all_text
        return processor

    @abstractmethod
    def prompt_tokens(self, pipe: Any) -> PromptTokens:
        """Return where the text encoder has the tokens of a prompt. Raises UserError where they are not found."""

    def key_angles(self, device: torch.device) -> Tensor | None:
        """Return the angles (D / 2,) that move the keys of other panels as `positions` says; None for no move.

        They are computed once for each size of image.
        """
        if self._positions == "same":
            return None
        embedding = self.denoiser.pos_embed
        shift = [0.0] * len(embedding.axes_dim)
        if self._positions == "beside":
            shift[2] = self.call.width
        else:
            shift[0] = self.slot * (self.call.references + 1)
        key = (*shift, device)
        if key not in self._angles:
            self._angles[key] = shift_angles(shift, embedding.axes_dim, embedding.theta).to(device)
        return self._angles[key]

    def arguments(self, args: tuple, kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of a call by name."""
        return inspect.signature(type(self.denoiser).forward).bind(self.denoiser, *args, **kwargs).arguments


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
