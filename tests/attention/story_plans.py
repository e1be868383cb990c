"""Small stories and their attention plans, for the tests of variants, samplers and the mathematics."""

import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import AttendedTokens, AttentionPlan, PanelGroup, batch_plan
from storydiffusion.attention.variants import select_tokens

TOKENS, CHANNELS, HEADS = 24, 16, 2
EVERY_SHARING = [
    {"variant": "eq2"},
    {"variant": "eq2", "sampler": "progressive"},
    {"variant": "shared_row"},
    {"variant": "algorithm1", "tile_size": 2},
    {"variant": "algorithm1"},
]


def random_projections(panels: int, seed: int = 0) -> torch.Tensor:
    """Queries, keys and values, (3, P, N, C)."""
    return torch.randn(3, panels, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def attended_tokens(story: PanelGroup, step: int = 3, **settings) -> list[AttendedTokens]:
    config = ConsistentSelfAttentionConfig(**settings)
    return select_tokens(config, story, TOKENS, config.get_rate(1), step)


def make_plan(*stories: PanelGroup, parts: int = 1, **settings) -> AttentionPlan | None:
    attended = [attended_tokens(story, **settings) for story in stories]
    return batch_plan(attended, [story.panels for story in stories], parts, TOKENS)
