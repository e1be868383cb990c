"""Consistent self-attention (CSA): each panel also attends to sampled tokens of the story's other panels.

StoryDiffusion (arXiv 2405.01434), section 3.1. CSA adds no weights: query, key and value are those of the denoiser's
self-attention. For panel i of a story,

    S_i = RandSample(I_j, j ≠ i)            a share r of the other panels' tokens              (equation 2)
    O_i = Attention(Q_i, K_[I_i, S_i], V_[I_i, S_i])      all own tokens and the sample        (equation 3)

Tokens are selected first, on the CPU, as row numbers (variants.py, then `batch_plan`). `attend` gathers these rows of
the keys and values, each projected once, and calls scaled_dot_product_attention. So no (B·N)² mask exists, and a draw
is the same on every device.

Shape letters: P panels of one story, B panels in the batch, N tokens of a panel, L tokens that a panel attends to,
W panels of a window, C channels, H heads, R panels that attend to the same number of tokens.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.errors import UserError

# Keys, and as many values, gathered at once. On a CPU a larger buffer is new memory in each call, and its page faults
# cost more than the copy; elsewhere the bound keeps memory from growing with the square of the number of panels.
CPU_GATHER, GATHER = 2**22, 2**27


class View(NamedTuple):
    """The story as one image of the batch sees it.

    Attributes:
        panel: the image's own place in this story.
        images: the image in the place of each panel, by its number in the group; -1 for a panel that is not in the
            batch, since no image of it is read.
        seed: of this story's draws; None: that of the settings.
        references: the first panels that are not part of the story, such as images of a saved character. Every panel
            attends to them, regardless of `neighbor_window` and `anchor_panels`.
    """

    panel: int
    images: tuple[int, ...]
    seed: int | None = None
    references: int = 0

    def place_rows(self, rows: Tensor, tokens: int) -> Tensor:
        """Convert row numbers of the story's tokens to those of the group's tokens.

        Raises:
            UserError: for a token of a panel that is not in the batch.
        """
        images = torch.tensor(self.images)[rows // tokens]
        if (images < 0).any():
            missing = int((rows // tokens)[images < 0][0]) + 1
            raise UserError(f"panel {self.panel + 1} reads panel {missing}, which is not in the batch: add it.")
        return images * tokens + rows % tokens


@dataclass(eq=False)
class PanelGroup:
    """The panels of one story, side by side in the batch.

    Attributes:
        panels: their number, P ≥ 1.
        key: selects the random draws of this story. Stories of the same key and size draw alike, wherever they are in
            the batch.
        may_share: (P, P) booleans, row i true at column j where panel i may attend to panel j, such as the panels that
            name the same character; None allows all. The diagonal is ignored.
        masks: (P, height, width) numbers in [0, 1], such as each panel's foreground, for token samplers that need
            masks; None gives none.
        characters: for each panel, the name of each character in it → numbers of the text tokens that describe it, in
            the embeddings of the panel's prompt; needed for regions. None: unknown.
        places: the place of each panel, "" where it has none; needed for regions of places. None: unknown.
        views: the story as each of the P images sees it, such as some panels of a story, or further takes of one;
            tokens are drawn as for the whole story. None: the images are the story's panels.
        references: as in `View`.

    Raises:
        UserError: for panels < 1, another field of another length, or text tokens that are no numbers from 0.
    """

    panels: int
    key: int = 0
    may_share: Tensor | None = None
    masks: Tensor | None = None
    views: Sequence[View] | None = None
    characters: Sequence[Mapping[str, Sequence[int]]] | None = None
    places: Sequence[str] | None = None
    references: int = 0

    def __post_init__(self):
        if isinstance(self.panels, bool) or not isinstance(self.panels, int) or self.panels < 1:
            raise UserError(f"a story has {self.panels!r} panels: give a whole number, 1 or more.")
        if self.may_share is not None:
            self.may_share = torch.as_tensor(self.may_share, dtype=torch.bool, device="cpu")
            if self.may_share.shape != (self.panels, self.panels):
                raise UserError(
                    f"may_share has shape {tuple(self.may_share.shape)}: give {self.panels} × {self.panels} booleans."
                )
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != self.panels):
            raise UserError(f"masks has shape {tuple(self.masks.shape)}: give ({self.panels}, height, width).")
        for name, per_image in {"views": self.views, "characters": self.characters, "places": self.places}.items():
            if per_image is not None and len(per_image) != self.panels:
                raise UserError(f"{name} has {len(per_image)} entries for {self.panels} images: give one for each.")
        for number, cast in enumerate(self.characters or (), start=1):
            for name, tokens in cast.items():
                if not tokens or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in tokens):
                    raise UserError(
                        f"characters of panel {number} give {name} the text tokens {list(tokens)}: give whole numbers, "
                        "0 or more, at least one."
                    )

    def see(self, view: View) -> "PanelGroup":
        """Return the whole story of a view."""
        places = torch.tensor(view.images)
        may_share = None
        if self.may_share is not None:
            may_share = self.may_share[places][:, places] & (places >= 0)[:, None] & (places >= 0)
        group = PanelGroup(len(places), self.key, may_share, references=view.references)
        if self.characters is not None:
            group.characters = [self.characters[image] if image >= 0 else {} for image in view.images]
        if self.places is not None:
            group.places = [self.places[image] if image >= 0 else "" for image in view.images]
        return group

    def sources(self) -> Tensor:
        """(P, P) booleans: row i is true at the other panels that panel i may attend to."""
        allowed = torch.ones(self.panels, self.panels, dtype=torch.bool) if self.may_share is None else self.may_share
        return allowed & ~torch.eye(self.panels, dtype=torch.bool)

    def resized_masks(self, height: int, width: int) -> Tensor:
        """Return (P, height · width) booleans: true where the mean of `masks` over a token's area exceeds 0.5.

        Raises:
            UserError: for a story without masks.
        """
        if self.masks is None:
            raise UserError("the token sampler needs masks: give PanelGroup(masks=…) for every story.")
        resized = F.interpolate(self.masks.float()[:, None], (height, width), mode="area")
        return (resized > 0.5).flatten(1)


def random_stream(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def within_reach(panels: int, neighbor_window: int | None, anchor_panels: int | None) -> Tensor:
    """Return (P, P) booleans: row i is true at the panels that the settings allow panel i; None allows all."""
    place = torch.arange(panels)
    if neighbor_window is None and anchor_panels is None:
        return torch.ones(panels, panels, dtype=torch.bool)
    near = (place[:, None] - place).abs() <= (-1 if neighbor_window is None else neighbor_window)
    return near | (place < (anchor_panels or 0))


def uniform_counts(sources: Tensor, tokens: int, rate: float) -> Tensor:
    """Return (P, P), the number of tokens that panel i samples from panel j: round(rate · N) from each source."""
    return sources * round(rate * tokens)


def progressive_counts(sources: Tensor, tokens: int, rate: float, decay: float) -> Tensor:
    """Return (P, P), the number of tokens that panel i samples from panel j, an earlier source.

    The number is proportional to decay^(i − j), at most N. A row's sum is that of `uniform_counts`, or all tokens of
    the earlier sources where these are fewer.
    """
    budgets = uniform_counts(sources, tokens, rate).sum(1)
    counts = torch.zeros_like(sources, dtype=torch.long)
    for i, budget in enumerate(budgets.tolist()):
        earlier = sources[i, :i].nonzero()[:, 0].tolist()
        weights = [max(decay ** (i - j - 1), sys.float_info.min) for j in earlier]
        counts[i, earlier] = torch.tensor(apportion(budget, weights, tokens), dtype=torch.long)
    return counts


def apportion(budget: int, weights: Sequence[float], cap: int) -> list[int]:
    """Split a budget into whole parts in proportion to positive weights, none above `cap`.

    The excess of a capped part is split among the others in proportion; fractions are settled by largest remainder.
    The sum is min(budget, cap · len(weights)).
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
    """Draw counts[i, j] of panel j's N tokens for panel i, without replacement.

    Args:
        counts: (P, P) whole numbers in 0…N.
        shared: draw one order of a panel's tokens for all panels, instead of one for each.

    Returns:
        (P, P, N) booleans, true at [i, j, n] where panel i samples token n of panel j.
    """
    panels = counts.shape[0]
    sampled = torch.zeros(panels, panels, tokens, dtype=torch.bool)
    noise = torch.empty(0)
    for panel, row in enumerate(counts):  # one at a time, so that the noise of P² · N tokens never exists at once
        if panel == 0 or not shared:
            noise = torch.rand(panels, tokens, generator=generator)
        sources = row.nonzero()[:, 0]
        first = torch.arange(tokens) < row[sources, None]
        sampled[panel, sources] = torch.zeros_like(first).scatter_(-1, noise[sources].argsort(-1), first)
    return sampled


class AttendedTokens(NamedTuple):
    """The tokens that one panel attends to: `rows` (L,) number the story's P·N tokens.

    A panel has one entry per window that holds it (Algorithm 1): `tile` is the window's first panel. Their outputs are
    averaged. Or it has one entry per region: `readers` (n,) number the panel's own tokens that attend to `rows`; each
    of the N is in one region. None: all of them.
    """

    panel: int
    rows: Tensor
    tile: int = 0
    readers: Tensor | None = None

    def is_plain(self, tokens: int) -> bool:
        """Return whether the panel attends only to its own tokens, and to all of them."""
        return len(self.rows) == tokens and (self.readers is None or bool((self.rows // tokens == self.panel).all()))


def own_rows(panel: int, tokens: int) -> Tensor:
    """Return the row numbers of a panel's own tokens, (N,)."""
    return torch.arange(panel * tokens, (panel + 1) * tokens)


def own_and_sampled_tokens(sampled: Tensor) -> list[AttendedTokens]:
    """Return each panel's own tokens with the sampled ones, (P, P, N), true at [i, j, n] for token n of panel j."""
    attended = []
    for panel, tokens in enumerate(sampled):
        tokens = tokens.clone()  # one panel at a time: P² · N booleans are large enough once
        tokens[panel] = True
        attended.append(AttendedTokens(panel, tokens.flatten().nonzero()[:, 0]))
    return attended


def window_tokens(
    sources: Tensor, tokens: int, rate: float, window: int, generator: torch.Generator
) -> list[AttendedTokens]:
    """Select the tokens of Algorithm 1: in each window of W panels a sample of its W·N tokens, before the own tokens.

    The paper prints the loop bound as N - W + 1; it counts panels, so P - W + 1 is meant. Each window has one sample of
    round(rate · W · N) tokens. It includes tokens of the panel itself, which thus occur twice in the softmax. Where a
    panel may attend to some of the window only, W counts these and itself; without any it keeps to its own tokens.
    """
    visible = sources | torch.eye(len(sources), dtype=torch.bool)
    attended = []
    for begin in range(len(sources) - window + 1):
        order = torch.randperm(window * tokens, generator=generator) + begin * tokens
        for panel in range(begin, begin + window):
            count = int(visible[panel, begin : begin + window].sum())
            sample = order[visible[panel, order // tokens]][: round(rate * count * tokens) if count > 1 else 0]
            attended.append(AttendedTokens(panel, torch.cat([sample, own_rows(panel, tokens)]), begin))
    return attended


class PlanGroup(NamedTuple):
    """Panels that attend to the same number of tokens: `panels` (R,), each once; `rows` (R, L) of the B·N tokens.

    `readers` (R, n), of the B·N tokens too, are those of the panels that attend to `rows`; None: all N.
    """

    panels: Tensor
    rows: Tensor
    readers: Tensor | None = None

    def apply(self, change: Callable[[Tensor], Tensor]) -> "PlanGroup":
        """Return the group with each of its tensors changed."""
        return PlanGroup(change(self.panels), change(self.rows), None if self.readers is None else change(self.readers))


@dataclass(frozen=True)
class AttentionPlan:
    """The tokens that every panel of a batch attends to.

    `occurrences` (B,) counts the groups that hold a panel; None where each panel is in exactly one. `extend` adds the
    keys and values of other images, which `rows` number first, to those of the batch; None: there are none.
    """

    groups: list[PlanGroup]
    occurrences: Tensor | None
    extend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def to(self, device: torch.device) -> "AttentionPlan":
        """Return the same plan on another device."""
        groups = [group.apply(lambda rows: rows.to(device)) for group in self.groups]
        return AttentionPlan(groups, None if self.occurrences is None else self.occurrences.to(device), self.extend)


def batch_plan(
    stories: Sequence[Sequence[AttendedTokens]], sizes: Sequence[int], parts: int, tokens: int
) -> AttentionPlan | None:
    """Combine the stories of a batch, repeated for each guidance part; stories and parts never mix.

    Args:
        stories: the attended tokens of each story; an empty entry is plain attention.
        sizes: panels of each story; B = parts · sum(sizes), the parts outermost, as diffusers stacks guidance.
        tokens: N.

    Returns:
        The plan, one group for each number L of tokens, and n of readers; None where every panel attends only
        to itself, which is plain attention.
    """
    if all(attended.is_plain(tokens) for story in stories for attended in story):
        return None
    batch = parts * sum(sizes)
    by_length: dict[tuple[int, int, int], list[AttendedTokens]] = {}
    first = 0
    for size, story in list(zip(sizes, stories, strict=True)) * parts:
        for panel, rows, tile, readers in story or [
            AttendedTokens(panel, own_rows(panel, tokens)) for panel in range(size)
        ]:
            placed = None if readers is None else readers + (first + panel) * tokens
            members = by_length.setdefault((tile, len(rows), -1 if readers is None else len(readers)), [])
            members.append(AttendedTokens(first + panel, rows + first * tokens, tile, placed))
        first += size
    groups = [_group_members(members) for members in by_length.values()]
    if any(group.readers is not None for group in groups):  # each token reads once
        return AttentionPlan(groups, None)
    occurrences = torch.cat([group.panels for group in groups]).bincount(minlength=batch)
    return AttentionPlan(groups, None if bool((occurrences == 1).all()) else occurrences)


def _group_members(members: Sequence[AttendedTokens]) -> PlanGroup:
    readers = [each.readers for each in members if each.readers is not None]
    return PlanGroup(
        torch.tensor([each.panel for each in members]),
        torch.stack([each.rows for each in members]),
        torch.stack(readers) if readers else None,
    )


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, heads: int) -> Tensor:
    """Compute every panel's attention over the tokens that the plan selects (equation 3).

    Args:
        query, key, value: (B, N, C), projected, not yet split into heads, on the plan's device.

    Returns:
        (B, N, C).
    """
    if plan.extend is not None:
        key, value = plan.extend(key, value)
    output = torch.zeros_like(query)
    most = most_gathered(query.device.type)
    for group in plan.groups:
        at_once = max(1, most // (group.rows.shape[1] * query.shape[-1]))
        for first in range(0, len(group.rows), at_once):
            panels, rows, readers = group.apply(itemgetter(slice(first, first + at_once)))
            keys, values = gather_rows(key, rows), gather_rows(value, rows)
            if readers is None:
                output.index_add_(0, panels, multi_head_attention(query[panels], keys, values, heads))
            else:
                read = multi_head_attention(gather_rows(query, readers), keys, values, heads)
                output.view(-1, output.shape[-1]).index_copy_(0, readers.flatten(), read.flatten(0, 1))
    return output if plan.occurrences is None else output / plan.occurrences[:, None, None]


def most_gathered(device: str) -> int:
    """Return how many numbers of keys `attend` gathers at once on a type of device, where one panel has fewer."""
    return CPU_GATHER if device == "cpu" else GATHER


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """(B, N, C), (R, L) → (R, L, C): rows of the B·N tokens."""
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, -1)


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(R, n, C), (R, L, C), (R, L, C) → (R, n, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def mean_attention_maps(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(B, N, C), (B, N, C) → (B, N, N): plain self-attention's softmax, averaged over heads; rows sum to 1."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
