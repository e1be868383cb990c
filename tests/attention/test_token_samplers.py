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
from storydiffusion.attention.variants import select_tokens
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
    with pytest.raises(UserError, match=r"'last': choose one of uniform, progressive, .*, first"):
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


ALIKE = ("subject", "background", "subject+background")


@given(st.integers(2, 5), st.sampled_from([4, 24, 49]), st.floats(0, 1), st.booleans(), st.integers(0, 99))
@hypothesis_settings(max_examples=60, deadline=None)
def test_samplers_by_mask_sample_equal_numbers_from_the_tokens_that_they_name(panels, tokens, rate, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(panels, tokens, generator=generator) < torch.rand(panels, 1, generator=generator)
    story = PanelGroup(panels)
    found = {}
    for name in ALIKE:
        context = SamplingContext(
            ConsistentSelfAttentionConfig(),
            story.sources(),
            tokens,
            rate,
            0,
            torch.Generator().manual_seed(seed),
            shared,
            masks=masks,
        )
        found[name] = get_token_sampler(name)(context)
    inside = masks.sum(1)
    expected = torch.minimum(torch.minimum(inside, tokens - inside), torch.tensor(round(rate * tokens)))
    for sampled in found.values():
        assert torch.equal(sampled.sum(-1), story.sources() * expected)
    assert not (found["subject"] & ~masks).any()
    assert not (found["background"] & masks).any()


def test_a_sampler_by_mask_draws_alike_in_every_layer_and_guidance_part():
    masks = (torch.arange(TOKENS).view(1, 4, 6) < 9).float().repeat(3, 1, 1)
    story = PanelGroup(3, masks=masks)
    chosen, inside = ConsistentSelfAttentionConfig(rate=0.25, sampler="subject"), story.resized_masks(4, 6)
    drawn = [
        select_tokens(chosen, story, TOKENS, 0.25, 3, layer=layer, masks=inside)
        for layer in ("up_blocks.0", "up_blocks.1")
    ]
    assert all(torch.equal(one.rows, other.rows) for one, other in zip(*drawn, strict=True))
    for each in drawn[0]:
        others = each.rows[each.rows // TOKENS != each.panel]
        assert len(others) == 2 * round(0.25 * TOKENS)
        assert bool((others % TOKENS < 9).all())
