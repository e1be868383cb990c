"""Memory of stories in chunks of panels: simulated for Stable Diffusion 1.5 and XL, measured for the miniature.

    python benchmarks/memory.py simulate     # bytes of every allocation on fake tensors: no weights, no GPU
    python benchmarks/memory.py measure      # peak resident memory and processor seconds of child processes

The simulated bytes are those of the denoiser's call beside its weights, in float16 with guidance.
"""

import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import storydiffusion.attention.consistent_self_attention as sharing
from storydiffusion.attention.backbones import UNetBackbone
from storydiffusion.attention.chunks import plan_chunks
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.memory import GIB, CallMemory, estimate_memory
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.variants import get_read_panels

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MINIATURE: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 16,
    "out_channels": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (96, 160),
    "layers_per_block": 1,
    "cross_attention_dim": 192,
    "attention_head_dim": [3, 5],
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
UNETS: dict[str, dict[str, Any]] = {
    "miniature": MINIATURE,
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": SDXL,
}
PARTS, ITEMSIZE = 2, 2  # guidance; float16


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of all living storages of fake tensors that are allocated inside the context.

    Attributes:
        peak: their largest sum.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._storages = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor) and (storage := tensor.untyped_storage()) not in self._storages:
                self._storages.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _free(self, size: int) -> None:
        self._live -= size


class Holder:
    """A pipeline of a denoiser alone."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet


def simulate(name: str, panels: int, config: ConsistentSelfAttentionConfig) -> tuple[int, CallMemory]:
    """Return the peak bytes of a call of the denoiser beside its weights and inputs, and the estimate for it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    torch.set_default_dtype(torch.float16)
    try:
        with mode:
            unet = UNet2DConditionModel(**UNETS[name]).eval()
            batch, settings = PARTS * panels, unet.config
            inputs = [
                torch.empty(batch, settings["in_channels"], settings["sample_size"], settings["sample_size"]),
                torch.empty(()),
                torch.empty(batch, 77, settings["cross_attention_dim"]),
            ]
            added = {"text_embeds": torch.empty(batch, 1280), "time_ids": torch.empty(batch, 6)}
    finally:
        torch.set_default_dtype(torch.float32)
    more = {"added_cond_kwargs": added} if name == "sdxl" else {}
    known = [*unet.parameters(), *inputs, *added.values()]
    with (
        patch.object(sharing, "CPU_GATHER", sharing.GATHER),  # fake tensors are on the CPU, where it would be smaller
        consistent_self_attention(Holder(unet), config, [panels], parts=PARTS),
        torch.no_grad(),
        LiveBytes(known) as live,
    ):
        unet(*inputs, **more)
    return live.peak, estimate(name, unet, panels, config)


def estimate(name: str, unet: UNet2DConditionModel, panels: int, config: ConsistentSelfAttentionConfig) -> CallMemory:
    """Return the estimate of the memory of a call."""
    sources = get_read_panels(config, [PanelGroup(panels)])
    side = UNETS[name]["sample_size"]
    return estimate_memory(UNetBackbone(unet), config, sources, PARTS, side, side, ITEMSIZE, "cuda")


def estimated_bytes(memory: CallMemory, panels: int, config: ConsistentSelfAttentionConfig) -> int:
    """Return the bytes that the estimate gives a call in chunks of `config.panels_at_once` panels."""
    limit = panels if config.panels_at_once is None else int(config.panels_at_once)
    return memory.of(plan_chunks(get_read_panels(config, [PanelGroup(panels)]), limit))


def print_simulated() -> None:
    """Print the simulated and the estimated bytes of stories of growing length."""
    anchors = ConsistentSelfAttentionConfig(anchor_panels=4)
    print("| model | panels | attend to | at once | simulated GiB | estimated GiB |\n|---|---|---|---|---|---|")
    rows = [(4, None), (8, None), (16, None), (32, None), (32, 8), (8, 4), (32, 4), (128, 4), (256, 4)]
    for name in ("sd15", "sdxl"):
        for panels, limit in rows:
            config = replace(anchors, panels_at_once=limit)
            peak, memory = simulate(name, panels, config)
            estimated = estimated_bytes(memory, panels, config)
            print(
                f"| {name} | {panels} | 4 anchors | {limit or 'all'} | {peak / GIB:.2f} | {estimated / GIB:.2f} |",
                flush=True,
            )


def measure(panels: int, panels_at_once: int) -> None:
    """Generate a story of the miniature on one thread; print its processor seconds and the peak memory."""
    from storydiffusion import StoryPipeline
    from storydiffusion.story.script import Character, Panel, Story

    torch.set_num_threads(1)
    pipe = StoryPipeline.from_pretrained("package://miniature", device="cpu")
    places = ("park", "beach", "city", "snow", "room", "forest")
    scenes = [Panel(f"[Mia] is standing in the {places[number % 6]}", "", ("Mia",)) for number in range(panels)]
    config = ConsistentSelfAttentionConfig(
        anchor_panels=4, panels_at_once=None if panels_at_once == 0 else panels_at_once
    )
    clock = time.process_time()
    pipe(Story("story", (Character("Mia", "a girl"),), tuple(scenes)), csa=config, num_inference_steps=4)
    seconds, peak = time.process_time() - clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"| {panels} | {panels_at_once or 'all'} | {seconds:.1f} | {seconds / panels:.2f} | {peak / GIB:.2f} |")


def print_measured() -> None:
    """Print seconds and peak memory of stories of growing length, each in a process of its own."""
    print("| panels | at once | seconds | seconds per panel | peak GiB |\n|---|---|---|---|---|", flush=True)
    for panels, limit in [(8, 0), (8, 8), (32, 0), (32, 8), (64, 8), (128, 8), (256, 8), (256, 0)]:
        subprocess.run([sys.executable, __file__, "measure", str(panels), str(limit)], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["simulate"]:
            print_simulated()
        case ["measure"]:
            print_measured()
        case ["measure", panels, limit]:
            measure(int(panels), int(limit))
        case _:
            sys.exit(__doc__)
