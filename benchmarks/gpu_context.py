"""What the sections of gpu.py share: the sizes, the clock, memory and time measurements."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
TINY_UNET = SDXL_UNET | {
    "sample_size": 8, "block_out_channels": (8, 16, 16), "transformer_layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 16, "norm_num_groups": 4, "layers_per_block": 1, "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}  # fmt: skip
TINY_VAE = VAE | {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}


@dataclass(frozen=True)
class Size:
    """What is measured: the networks' arguments and how much of each.

    Attributes:
        side: of images, in pixels.
        grids: (tokens, channels, heads) of self-attention layers.
        text: (tokens, width) of the text, and pooled width.
        checkpoint_bytes: of the training state that is written and read.
        reduce_bytes: of the tensor that is summed over all GPUs.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    side: int
    panels: tuple[int, ...]
    grids: tuple[tuple[int, int, int], ...]
    text: tuple[int, int, int]
    checkpoint_bytes: int
    reduce_bytes: int
    repeats: int
    compiler: str  # backend of torch.compile


SIZES = {
    "full": Size(
        SDXL_UNET, VAE, 1024, (4, 8, 16, 32), ((4096, 640, 10), (1024, 1280, 20), (4096, 320, 8)), (77, 2048, 1280),
        9 * 2**30, 2**28, 5, "inductor",
    ),
    "tiny": Size(
        TINY_UNET, TINY_VAE, 64, (2, 3), ((16, 16, 2),), (5, 16, 16), 2**16, 2**10, 1, "eager",
    ),
}  # fmt: skip


@dataclass
class Context:
    """Where a section runs and how long it may take.

    Attributes:
        seconds: the section's budget.
        rows: its results so far.
    """

    size: Size
    device: torch.device
    dtype: torch.dtype
    folder: Path
    seconds: float
    rows: list[Row] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    @contextmanager
    def case(self, **names: Any) -> Iterator[Row]:
        """Yield a new row to fill; one that runs out of memory says so."""
        row: Row = dict(names)
        self.rows.append(row)
        try:
            yield row
        except torch.OutOfMemoryError:
            row["skipped"] = "out of memory"
            torch.cuda.empty_cache()

    def is_late(self, **names: Any) -> bool:
        """Return whether the budget is spent, and if so add a row that says so."""
        late = time.perf_counter() - self.begun > self.seconds
        if late:
            self.rows.append({**names, "skipped": f"the section's {self.seconds:.0f} s are spent"})
        return late

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self, function: Callable[[], object], warm_ups: int = 1) -> float:
        """Return the median time of a call, after calls that are not counted."""
        times = []
        for repeat in range(warm_ups + self.size.repeats):
            begin = time.perf_counter()
            function()
            self.synchronize()
            if repeat >= warm_ups:
                times.append(1000 * (time.perf_counter() - begin))
        return statistics.median(times)

    def reset_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Return the peak of allocated memory since `reset_memory` in GiB; None without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None
