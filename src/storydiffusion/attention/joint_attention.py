"""Consistent self-attention in a diffusion transformer, where text and image tokens form one sequence.

The sequence of panel i holds its text, the N tokens of its image, and those of reference images. Only image tokens
attend to other panels, and only to image tokens; all other tokens attend as without sharing:

    O_text = Attention(Q_text, K_i, V_i)                                    K_i: all keys of panel i
    O_image = Attention(Q_image, [K_i, R(Δ) K_image,j[S_i]], [V_i, V_image,j[S_i]])     j ≠ i

At the same position, a rotary embedding favors the token of another panel over its neighbors. R(Δ) moves the keys of
other panels: rotations add up, R(Δ) R(p) = R(p + Δ), so keys are moved after their own rotary embedding.

Shape letters: B panels in the batch, S tokens of a panel's sequence, N of its image, L image tokens that a panel
attends to, H heads, D channels of a head.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from storydiffusion.attention.consistent_self_attention import AttentionPlan, most_gathered

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query (B, S, H, D), key (B, K, H, D), value (B, K, H, D), mask (B, 1, 1, K) of booleans or None) → (B, S, H, D)"""


def shift_angles(shift: Sequence[float], axes_dim: Sequence[int], theta: float) -> Tensor:
    """Return (D / 2,), the angles by which a rotary embedding turns the channel pairs of a key that moves by `shift`.

    Args:
        shift: how far along each axis.
        axes_dim: channels of each axis; their sum is D.
    """
    per_axis = [
        distance / theta ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        for distance, channels in zip(shift, axes_dim, strict=True)
    ]
    return torch.cat(per_axis).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(…, D), (D / 2,) → (…, D): turn each pair of neighboring channels by its angle."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def attend_joint(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    image: slice,
    kernel: Kernel,
    angles: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute joint attention in which image tokens also attend to the tokens that the plan selects.

    Args:
        query, key, value: (B, S, H, D), with rotary embedding.
        plan: rows of the B·N image tokens.
        image: the place of the N image tokens in a sequence.
        kernel: computes attention.
        angles: (D / 2,) by which the keys of other panels are turned; None leaves them where they are.
        mask: (B, S) booleans, false at padding, which no token attends to; image tokens have none.

    Returns:
        (B, S, H, D).
    """
    rest = _outside(query, image)
    if rest.shape[1]:
        rest = kernel(rest, key, value, None if mask is None else mask[:, None, None])
    shared = _attend_image(query[:, image], key, value, plan, image, kernel, angles, mask)
    return torch.cat([rest[:, : image.start], shared, rest[:, image.start :]], dim=1)


def _attend_image(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    image: slice,
    kernel: Kernel,
    angles: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """(B, N, H, D) for the image tokens: one kernel call for all panels with as many keys, if they fit in the bound."""
    tokens, total = query.shape[1], query.shape[0] * query.shape[1]
    keys, values = key[:, image].flatten(0, 1), value[:, image].flatten(0, 1)
    if angles is not None:
        keys = torch.cat([keys, rotate(keys, angles)])  # rows from `total` on are moved
    own_key, own_value = _outside(key, image), _outside(value, image)
    own_mask = None if mask is None else _outside(mask, image)
    output, queries = query.new_zeros(query.shape), query.flatten(0, 1)
    most = most_gathered(query.device.type)
    for group in plan.groups:
        at_once = max(1, most // ((own_key.shape[1] + group.rows.shape[1]) * query[0, 0].numel()))
        for first in range(0, len(group.rows), at_once):
            panels, rows, readers = group.apply(itemgetter(slice(first, first + at_once)))
            of_others = rows // tokens != panels[:, None]
            moved = rows if angles is None else rows + of_others * total
            joint_key = torch.cat([own_key[panels], keys[moved]], dim=1)
            joint_value = torch.cat([own_value[panels], values[rows]], dim=1)
            seen = None
            if own_mask is not None:
                seen = torch.cat([own_mask[panels], torch.ones_like(rows, dtype=torch.bool)], dim=1)[:, None, None]
            if readers is None:
                read = kernel(query[panels], joint_key, joint_value, seen)
                output.index_add_(0, panels, read.to(output.dtype))
            else:
                read = kernel(queries[readers], joint_key, joint_value, seen)
                output.view_as(queries).index_copy_(0, readers.flatten(), read.flatten(0, 1).to(output.dtype))
    return output if plan.occurrences is None else output / plan.occurrences[:, None, None, None]


def _outside(x: Tensor, image: slice) -> Tensor:
    """(B, S, …) → (B, S - N, …): without the image tokens."""
    return torch.cat([x[:, : image.start], x[:, image.stop :]], dim=1)
