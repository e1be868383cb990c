"""Share tokens by region: who is where in each panel decides which tokens attend to which.

A region is the set of a panel's tokens that show one character, or the background. Tokens of character c attend to all
tokens of their own panel and to a sample of c's regions in the panels that name c; background attends to its own panel,
and to a sample of the background of panels in the same place:

    S_i,c = RandSample(R_j,c, j ≠ i)        a share r of each region: exactly round(r · |R_j,c|) tokens
    O_i,c = Attention(Q_i[R_i,c], K_[I_i, S_i,c], V_[I_i, S_i,c])

So hair and clothes of one character never reach another through a panel of both. Maps of cross-attention say who is
where: each over its own mean, the largest wins (DreamStory, arXiv 2407.12899); the start token stands for background.
Isolation, the other half of keeping characters apart, also hides other characters' tokens in the own panel.

Shape letters: P panels of one story, N tokens of a panel, K regions: the background and the characters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from storydiffusion.attention.consistent_self_attention import AttendedTokens, PanelGroup

BACKGROUND = 0
"""Number of the background's region; the k-th character of a panel has number k, from 1"""


def find_regions(maps: Tensor, height: int, width: int) -> Tensor:
    """Return (P, height · width), the region of each token.

    Args:
        maps: (P, K, h, w) of cross-attention, at any grid; 0 everywhere for a character that a panel lacks.
    """
    means = maps.float().mean((-2, -1), keepdim=True)
    relative = (maps.float() / means).masked_fill(means == 0, -1)
    return F.interpolate(relative, (height, width), mode="bilinear", antialias=True).argmax(1).flatten(1)


def draw_in_regions(regions: Tensor, rate: float, shared: bool, generator: torch.Generator) -> Tensor:
    """Draw round(rate · |region|) tokens of every region, without replacement.

    Args:
        regions: (P, N) whole numbers.
        shared: draw one sample of a panel for all panels, instead of one for each.

    Returns:
        (P, P, N) booleans, true at [i, j, n] where panel i may sample token n of panel j. With one region a panel, it
        is what `draw_tokens` draws.
    """
    panels, tokens = regions.shape
    drawn = torch.zeros(panels, panels, tokens, dtype=torch.bool)
    sizes = F.one_hot(regions).sum(1)  # (P, K)
    counts = (sizes.double() * rate).round().long().gather(1, regions)  # of the region of each token
    noise = torch.empty(0)
    for panel in range(panels):
        if panel == 0 or not shared:
            noise = torch.rand(panels, tokens, generator=generator)
        order = noise.argsort(-1)
        in_order = F.one_hot(regions.gather(1, order)).cumsum(1)  # (P, N, K) tokens of each region up to here
        rank = in_order.gather(2, regions.gather(1, order)[..., None])[..., 0]  # from 1, within the own region
        drawn[panel] = torch.zeros_like(drawn[panel]).scatter_(-1, order, rank <= counts.gather(1, order))
    return drawn


def select_by_region(
    story: PanelGroup, regions: Tensor, drawn: Tensor, sources: Tensor, same_place: Tensor, isolated: bool
) -> list[AttendedTokens]:
    """Return the tokens that each region of each panel attends to.

    Args:
        regions: (P, N), the region of each token.
        drawn: (P, P, N) booleans of `draw_in_regions`.
        sources: (P, P) booleans, row i true at the other panels whose characters panel i may attend to.
        same_place: the same for the background.
        isolated: characters do not attend to each other in their own panel.
    """
    assert story.characters is not None
    attended = []
    for panel, names in enumerate(story.characters):
        for number, name in enumerate([None, *names]):
            readers = (regions[panel] == number).nonzero()[:, 0]
            if not len(readers):
                continue
            read = torch.zeros_like(drawn[panel])
            for other in (same_place if name is None else sources)[panel].nonzero()[:, 0].tolist():
                there = [None, *story.characters[other]]
                if name in there:
                    read[other] = drawn[panel, other] & (regions[other] == there.index(name))
            hidden = (regions[panel] != BACKGROUND) & (regions[panel] != number)
            read[panel] = ~hidden if isolated and name is not None else True
            attended.append(AttendedTokens(panel, read.flatten().nonzero()[:, 0], readers=readers))
    return attended
