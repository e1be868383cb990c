"""Exact counts of every sampler; samplers of a user's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import (
    PanelGroup,
    apportion,
    draw_tokens,
    progressive_counts,
    uniform_counts,
)
from storydiffusion.attention.token_samplers import SamplingContext, get_token_sampler, register_token_sampler
from storydiffusion.errors import UserError
from tests.attention.story_plans import TOKENS, attended_tokens


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.integers(0, 99))
@hypothesis_settings(max_examples=60, deadline=None)
def test_counts_are_exact(panels, tokens, rate, seed):
    counts = uniform_counts(PanelGroup(panels).sources(), tokens, rate)
    drawn = draw_tokens(counts, tokens, bool(seed % 2), torch.Generator().manual_seed(seed))
    assert torch.equal(drawn.sum(-1), counts)
    assert counts.sum(1).eq((panels - 1) * round(rate * tokens)).all()


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 1), st.floats(0.01, 1))
@hypothesis_settings(max_examples=100, deadline=None)
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
@hypothesis_settings(deadline=None)
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


@pytest.fixture
def first_tokens(registries):
    """A sampler of a user's own: the first tokens of every source."""

    @register_token_sampler("first")
    def first(context: SamplingContext) -> torch.Tensor:
        chosen = torch.arange(context.tokens) < round(context.rate * context.tokens)
        return context.sources[..., None] & chosen

    return "first"


@pytest.mark.parametrize("variant", ["eq2", "shared_row", "official"])
def test_a_registered_sampler_is_chosen_by_its_name(first_tokens, variant):
    for attended in attended_tokens(PanelGroup(3), rate=0.25, sampler=first_tokens, variant=variant):
        sampled = [row for row in attended.rows.tolist() if row // TOKENS != attended.panel]
        assert sampled == [j * TOKENS + n for j in range(3) if j != attended.panel for n in range(TOKENS // 4)]


@pytest.mark.parametrize("variant", ["algorithm1", "off"])
def test_variants_that_draw_by_themselves_refuse_other_samplers(first_tokens, variant):
    with pytest.raises(UserError, match=f"sampler first does not go with variant {variant}: .*eq2.*or sampler uniform"):
        ConsistentSelfAttentionConfig(sampler=first_tokens, variant=variant)


def test_an_unknown_sampler_is_an_error_that_lists_the_known_ones(first_tokens):
    with pytest.raises(UserError, match="'last': choose one of uniform, progressive, first"):
        get_token_sampler("last")


def test_names_and_needs_are_checked_at_registration(registries):
    with pytest.raises(UserError, match="already registered"):
        register_token_sampler("uniform")
    with pytest.raises(UserError, match="needs 'text': choose among features, attention_maps, masks"):
        register_token_sampler("mine", needs=["text"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda context: torch.zeros(3, 3, TOKENS), "of torch.float32: return booleans"),
        (lambda context: context.sources, "return booleans"),
        (lambda context: torch.ones(3, 3, TOKENS, dtype=torch.bool), "outside context.sources"),
        (
            lambda context: draw_tokens(context.sources * 3, TOKENS, False, context.generator),
            "different tokens of one source",
        ),
    ],
    ids=["dtype", "shape", "own tokens", "not shared"],
)
def test_a_result_that_no_variant_could_use_is_refused(registries, result, message):
    register_token_sampler("mine")(result)
    with pytest.raises(UserError, match=message):
        attended_tokens(PanelGroup(3), sampler="mine", variant="shared_row")
