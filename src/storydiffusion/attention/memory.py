"""Estimate the memory of a U-Net's call beside its weights, and choose how many panels fit at once.

With N tokens and C channels at the finest grid that has self-attention, and S bytes a number, an image needs about

    32 · N · C · S      activations at the peak, in the feed-forward network of that grid, skip connections included
    2 · S · Σ N_l · C_l keys and values of the sharing layers l, where later chunks read them

beside the buffer into which `attend` gathers keys and values. tests/attention/test_memory.py checks the factor 32 by a
simulation of all allocations for the miniature, Stable Diffusion 1.5 and XL.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.backbones import Backbone
from storydiffusion.attention.chunks import Chunk, find_components, plan_chunks
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import most_gathered
from storydiffusion.attention.grids import find_factor
from storydiffusion.errors import UserError

ACTIVATIONS = 32
USABLE = 0.9  # of the free memory, for what the estimate leaves out, such as the allocator's own rounding
GIB = 2**30


@dataclass(frozen=True)
class CallMemory:
    """Bytes of one call of the denoiser.

    Attributes:
        panel: activations of a panel, in all guidance parts.
        kept: keys and values of a panel that a later chunk reads, in all guidance parts.
        gathered: keys and values of one panel and its sources in the largest sharing layer, in all guidance parts.
        most_gathered: the most that is gathered at once.
        offloaded: weights that offloading moves onto the device for the call.
    """

    panel: int
    kept: int
    gathered: int
    most_gathered: int
    offloaded: int = 0

    def of(self, chunks: Sequence[Chunk]) -> int:
        """Return the bytes at the peak of the call."""
        return max(
            len(chunk.panels) * self.panel
            + max(len(chunk.kept), len(chunk.keeps)) * self.kept
            + min(len(chunk.panels) * self.gathered, self.most_gathered)
            for chunk in chunks
        )


def estimate_memory(
    backbone: Backbone,
    config: ConsistentSelfAttentionConfig,
    sources: Tensor,
    parts: int,
    height: int,
    width: int,
    itemsize: int,
    device: str,
) -> CallMemory:
    """Estimate the memory of a U-Net's call.

    Args:
        sources: (P, P) booleans, row i true at the panels that panel i reads.
        parts: guidance parts.
        height, width: of the latents.
        itemsize: bytes of a number.
        device: its type, such as `cuda`.

    Raises:
        UserError: for a denoiser that is not a U-Net of diffusers.
    """
    every = {
        name: _tokens(name, backbone, height, width) * _width(layer)
        for name, layer in backbone.self_attention_layers("all").items()
    }
    sharing = [every[name] for name in backbone.self_attention_layers(config.blocks)] if config.shares else [0]
    rates = config.rate.values() if isinstance(config.rate, Mapping) else [config.rate]
    read = 1 + max(rates) * int(sources.sum(1).max())
    one_panel = round(2 * itemsize * read * max(sharing))
    elsewhere = [each for each in backbone.denoiser.parameters() if each.device.type not in (device, "meta")]
    return CallMemory(
        panel=ACTIVATIONS * parts * itemsize * max(every.values()),
        kept=2 * parts * itemsize * sum(sharing),
        gathered=parts * one_panel,
        most_gathered=max(2 * itemsize * most_gathered(device), one_panel),
        offloaded=sum(weight.nbytes for weight in elsewhere),
    )


def _tokens(layer: str, backbone: Backbone, height: int, width: int) -> int:
    """Return the number of tokens of a layer; every down block but the last halves height and width, rounding up."""
    factor = find_factor(backbone.denoiser, layer)
    if factor is None:
        raise UserError(f"the memory of {type(backbone.denoiser).__name__} is unknown: set panels_at_once to a number.")
    return -(-height // factor) * -(-width // factor)


def _width(layer: Any) -> int:
    """Return the number of channels of a layer's keys."""
    return layer.to_k.out_features


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a call can allocate on a device, those that torch has cached included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available


def choose_chunks(
    config: ConsistentSelfAttentionConfig,
    sources: Tensor,
    memory: Callable[[], CallMemory],
    device: torch.device,
    given: Sequence[int] = (),
) -> list[Chunk]:
    """Divide the panels of a guidance part as `config.panels_at_once` asks.

    Args:
        sources: (P, P) booleans, row i true at the panels that panel i reads.
        memory: estimates that of a call.
        given: panels whose features are given.
    """
    if config.panels_at_once == "auto":
        return fit_chunks(sources, memory(), free_bytes(device), given)
    return plan_chunks(sources, config.panels_at_once, given)


def fit_chunks(sources: Tensor, memory: CallMemory, free: int, given: Sequence[int] = ()) -> list[Chunk]:
    """Return the largest chunks that fit into `free` bytes.

    Raises:
        UserError: where the panels that attend to each other do not fit.
    """
    denoised = [panel for panel in range(len(sources)) if panel not in given]
    largest = max(len(component) for component in find_components(sources[denoised][:, denoised]))
    chunks: list[Chunk] = []
    for panels_at_once in range(len(denoised), largest - 1, -1):
        chunks = plan_chunks(sources, panels_at_once, given)
        if memory.of(chunks) + memory.offloaded <= USABLE * free:
            return chunks
    raise UserError(
        f"{largest} panels attend to each other and need about {memory.of(chunks) / GIB:.2f} GiB together, but "
        f"{free / GIB:.2f} GiB are free: choose a smaller size, fewer anchor_panels, or sampler progressive with a "
        "neighbor_window."
    )
