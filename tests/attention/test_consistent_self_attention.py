"""Equation 3 against a dense mask; stories side by side in a batch; panels that share nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import (
    CPU_GATHER,
    PanelGroup,
    attend,
    batch_plan,
    mean_attention_maps,
    multi_head_attention,
)
from storydiffusion.attention.variants import select_tokens
from storydiffusion.errors import UserError
from tests.attention.story_plans import EVERY_SHARING, HEADS, TOKENS, attended_tokens, make_plan, random_projections


def dense(query, key, value, allowed):
    """Attention of P panels as one sequence of P·N tokens; `allowed` (P, P, N) marks the attended tokens."""
    q, k, v = (x.flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (query, key, value))
    mask = allowed.flatten(1).repeat_interleave(TOKENS, dim=0)
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1).view_as(query)


@pytest.mark.parametrize("may_share", [None, [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]])
@pytest.mark.parametrize("settings", EVERY_SHARING[:3], ids=str)
@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_attend_agrees_with_a_dense_mask(settings, rate, may_share):
    story = PanelGroup(4, may_share=may_share)
    allowed = torch.zeros(4, 4 * TOKENS, dtype=torch.bool)
    for attended in attended_tokens(story, rate=rate, **settings):
        allowed[attended.panel, attended.rows] = True
    q, k, v = random_projections(4)
    ours = attend(q, k, v, make_plan(story, rate=rate, **settings), HEADS)
    torch.testing.assert_close(ours, dense(q, k, v, allowed.view(4, 4, TOKENS)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", EVERY_SHARING, ids=str)
def test_nothing_to_share_is_plain_attention(settings):
    assert make_plan(PanelGroup(4), rate=0.0, **settings) is None
    assert make_plan(PanelGroup(1), rate=0.5, **settings) is None
    assert make_plan(PanelGroup(3, may_share=torch.zeros(3, 3)), rate=0.5, **settings) is None


@pytest.mark.parametrize("settings", EVERY_SHARING, ids=str)
def test_a_panel_that_shares_nothing_keeps_plain_attention(settings):
    may_share = torch.ones(4, 4, dtype=torch.bool)
    may_share[2, :] = may_share[:, 2] = False
    q, k, v = random_projections(4)
    plan = make_plan(PanelGroup(4, may_share=may_share), **settings)
    alone = multi_head_attention(q, k, v, HEADS)
    ours = attend(q, k, v, plan, HEADS)
    torch.testing.assert_close(ours[2], alone[2])
    assert not torch.allclose(ours[1], alone[1], atol=1e-3)
    k[2], v[2] = 100.0, 100.0  # and no other panel attends to it
    torch.testing.assert_close(attend(q, k, v, plan, HEADS)[[0, 1, 3]], ours[[0, 1, 3]])


@given(st.permutations(range(5)))
@hypothesis_settings(max_examples=20, deadline=None)
def test_full_sharing_is_permutation_equivariant(order):
    q, k, v = random_projections(5)
    for variant in ("eq2", "shared_row"):
        plan = make_plan(PanelGroup(5), rate=1.0, variant=variant)
        assert plan is not None
        shuffled = attend(q[order], k[order], v[order], plan, HEADS)
        torch.testing.assert_close(shuffled, attend(q, k, v, plan, HEADS)[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", EVERY_SHARING, ids=str)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_story_is_the_same_in_any_batch(settings, parts):
    stories = [PanelGroup(3, key=7), PanelGroup(1, key=8), PanelGroup(4, key=9)]
    q, k, v = random_projections(parts * 8)
    together = attend(q, k, v, make_plan(*stories, parts=parts, **settings), HEADS)
    for story, first in ((stories[0], 0), (stories[2], 4)):
        for part in range(parts):
            panels = slice(8 * part + first, 8 * part + first + story.panels)
            alone = attend(q[panels], k[panels], v[panels], make_plan(story, **settings), HEADS)
            torch.testing.assert_close(together[panels], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together[3], multi_head_attention(q, k, v, HEADS)[3], rtol=0, atol=1e-6)


def test_many_panels_are_gathered_in_turns():
    panels, tokens, channels = 3, 512, 2048
    assert tokens * channels * 2 < CPU_GATHER < tokens * channels * 2 * panels
    q, k, v = torch.randn(3, panels, tokens, channels)
    story = PanelGroup(panels)
    plan = batch_plan([select_tokens(ConsistentSelfAttentionConfig(), story, tokens, 0.5, 0)], [panels], 1, tokens)
    (group,) = plan.groups
    expected = multi_head_attention(q, *(x.flatten(0, 1)[group.rows] for x in (k, v)), heads=8)
    torch.testing.assert_close(attend(q, k, v, plan, 8), expected)


@pytest.mark.parametrize(
    ("panels", "more"),
    [(0, {}), (2.0, {}), (2, {"may_share": [[True]]}), (2, {"masks": torch.ones(3, 4, 4)})],
    ids=["none", "float", "may_share", "masks"],
)
def test_invalid_stories_are_refused(panels, more):
    with pytest.raises(UserError):
        PanelGroup(panels, **more)


def test_masks_are_resized_to_a_grid():
    masks = torch.zeros(2, 4, 6)
    masks[0, :2, :2] = 1  # one token of a 2 × 3 grid
    masks[1, 2, 4:] = 1  # half of one
    resized = PanelGroup(2, masks=masks).resized_masks(2, 3)
    assert resized.tolist() == [[True, *[False] * 5], [False] * 6]
    with pytest.raises(UserError, match="give PanelGroup"):
        PanelGroup(2).resized_masks(2, 3)


def test_attention_maps_are_the_softmax_of_plain_attention():
    q, k, v = random_projections(3)
    maps = mean_attention_maps(q, k, 1)
    torch.testing.assert_close(maps @ v, multi_head_attention(q, k, v, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(mean_attention_maps(q, k, HEADS).sum(-1), torch.ones(3, TOKENS))
