"""Record where each panel's image reads the words of its characters: the maps that regions come from.

One grid of the decoder's cross-attention is enough. There, queries and the keys of few text tokens are multiplied once
more; the layer's own processor computes its output as before. Only the guidance part with text is recorded. A step's
map is the mean over layers and heads, and maps of earlier steps count half as much with each step.

Shape letters: P panels of all stories, N tokens of a panel, T text tokens of the longest list, K regions of the panel
with most characters, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from storydiffusion.attention.backbones import AttentionLayer, Backbone, Grid, InputShape, UNetBackbone, find_factor
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.regions import find_regions
from storydiffusion.errors import UserError

START_TOKEN = 0
LEAST_TOKENS = 16 * 16
"""The grid that is recorded is the coarsest with as many tokens: coarser ones do not show who is where"""
STEP_WEIGHT = 0.5
"""of a step's map in the running mean"""


class RegionRecorder:
    """Record the cross-attention of a U-Net.

    Raises:
        UserError: for a denoiser whose decoder has no cross-attention, or some on a grid of unknown size.

    Attributes:
        layers: those of the decoder, by name.
    """

    def __init__(self, backbone: Backbone) -> None:
        denoiser = backbone.denoiser
        found: dict[str, Any] = {name: module for name, module in denoiser.named_modules() if _reads_text(name)}
        if not found or not isinstance(backbone, UNetBackbone):
            raise UserError(
                f"regions are read from a U-Net's cross-attention, which {type(denoiser).__name__} does not have: "
                "leave out regions."
            )
        self.layers: dict[str, AttentionLayer] = found
        self._factors = {name: _get_factor(denoiser, name) for name in found}
        self._stories: Sequence[PanelGroup] = ()
        self._tokens, self._shares = torch.empty(0), torch.empty(0)
        self._grid = Grid(1, 0, 0)
        self.forget()

    def forget(self) -> None:
        """Forget all maps, as a new run begins."""
        self._maps: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def check_parts(self, parts: int, pipe: Any) -> None:
        """Check that the guidance part with text is known. Raises UserError."""
        if parts > 2 and not getattr(pipe, "do_perturbed_attention_guidance", False):  # whose last part has text too
            raise UserError(
                f"regions take at most 2 guidance parts, text last, but there are {parts}: leave out regions."
            )

    def arrange(self, stories: Sequence[PanelGroup]) -> None:
        """Take the layout of a guidance part, and forget all maps.

        Raises:
            UserError: for a story whose characters are unknown.
        """
        if any(story.characters is None for story in stories):
            raise UserError(
                "regions need the characters of each panel: give their words as "
                "consistent_self_attention(characters=…), or PanelGroup(characters=…)."
            )
        self.forget()
        self._stories = stories
        panels = [[[START_TOKEN], *each.values()] for story in stories for each in story.characters or ()]
        regions, length = max(map(len, panels)), max(sum(map(len, panel)) for panel in panels)
        self._tokens = torch.zeros(len(panels), length, dtype=torch.long)
        self._shares = torch.zeros(len(panels), regions, length)  # of each token in the map of each region
        for row, panel in enumerate(panels):
            tokens = [token for words in panel for token in words]
            self._tokens[row, : len(tokens)] = torch.tensor(tokens)
            owners = [region for region, words in enumerate(panel) for _ in words]
            self._shares[row, owners, range(len(tokens))] = 1.0

    def begin_call(self, shape: InputShape) -> None:
        """Choose the grid to record in a call of the denoiser."""
        grids = [
            Grid(factor, -(-shape.height // factor), -(-shape.width // factor))
            for factor in sorted(set(self._factors.values()))
        ]
        self._grid = [grids[0], *(grid for grid in grids if grid.height * grid.width >= LEAST_TOKENS)][-1]

    def end_step(self) -> None:
        """Take what was recorded since the step before into the running mean."""
        if self._sum is None:
            return
        latest = self._sum.cpu() / self._count
        self._maps = latest if self._maps is None else torch.lerp(self._maps, latest, STEP_WEIGHT)
        self._sum, self._count = None, 0

    def get_regions(self, grid: Grid) -> list[Tensor]:
        """Return the region of each token, (P, N) for each story, by the maps of the steps before."""
        assert self._maps is not None, "regions are asked for before a step was recorded"
        maps = self._maps.unflatten(-1, (self._grid.height, self._grid.width))
        return list(find_regions(maps, grid.height, grid.width).split([story.panels for story in self._stories]))

    def make_processor(self, layer: str, original: Any) -> "RecordingProcessor":
        """Return a processor that records a layer and lets `original` attend."""
        return RecordingProcessor(self.record, layer, original)

    def record(self, layer: str, attn: Any, hidden_states: Tensor, text: Tensor) -> None:
        """Add the maps of one layer.

        Args:
            hidden_states: (B, N, C), of all guidance parts, the one with text last.
            text: (B, all text tokens, C), likewise.
        """
        if self._factors[layer] != self._grid.factor:
            return
        panels = len(self._tokens)
        tokens, shares = self._tokens.to(text.device), self._shares.to(text.device)
        chosen = text[-panels:].gather(1, tokens[..., None].expand(-1, -1, text.shape[-1]))
        query, key = attn.to_q(hidden_states[-panels:]), attn.to_k(chosen)
        q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for x in (query, key))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (P, heads, N, T)
        logits = logits.masked_fill(shares.sum(1)[:, None, None] == 0, -torch.inf)
        maps = shares @ logits.softmax(-1).mean(1).transpose(1, 2)  # (P, K, N)
        self._sum = maps if self._sum is None else self._sum + maps
        self._count += 1


class RecordingProcessor:
    """A diffusers attention processor for `attn2` that records what the original one attends to."""

    def __init__(self, record: Callable[[str, Any, Tensor, Tensor], None], layer: str, original: Any) -> None:
        self.original = original
        self._layer = layer
        recorder: Any = torch.compiler.disable(record)  # its state changes in every step: no graph holds it
        self._record: Callable[[str, Any, Tensor, Tensor], None] = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        """(B, N, C) → (B, N, C)."""
        is_pair = isinstance(encoder_hidden_states, tuple)  # of text and image embeddings, with an IP-Adapter
        self._record(self._layer, attn, hidden_states, encoder_hidden_states[0] if is_pair else encoder_hidden_states)
        masks = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, **masks)


def _get_factor(denoiser: nn.Module, layer: str) -> int:
    """Return by how much the grid of a layer is coarser than the denoiser's input. Raises UserError."""
    factor = find_factor(denoiser, layer)
    if factor is None:
        raise UserError(
            f"regions need the grid of each cross-attention layer, and {type(denoiser).__name__} does not say that of "
            f"{layer}: leave out regions."
        )
    return factor


def _reads_text(name: str) -> bool:
    """Return whether a layer of this name is cross-attention of a U-Net's decoder; motion modules attend over time."""
    return name.startswith("up_blocks.") and name.endswith(".attn2") and "motion_modules" not in name
