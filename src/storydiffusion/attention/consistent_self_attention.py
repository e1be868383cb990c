"""Consistent self-attention (CSA): each panel's self-attention also reads sampled tokens of the story's other panels.

StoryDiffusion (arXiv 2405.01434), section 3.1. It has no weights of its own: query, key and value are those of the
U-Net's self-attention. For panel i of a story,

    S_i = RandSample(I_j, j ≠ i)            tokens of the other panels, a share r of them      (equation 2)
    O_i = Attention(Q_i, K_[I_i, S_i], V_[I_i, S_i])      own tokens all, and the sample       (equation 3)

Which tokens a panel reads is decided first, on the CPU, as row numbers (`select_tokens`, then `batch_plan`); `attend`
gathers these rows of the keys and values, each projected once, and calls scaled_dot_product_attention. So no
(B·N)² mask exists, and a draw is the same on every device.

Shape letters: P panels of one story, B panels in the batch, N tokens of a panel, L tokens that a panel reads,
C channels, H heads, R readers (panels that read the same number of tokens).
"""

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError

# The official code bypasses sharing in steps 0–4 of 50, then in a layer with probability 0.3, and 0.1 from step 20 on.
OFFICIAL_BYPASS = ((0.0, 1.0), (0.1, 0.3), (0.4, 0.1))

# Numbers gathered at once on a CPU: a larger buffer is new memory in each call, and its page faults cost more than
# the copy.
CPU_GATHER = 2**22


@dataclass(eq=False)
class PanelGroup:
    """The panels of one story, which stand side by side in the batch.

    Attributes:
        panels: how many there are, P ≥ 1.
        key: makes the draws of this story its own; stories of the same key and size draw alike. Place in the batch
            does not matter.
        may_share: (P, P) booleans, row i true at column j where panel i may read panel j, such as the panels that
            name the same character; None lets all read all. The diagonal does not matter.

    Raises:
        UserError: for panels < 1 or a `may_share` of another shape.
    """

    panels: int
    key: int = 0
    may_share: Tensor | None = None

    def __post_init__(self):
        if isinstance(self.panels, bool) or not isinstance(self.panels, int) or self.panels < 1:
            raise UserError(f"a story has {self.panels!r} panels: give a whole number, 1 or more.")
        if self.may_share is not None:
            self.may_share = torch.as_tensor(self.may_share, dtype=torch.bool, device="cpu")
            if self.may_share.shape != (self.panels, self.panels):
                raise UserError(
                    f"may_share has shape {tuple(self.may_share.shape)}: give {self.panels} × {self.panels} booleans."
                )

    def sources(self) -> Tensor:
        """(P, P) booleans: row i is true at the other panels that panel i may read."""
        allowed = torch.ones(self.panels, self.panels, dtype=torch.bool) if self.may_share is None else self.may_share
        return allowed & ~torch.eye(self.panels, dtype=torch.bool)


def random_stream(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for each key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def within_reach(config: ConsistentSelfAttentionConfig, panels: int) -> Tensor:
    """Return (P, P) booleans: row i is true at the panels within reach of panel i."""
    place = torch.arange(panels)
    if config.neighbor_window is None and config.anchor_panels is None:
        return torch.ones(panels, panels, dtype=torch.bool)
    near = (place[:, None] - place).abs() <= (-1 if config.neighbor_window is None else config.neighbor_window)
    return near | (place < (config.anchor_panels or 0))


def bypasses(config: ConsistentSelfAttentionConfig, step: int, steps: int | None, story: int, layer: str) -> bool:
    """Return whether a layer skips sharing at a step, by the official code's draw; never with another variant."""
    if config.variant != "official" or steps is None:
        return False
    probability = next(p for begin, p in reversed(OFFICIAL_BYPASS) if step >= round(begin * steps))
    return bool(torch.rand((), generator=random_stream(config.seed, story, step, layer)) < probability)


def uniform_counts(sources: Tensor, tokens: int, rate: float) -> Tensor:
    """(P, P) number of tokens that panel i samples from panel j: round(rate · N) from each of its sources."""
    return sources * round(rate * tokens)


def progressive_counts(sources: Tensor, tokens: int, rate: float, decay: float) -> Tensor:
    """(P, P) number of tokens that panel i samples from panel j: from its earlier sources, nearer ones giving more.

    In proportion to decay^(i - j), at most N from one panel; in sum what `uniform_counts` gives panel i, or all
    tokens of its earlier sources where these are fewer.
    """
    budgets = uniform_counts(sources, tokens, rate).sum(1)
    counts = torch.zeros_like(sources, dtype=torch.long)
    for i, budget in enumerate(budgets.tolist()):
        earlier = sources[i, :i].nonzero()[:, 0].tolist()
        weights = [max(decay ** (i - j - 1), sys.float_info.min) for j in earlier]
        counts[i, earlier] = torch.tensor(apportion(budget, weights, tokens), dtype=torch.long)
    return counts


def apportion(budget: int, weights: Sequence[float], cap: int) -> list[int]:
    """Splits a budget into whole parts in proportion to positive weights, none above `cap`.

    What a capped part cannot take goes to the others in proportion; fractions are settled by largest remainder. The
    sum is min(budget, cap · len(weights)).
    """
    parts = [0.0] * len(weights)
    left, unfilled = float(min(budget, cap * len(weights))), set(range(len(weights)))
    while unfilled:
        total = math.fsum(weights[k] for k in unfilled)
        full = {k for k in unfilled if left * weights[k] >= cap * total}
        if not full:
            for k in unfilled:
                parts[k] = left * weights[k] / total
            break
        for k in full:
            parts[k] = float(cap)
        left, unfilled = left - cap * len(full), unfilled - full
    whole = [max(math.floor(part - 1e-9), 0) for part in parts]  # so that float error never makes their sum too large
    missing = min(budget, cap * len(weights)) - sum(whole)
    by_remainder = sorted(range(len(parts)), key=lambda k: whole[k] - parts[k])
    for k in [k for k in by_remainder if whole[k] < cap][:missing]:
        whole[k] += 1
    return whole


def draw_tokens(counts: Tensor, tokens: int, shared: bool, generator: torch.Generator) -> Tensor:
    """Draws counts[i, j] of panel j's N tokens for panel i, without replacement; its own tokens are all in.

    Args:
        counts: (P, P) whole numbers in 0…N.
        shared: one order of a panel's tokens for all its readers, instead of one for each.

    Returns:
        (P, P, N) booleans, true at [i, j, n] where panel i reads token n of panel j.
    """
    panels = counts.shape[0]
    order = torch.rand(1 if shared else panels, panels, tokens, generator=generator).argsort(-1)
    first = torch.arange(tokens) < counts[..., None]
    drawn = torch.zeros_like(first).scatter_(-1, order.expand_as(first), first)
    return drawn | torch.eye(panels, dtype=torch.bool)[..., None]


class Read(NamedTuple):
    """One panel's reading list: `rows` (L,) are numbers in the story's P·N tokens. `tile` numbers a panel's several
    lists (one for each window of Algorithm 1); their outputs are averaged."""

    reader: int
    rows: Tensor
    tile: int = 0


def select_tokens(
    config: ConsistentSelfAttentionConfig, story: PanelGroup, tokens: int, rate: float, step: int
) -> list[Read]:
    """Draws what each panel of a story reads: a function of the arguments and of nothing else in the batch."""
    generator = random_stream(config.seed, story.key, step, tokens)
    sources = story.sources() & within_reach(config, story.panels)
    if config.variant == "algorithm1":
        return tile_reads(sources, tokens, rate, config.tile_size or story.panels, generator)
    if config.sampler == "progressive":
        counts = progressive_counts(sources, tokens, rate, config.decay)
    else:
        counts = uniform_counts(sources, tokens, rate)
    drawn = draw_tokens(counts, tokens, config.variant != "eq2", generator).flatten(1)
    return [Read(reader, drawn[reader].nonzero()[:, 0]) for reader in range(story.panels)]


def tile_reads(sources: Tensor, tokens: int, rate: float, tile_size: int, generator: torch.Generator) -> list[Read]:
    """Algorithm 1's reading lists: in each window of W panels, a sample of its W·N tokens before the own tokens.

    The paper prints the loop bound as N - W + 1; it counts panels, so P - W + 1 is meant. Its sample of round(rate ·
    W · N) tokens is one for the window and includes the reader's own, which so stand twice in the softmax. Where a
    panel may read only some of the window, W counts these and itself; with nobody to read it keeps to its own tokens.
    """
    panels = len(sources)
    window = min(tile_size, panels)
    visible = sources | torch.eye(panels, dtype=torch.bool)
    reads = []
    for begin in range(panels - window + 1):
        order = torch.randperm(window * tokens, generator=generator) + begin * tokens
        for reader in range(begin, begin + window):
            count = int(visible[reader, begin : begin + window].sum())
            sample = order[visible[reader, order // tokens]][: round(rate * count * tokens) if count > 1 else 0]
            reads.append(Read(reader, torch.cat([sample, own_rows(reader, tokens)]), begin))
    return reads


def own_rows(panel: int, tokens: int) -> Tensor:
    return torch.arange(panel * tokens, (panel + 1) * tokens)


class ReadGroup(NamedTuple):
    """Panels that read the same number of tokens: `readers` (R,), each once; `rows` (R, L) of the B·N tokens."""

    readers: Tensor
    rows: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """What every panel of a batch reads. `times` (B,) is how often a panel is a reader, None where each is once."""

    groups: list[ReadGroup]
    times: Tensor | None

    def to(self, device: torch.device) -> "AttentionPlan":
        """The same plan on another device."""
        groups = [ReadGroup(group.readers.to(device), group.rows.to(device)) for group in self.groups]
        return AttentionPlan(groups, None if self.times is None else self.times.to(device))


def batch_plan(
    stories: Sequence[Sequence[Read]], sizes: Sequence[int], parts: int, tokens: int
) -> AttentionPlan | None:
    """Puts stories side by side, and again for each guidance part, so that neither ever reads the other.

    Args:
        stories: reading lists of each story; an empty one stands for plain attention.
        sizes: panels of each story; B = parts · sum(sizes), the parts outermost, as diffusers stacks guidance.
        tokens: N.

    Returns:
        The plan, one group for each number of tokens read; None where no panel reads another, which is plain attention.
    """
    if all(len(read.rows) == tokens for reads in stories for read in reads):
        return None
    batch = parts * sum(sizes)
    lists: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    first = 0
    for size, reads in list(zip(sizes, stories, strict=True)) * parts:
        for read in reads or [Read(panel, own_rows(panel, tokens)) for panel in range(size)]:
            members = lists.setdefault((read.tile, len(read.rows)), [])
            members.append((first + read.reader, read.rows + first * tokens))
        first += size
    groups = [
        ReadGroup(torch.tensor([reader for reader, _ in members]), torch.stack([rows for _, rows in members]))
        for members in lists.values()
    ]
    times = torch.cat([group.readers for group in groups]).bincount(minlength=batch)
    return AttentionPlan(groups, None if bool((times == 1).all()) else times)


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, heads: int) -> Tensor:
    """Attention of every panel over the tokens that the plan lets it read (equation 3).

    Args:
        query, key, value: (B, N, C), projected, not yet split into heads. The plan lies on their device.

    Returns:
        (B, N, C).
    """
    output = torch.zeros_like(query)
    for group in plan.groups:
        at_once = len(group.rows)
        if query.device.type == "cpu":
            at_once = max(1, CPU_GATHER // (group.rows.shape[1] * query.shape[-1]))
        for readers, rows in zip(group.readers.split(at_once), group.rows.split(at_once), strict=True):
            keys, values = gather_rows(key, rows), gather_rows(value, rows)
            output.index_add_(0, readers, multi_head_attention(query[readers], keys, values, heads))
    return output if plan.times is None else output / plan.times[:, None, None]


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """(B, N, C), (R, L) → (R, L, C): rows of the B·N tokens."""
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, -1)


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(R, N, C), (R, L, C), (R, L, C) → (R, N, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
