"""The cross-attention of a U-Net's decoder, which shows where its image reads which words."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from storydiffusion.attention.grids import Grid, InputShape, find_factor
from storydiffusion.attention.text_maps import TextRecorder
from storydiffusion.errors import UserError

LEAST_TOKENS = 16 * 16
"""The grid that is recorded is the coarsest with as many tokens: coarser ones do not show who is where"""


def find_text_factors(denoiser: nn.Module) -> dict[str, int]:
    """Return, for each cross-attention layer of the decoder, by how much its grid is coarser than the input.

    Raises:
        UserError: where there are none, or some on a grid of unknown size.
    """
    found: dict[str, int] = {}
    for name in (name for name, _ in denoiser.named_modules() if _reads_text(name)):
        factor = find_factor(denoiser, name)
        if factor is None:
            raise UserError(
                f"regions need the grid of each cross-attention layer, and {type(denoiser).__name__} does not say that "
                f"of {name}: leave out regions."
            )
        found[name] = factor
    if not found:
        raise UserError(
            f"regions are read from the cross-attention of a U-Net's decoder, which {type(denoiser).__name__} does not "
            "have: leave out regions."
        )
    return found


def choose_text_grid(factors: Collection[int], shape: InputShape) -> Grid:
    """Return the coarsest grid of these factors with `LEAST_TOKENS`, or the finest."""
    grids = [Grid(factor, -(-shape.height // factor), -(-shape.width // factor)) for factor in sorted(factors)]
    return [grids[0], *(grid for grid in grids if grid.height * grid.width >= LEAST_TOKENS)][-1]


class RecordingProcessor:
    """A diffusers attention processor for `attn2` that records what the original one attends to.

    Args:
        factor: by how much the layer's grid is coarser than the denoiser's input.
        original: computes the layer's output.
    """

    def __init__(self, recorder: TextRecorder, factor: int, original: Any) -> None:
        self.original = original
        self._factor = factor
        record: Any = torch.compiler.disable(recorder.record_chosen_text)  # its state changes in every step
        self._record: Callable[[int, Any, Tensor, Tensor], None] = record

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
        self._record(self._factor, attn, hidden_states, encoder_hidden_states[0] if is_pair else encoder_hidden_states)
        masks = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, **masks)


def _reads_text(name: str) -> bool:
    """Return whether a layer of this name is cross-attention of the decoder; motion modules attend over time."""
    return name.startswith("up_blocks.") and name.endswith(".attn2") and "motion_modules" not in name
