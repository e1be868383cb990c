"""Times plain attention, consistent self-attention, and a dense mask of the same variant, in one run.

    python benchmarks/consistent_self_attention.py                      # all grids of SD1.5 and SDXL
    python benchmarks/consistent_self_attention.py --tokens 1024        # their 1024-token grids only

Each takes projected queries, keys and values, as a layer has them: equation 3 alone, without the projections, which
are the same in all three. `ours` includes the gathering of the sampled rows; drawing them (`draw`) is timed apart,
since one draw serves all layers of a grid in a denoising step. The ideal is (1 + r(B - 1)) × plain: the time of plain
attention if it grew with the number of keys and nothing else.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import (
    AttendedTokens,
    AttentionPlan,
    PanelGroup,
    attend,
    batch_plan,
    multi_head_attention,
)
from storydiffusion.attention.variants import select_tokens


@dataclass(frozen=True)
class Grid:
    """A self-attention layer's size: SD1.5 at 512², SDXL at 1024²."""

    model: str
    tokens: int
    channels: int
    heads: int


GRIDS = [
    Grid("SD1.5", 4096, 320, 8),
    Grid("SD1.5", 1024, 640, 8),
    Grid("SD1.5", 256, 1280, 8),
    Grid("SDXL", 4096, 640, 10),
    Grid("SDXL", 1024, 1280, 20),
]


def dense_mask(attended: list[AttendedTokens], tokens: int, device: torch.device) -> Tensor:
    """Return (B·N, B·N) booleans: the tokens that each token attends to."""
    mask = torch.zeros(len(attended), tokens, len(attended) * tokens, dtype=torch.bool)
    for each in attended:
        mask[each.panel, :, each.rows] = True
    return mask.flatten(0, 1).to(device)


def dense_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(B, N, C) → (B, N, C): the story as one long sequence under a dense mask, as the official code does it."""
    q, k, v = (x.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)[None] for x in (query, key, value))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return output[0].transpose(0, 1).flatten(1).view_as(query)


def milliseconds(functions: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Least time of each, the run that other loads disturbed least; they take turns for the same reason."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, measured in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first round warms up
                measured.append(1000 * (time.perf_counter() - begin))
    return [min(measured) for measured in times]


def story_plan(panels: int, tokens: int, rate: float, device: torch.device) -> AttentionPlan:
    attended = select_tokens(ConsistentSelfAttentionConfig(rate=rate), PanelGroup(panels), tokens, rate, step=0)
    plan = batch_plan([attended], [panels], parts=1, tokens=tokens)
    if plan is None:
        raise SystemExit("nothing is shared: choose 2 panels or more and a rate above 0")
    return plan.to(device)


def measure(grid: Grid, panels: int, args: argparse.Namespace) -> str:
    """A row of the table."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    query, key, value = torch.randn(3, panels, grid.tokens, grid.channels, device=device, dtype=dtype)
    plan = story_plan(panels, grid.tokens, args.rate, device)
    attended = [AttendedTokens(panel, rows) for panel, rows in enumerate(plan.groups[0].rows.cpu())]
    mask = dense_mask(attended, grid.tokens, device)
    functions = [
        partial(multi_head_attention, query, key, value, grid.heads),
        partial(attend, query, key, value, plan, grid.heads),
        partial(dense_attend, query, key, value, mask, grid.heads),
        partial(story_plan, panels, grid.tokens, args.rate, device),
    ]
    torch.testing.assert_close(
        functions[1](), functions[2](), rtol=1e-2, atol=1e-2 if args.dtype != "float32" else 1e-5
    )
    plain, ours, dense, draw = milliseconds(functions, device, args.repeats)
    ideal = plain * (1 + args.rate * (panels - 1))
    return (
        f"| {grid.model} | {grid.tokens} | {grid.channels} | {panels} | {plain:.1f} | {ideal:.1f} | {ours:.1f} | "
        f"{ours / ideal:.2f} | {dense:.1f} | {dense / ours:.2f} | {draw:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=int, nargs="+", choices=sorted({g.tokens for g in GRIDS}), help="grids to time"
    )
    parser.add_argument("--panels", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    args = parser.parse_args()
    where = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    print(f"{where}, {torch.get_num_threads()} threads, {args.dtype}, torch {torch.__version__}, rate {args.rate}\n")
    columns = ["model", "tokens", "channels", "panels", "plain ms", "ideal ms", "ours ms", "ours/ideal"]
    columns += ["dense ms", "dense/ours", "draw ms"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    with torch.inference_mode():
        for grid in GRIDS:
            for panels in args.panels if not args.tokens or grid.tokens in args.tokens else []:
                print(measure(grid, panels, args), flush=True)


if __name__ == "__main__":
    main()
