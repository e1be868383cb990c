"""Section of gpu.py on one layer: CSA against plain attention, its ideal, and a dense mask as in the official code."""

from functools import partial

import torch
from consistent_self_attention import dense_attend, dense_mask, story_plan
from gpu_context import Context

from storydiffusion.attention.consistent_self_attention import (
    AttendedTokens,
    attend,
    gather_rows,
    multi_head_attention,
)

RATE = 0.5
PANELS = (4, 8)
MOST_SCORES = 2**31  # bytes of the dense mask


@torch.inference_mode()
def measure_layers(context: Context) -> None:
    """Time one layer after its projections; the ideal is plain attention × (1 + r(B − 1))."""
    for tokens, channels, heads in context.size.grids:
        for panels in PANELS:
            names = {"tokens": tokens, "channels": channels, "panels": panels}
            if context.is_late(**names):
                return
            with context.case(**names) as row:
                shape = (3, panels, tokens, channels)
                draw = torch.Generator(context.device).manual_seed(0)
                query, key, value = torch.randn(shape, device=context.device, generator=draw).to(context.dtype)
                plan = story_plan(panels, tokens, RATE, context.device)
                rows = plan.groups[0].rows
                plain = context.milliseconds(partial(multi_head_attention, query, key, value, heads))
                ours = context.milliseconds(partial(attend, query, key, value, plan, heads))
                gather = 2 * context.milliseconds(partial(gather_rows, key, rows))  # keys and values
                ideal = plain * (1 + RATE * (panels - 1))
                row |= {"plain ms": plain, "ideal ms": ideal, "ours ms": ours, "ours/ideal": ours / ideal}
                row["gather share"] = gather / ours
                if (panels * tokens) ** 2 > MOST_SCORES:
                    row["dense ms"] = "mask too large"
                    continue
                attended = [AttendedTokens(panel, each) for panel, each in enumerate(rows.cpu())]
                mask = dense_mask(attended, tokens, context.device)
                dense = partial(dense_attend, query, key, value, mask, heads)
                error = (dense().float() - attend(query, key, value, plan, heads).float()).abs().max()
                row |= {"dense ms": (found := context.milliseconds(dense)), "dense/ours": found / ours}
                row["largest difference"] = float(error)
