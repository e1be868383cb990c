"""Equations 2 and 3 and Algorithm 1 against dense and literal references; exact counts; what a draw depends on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.attention.consistent_self_attention import (
    CPU_GATHER,
    ConsistentSelfAttentionConfig,
    PanelGroup,
    apportion,
    attend,
    batch_plan,
    bypasses,
    draw_tokens,
    multi_head_attention,
    progressive_counts,
    random_stream,
    select_tokens,
    uniform_counts,
)
from storydiffusion.errors import UserError

TOKENS, CHANNELS, HEADS = 24, 16, 2
EVERY_SHARING = [
    {"variant": "eq2"},
    {"variant": "eq2", "sampler": "progressive"},
    {"variant": "shared_row"},
    {"variant": "algorithm1", "tile_size": 2},
    {"variant": "algorithm1"},
]


def projections(panels: int, seed: int = 0):
    return torch.randn(3, panels, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def reads_of(story: PanelGroup, step: int = 3, **settings_):
    config = ConsistentSelfAttentionConfig(**settings_)
    return select_tokens(config, story, TOKENS, config.rate_of(1), step)


def plan_of(*stories: PanelGroup, parts: int = 1, **settings_):
    reads = [reads_of(story, **settings_) for story in stories]
    return batch_plan(reads, [story.panels for story in stories], parts, TOKENS)


def dense(query, key, value, allowed):
    """Attention of P panels as one sequence of P·N tokens; allowed (P, P, N) says which tokens a panel reads."""
    q, k, v = (x.flatten(0, 1).unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (query, key, value))
    mask = allowed.flatten(1).repeat_interleave(TOKENS, dim=0)
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1).view_as(query)


@pytest.mark.parametrize("may_share", [None, [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]])
@pytest.mark.parametrize("settings_", EVERY_SHARING[:3], ids=str)
@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_agrees_with_a_dense_mask(settings_, rate, may_share):
    story = PanelGroup(4, may_share=may_share)
    allowed = torch.zeros(4, 4 * TOKENS, dtype=torch.bool)
    for read in reads_of(story, rate=rate, **settings_):
        allowed[read.reader, read.rows] = True
    q, k, v = projections(4)
    ours = attend(q, k, v, plan_of(story, rate=rate, **settings_), HEADS)
    torch.testing.assert_close(ours, dense(q, k, v, allowed.view(4, 4, TOKENS)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["eq2", "shared_row"])
def test_reads_own_tokens_and_an_exact_sample_of_each_other_panel(variant):
    for read in reads_of(PanelGroup(5), rate=0.3, variant=variant):
        assert read.rows.unique().numel() == read.rows.numel()
        counts = (read.rows // TOKENS).bincount(minlength=5).tolist()
        assert counts == [TOKENS if panel == read.reader else round(0.3 * TOKENS) for panel in range(5)]


def test_eq2_draws_for_each_reader_and_shared_row_for_all():
    def read_of_panel_0(variant):
        rows = [read.rows[read.rows < TOKENS].tolist() for read in reads_of(PanelGroup(4), variant=variant)]
        return rows[1:]

    one, two, three = read_of_panel_0("eq2")
    assert one != two != three != one
    one, two, three = read_of_panel_0("shared_row")
    assert one == two == three


@pytest.mark.parametrize("settings_", EVERY_SHARING, ids=str)
def test_nothing_to_share_is_plain_attention(settings_):
    assert plan_of(PanelGroup(4), rate=0.0, **settings_) is None
    assert plan_of(PanelGroup(1), rate=0.5, **settings_) is None
    assert plan_of(PanelGroup(3, may_share=torch.zeros(3, 3)), rate=0.5, **settings_) is None


@pytest.mark.parametrize("settings_", EVERY_SHARING, ids=str)
def test_a_panel_that_shares_nothing_keeps_plain_attention(settings_):
    may_share = torch.ones(4, 4, dtype=torch.bool)
    may_share[2, :] = may_share[:, 2] = False
    q, k, v = projections(4)
    plan = plan_of(PanelGroup(4, may_share=may_share), **settings_)
    alone = multi_head_attention(q, k, v, HEADS)
    ours = attend(q, k, v, plan, HEADS)
    torch.testing.assert_close(ours[2], alone[2])
    assert not torch.allclose(ours[1], alone[1], atol=1e-3)
    k[2], v[2] = 100.0, 100.0  # and no other panel reads it
    torch.testing.assert_close(attend(q, k, v, plan, HEADS)[[0, 1, 3]], ours[[0, 1, 3]])


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_full_sharing_is_permutation_equivariant(order):
    q, k, v = projections(5)
    for variant in ("eq2", "shared_row"):
        plan = plan_of(PanelGroup(5), rate=1.0, variant=variant)
        assert plan is not None
        shuffled = attend(q[order], k[order], v[order], plan, HEADS)
        torch.testing.assert_close(shuffled, attend(q, k, v, plan, HEADS)[order], rtol=0, atol=1e-5)


def algorithm_1(features, to_q, to_k, to_v, sample_of_tile, tile_size):
    """The paper's Algorithm 1 line by line; its printed loop bound, N - tile_size + 1, counts panels."""
    panels, tokens, channels = features.shape
    output, count = torch.zeros_like(features), torch.zeros(panels, 1, 1)
    for t in range(0, panels - tile_size + 1):
        tile = features[t : t + tile_size]
        repeated = tile.reshape(1, tile_size * tokens, channels).repeat(tile_size, 1, 1)
        sampled = repeated[:, sample_of_tile[t]]
        token_kv = torch.cat([sampled, tile], dim=1)
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (tile @ to_q, token_kv @ to_k, token_kv @ to_v)
        )
        output[t : t + tile_size] += F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        count[t : t + tile_size] += 1
    return output / count


@pytest.mark.parametrize(("panels", "tile_size"), [(5, 2), (5, 3), (4, 4), (2, 2)])
def test_algorithm1_agrees_with_the_pseudo_code(panels, tile_size):
    features = projections(panels)[0]
    weights = torch.randn(3, CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(1)) / 4
    settings_ = {"variant": "algorithm1", "tile_size": tile_size, "rate": 0.4}
    count = round(0.4 * tile_size * TOKENS)
    samples = {}
    for read in reads_of(PanelGroup(panels), **settings_):
        sample, own = read.rows[:count] - read.tile * TOKENS, read.rows[count:]
        assert own.tolist() == list(range(read.reader * TOKENS, (read.reader + 1) * TOKENS))
        assert sample.unique().numel() == count
        assert 0 <= sample.min() <= sample.max() < tile_size * TOKENS
        assert samples.setdefault(read.tile, sample).tolist() == sample.tolist()
    ours = attend(*(features @ w for w in weights), plan_of(PanelGroup(panels), **settings_), HEADS)
    torch.testing.assert_close(ours, algorithm_1(features, *weights, samples, tile_size), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings_", EVERY_SHARING, ids=str)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_story_is_the_same_in_any_batch(settings_, parts):
    stories = [PanelGroup(3, key=7), PanelGroup(1, key=8), PanelGroup(4, key=9)]
    q, k, v = projections(parts * 8)
    together = attend(q, k, v, plan_of(*stories, parts=parts, **settings_), HEADS)
    for story, first in ((stories[0], 0), (stories[2], 4)):
        for part in range(parts):
            panels = slice(8 * part + first, 8 * part + first + story.panels)
            alone = attend(q[panels], k[panels], v[panels], plan_of(story, **settings_), HEADS)
            torch.testing.assert_close(together[panels], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together[3], multi_head_attention(q, k, v, HEADS)[3], rtol=0, atol=1e-6)


def test_the_draw_depends_on_seed_key_step_and_grid():
    def rows(seed=0, key=0, step=0):
        return reads_of(PanelGroup(3, key=key), step=step, seed=seed)[0].rows.tolist()

    assert rows() == rows()
    assert len({tuple(rows()), tuple(rows(seed=1)), tuple(rows(key=1)), tuple(rows(step=1))}) == 4
    draws = [random_stream(0, 0, 0, tokens).initial_seed() for tokens in (64, 256)]
    assert draws[0] != draws[1]


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_are_exact(panels, tokens, rate, seed):
    counts = uniform_counts(PanelGroup(panels).sources(), tokens, rate)
    drawn = draw_tokens(counts, tokens, bool(seed % 2), torch.Generator().manual_seed(seed))
    assert torch.equal(drawn.sum(-1), counts + tokens * torch.eye(panels, dtype=torch.long))
    assert counts.sum(1).eq((panels - 1) * round(rate * tokens)).all()


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_progressive_spends_the_uniform_budget_on_earlier_panels(panels, tokens, rate, decay):
    sources = PanelGroup(panels).sources()
    counts = progressive_counts(sources, tokens, rate, decay)
    budget = (panels - 1) * round(rate * tokens)
    assert counts.sum(1).tolist() == [min(budget, reader * tokens) for reader in range(panels)]
    assert counts.triu().sum() == 0
    assert counts.max() <= tokens
    for reader in range(1, panels):  # nearer panels never give less, but for the rounding
        assert (counts[reader, :reader].diff() >= -1).all()


@given(st.integers(0, 300), st.lists(st.floats(1e-3, 1e3), max_size=8), st.integers(1, 40))
@settings(deadline=None)
def test_apportion_is_proportional_up_to_the_cap(budget, weights, cap):
    parts = apportion(budget, weights, cap)
    assert sum(parts) == min(budget, cap * len(weights))
    assert all(0 <= part <= cap for part in parts)
    free = [part / weight for part, weight in zip(parts, weights, strict=True) if part < cap - 1]
    slack = [1 / weight for part, weight in zip(parts, weights, strict=True) if part < cap - 1]
    assert not free or max(a - s for a, s in zip(free, slack, strict=True)) <= min(
        a + s for a, s in zip(free, slack, strict=True)
    )


def test_progressive_counts_by_hand():
    counts = progressive_counts(PanelGroup(4).sources(), 100, 0.5, 0.5)
    assert counts.tolist() == [[0, 0, 0, 0], [100, 0, 0, 0], [50, 100, 0, 0], [21, 43, 86, 0]]


def test_masked_panels_draw_from_their_own_character_only():
    names = [{"ann"}, {"bob"}, {"ann", "bob"}, {"ann"}]
    may_share = torch.tensor([[bool(a & b) for b in names] for a in names])
    for settings_ in EVERY_SHARING:
        for read in reads_of(PanelGroup(4, may_share=may_share), **settings_):
            assert all(names[read.reader] & names[source] for source in (read.rows // TOKENS).tolist())


@pytest.mark.parametrize(
    ("reach", "sources"),
    [
        ({"neighbor_window": 1}, ["01", "012", "123", "234", "34"]),
        ({"anchor_panels": 2}, ["01", "01", "012", "013", "014"]),
        ({"anchor_panels": 2, "neighbor_window": 1}, ["01", "012", "0123", "01234", "0134"]),
        ({"anchor_panels": 0}, ["0", "1", "2", "3", "4"]),
        ({"neighbor_window": 0}, ["0", "1", "2", "3", "4"]),
        ({"neighbor_window": 4}, ["01234"] * 5),
        ({"anchor_panels": 5}, ["01234"] * 5),
        ({"neighbor_window": 1, "sampler": "progressive"}, ["0", "01", "12", "23", "34"]),
    ],
)
def test_window_and_bank_bound_whom_a_panel_reads(reach, sources):
    reads = reads_of(PanelGroup(5), rate=1.0, **reach)
    assert ["".join(str(panel) for panel in (read.rows // TOKENS).unique().tolist()) for read in reads] == sources


def test_reach_goes_together_with_who_shares():
    group = PanelGroup(4, may_share=torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]))
    reads = reads_of(group, rate=1.0, neighbor_window=2)
    assert [(read.rows // TOKENS).unique().tolist() for read in reads] == [[0, 2], [1], [0, 2, 3], [2, 3]]


def test_many_panels_are_gathered_in_turns():
    panels, tokens, channels = 3, 512, 2048
    assert tokens * channels * 2 < CPU_GATHER < tokens * channels * 2 * panels
    q, k, v = torch.randn(3, panels, tokens, channels)
    story = PanelGroup(panels)
    plan = batch_plan([select_tokens(ConsistentSelfAttentionConfig(), story, tokens, 0.5, 0)], [panels], 1, tokens)
    (group,) = plan.groups
    expected = multi_head_attention(q, *(x.flatten(0, 1)[group.rows] for x in (k, v)), heads=8)
    torch.testing.assert_close(attend(q, k, v, plan, 8), expected)


def test_rate_of_a_grid():
    config = ConsistentSelfAttentionConfig(rate={2: 0.5, 4: 0.25})
    assert [config.rate_of(factor) for factor in (1, 2, 4)] == [0.0, 0.5, 0.25]


def test_active_steps_are_fractions_of_the_schedule():
    config = ConsistentSelfAttentionConfig(start=0.2, end=0.6)
    assert [step for step in range(10) if config.is_active(step, 10)] == [2, 3, 4, 5]
    assert [step for step in range(25) if config.is_active(step, 25)] == list(range(5, 15))


def test_official_bypass_follows_the_schedule():
    config = ConsistentSelfAttentionConfig(variant="official")

    def bypassed(step):
        return sum(bypasses(config, step, 50, 0, f"layer {layer}") for layer in range(1000)) / 1000

    assert [bypassed(step) for step in range(5)] == [1.0] * 5
    assert 0.25 < bypassed(5) < 0.35
    assert 0.25 < bypassed(19) < 0.35
    assert 0.07 < bypassed(20) < 0.13
    assert not bypasses(ConsistentSelfAttentionConfig(variant="shared_row"), 0, 50, 0, "layer")


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"rate": 1.5}, "1.5"),
        ({"rate": -0.1}, "-0.1"),
        ({"rate": float("nan")}, "nan"),
        ({"rate": "0.5"}, "'0.5'"),
        ({"rate": {3: 0.5}}, "3"),
        ({"rate": {2: 7}}, "7"),
        ({"variant": "eq3"}, "eq3"),
        ({"sampler": "random"}, "random"),
        ({"blocks": "mid"}, "mid"),
        ({"start": 0.6, "end": 0.4}, "0.6"),
        ({"end": 1.1}, "1.1"),
        ({"decay": 0.0}, "decay is 0"),
        ({"seed": 0.5}, "0.5"),
        ({"sampler": "progressive", "variant": "shared_row"}, "shared_row"),
        ({"neighbor_window": -1}, "window is -1"),
        ({"anchor_panels": 0.5}, "anchor_panels is 0.5"),
        ({"tile_size": 2}, "eq2"),
        ({"tile_size": 1, "variant": "algorithm1"}, "1"),
    ],
)
def test_impossible_settings_are_named(settings_, named):
    with pytest.raises(UserError, match=named):
        ConsistentSelfAttentionConfig(**settings_)


@pytest.mark.parametrize(("panels", "may_share"), [(0, None), (2.0, None), (2, [[True]])])
def test_impossible_stories_are_refused(panels, may_share):
    with pytest.raises(UserError):
        PanelGroup(panels, may_share=may_share)
