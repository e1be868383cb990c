"""The variants against literal references; what a draw depends on; the registry."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, attend, random_stream
from storydiffusion.attention.variants import Variant, get_variant, register_variant, select_tokens
from storydiffusion.errors import UserError
from tests.attention.story_plans import (
    CHANNELS,
    EVERY_SHARING,
    HEADS,
    TOKENS,
    attended_tokens,
    make_plan,
    random_projections,
)

DRAWS = json.loads((Path(__file__).parent / "draws.json").read_text())


@pytest.mark.parametrize("variant", ["eq2", "shared_row"])
def test_a_panel_attends_to_its_own_tokens_and_an_exact_sample_of_each_other_panel(variant):
    for attended in attended_tokens(PanelGroup(5), rate=0.3, variant=variant):
        assert attended.rows.unique().numel() == attended.rows.numel()
        counts = (attended.rows // TOKENS).bincount(minlength=5).tolist()
        assert counts == [TOKENS if panel == attended.panel else round(0.3 * TOKENS) for panel in range(5)]


def test_eq2_draws_for_each_panel_and_shared_row_once_for_all():
    def sampled_of_panel_0(variant):
        story = attended_tokens(PanelGroup(4), variant=variant)
        return [attended.rows[attended.rows < TOKENS].tolist() for attended in story[1:]]

    one, two, three = sampled_of_panel_0("eq2")
    assert one != two != three != one
    one, two, three = sampled_of_panel_0("shared_row")
    assert one == two == three


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
    features = random_projections(panels)[0]
    weights = torch.randn(3, CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(1)) / 4
    settings = {"variant": "algorithm1", "tile_size": tile_size, "rate": 0.4}
    count = round(0.4 * tile_size * TOKENS)
    samples = {}
    for attended in attended_tokens(PanelGroup(panels), **settings):
        sample, own = attended.rows[:count] - attended.tile * TOKENS, attended.rows[count:]
        assert own.tolist() == list(range(attended.panel * TOKENS, (attended.panel + 1) * TOKENS))
        assert sample.unique().numel() == count
        assert 0 <= sample.min() <= sample.max() < tile_size * TOKENS
        assert samples.setdefault(attended.tile, sample).tolist() == sample.tolist()
    ours = attend(*(features @ w for w in weights), make_plan(PanelGroup(panels), **settings), HEADS)
    torch.testing.assert_close(ours, algorithm_1(features, *weights, samples, tile_size), rtol=0, atol=1e-5)


def test_the_draw_depends_on_seed_key_step_and_grid():
    def rows(seed=0, key=0, step=0):
        return attended_tokens(PanelGroup(3, key=key), step=step, seed=seed)[0].rows.tolist()

    assert rows() == rows()
    assert len({tuple(rows()), tuple(rows(seed=1)), tuple(rows(key=1)), tuple(rows(step=1))}) == 4
    draws = [random_stream(0, 0, 0, tokens).initial_seed() for tokens in (64, 256)]
    assert draws[0] != draws[1]


def test_panels_draw_from_panels_of_the_same_character_only():
    names = [{"ann"}, {"bob"}, {"ann", "bob"}, {"ann"}]
    may_share = torch.tensor([[bool(a & b) for b in names] for a in names])
    for settings in EVERY_SHARING:
        for attended in attended_tokens(PanelGroup(4, may_share=may_share), **settings):
            assert all(names[attended.panel] & names[source] for source in (attended.rows // TOKENS).tolist())


def test_official_bypass_follows_the_schedule():
    config, bypasses = ConsistentSelfAttentionConfig(variant="official"), get_variant("official").bypasses

    def bypassed(step):
        return sum(bypasses(config, step, 50, 0, f"layer {layer}") for layer in range(1000)) / 1000

    assert [bypassed(step) for step in range(5)] == [1.0] * 5
    assert 0.25 < bypassed(5) < 0.35
    assert 0.25 < bypassed(19) < 0.35
    assert 0.07 < bypassed(20) < 0.13
    assert not get_variant("shared_row").bypasses(config, 0, 50, 0, "layer")


def digest_of_draws(settings: dict) -> str:
    """SHA-256 of all tokens selected for three stories at three grids, rates, steps and seeds."""
    chain = torch.ones(5, 5, dtype=torch.bool).tril(1).triu(-2)
    stories = PanelGroup(1), PanelGroup(4, key=7), PanelGroup(5, may_share=chain)
    sha256 = hashlib.sha256()
    for story, (tokens, rate, step, seed) in itertools.product(
        stories, ((16, 0.5, 0, 0), (24, 0.3, 3, 1), (9, 1.0, 7, 0))
    ):
        config = ConsistentSelfAttentionConfig(**settings, seed=seed)
        for selected in select_tokens(config, story, tokens, rate, step):
            sha256.update(repr((selected.panel, selected.tile, selected.rows.tolist())).encode())
    return sha256.hexdigest()


@pytest.mark.parametrize("recorded", DRAWS["draws"], ids=lambda recorded: str(recorded["settings"]))
def test_draws_are_those_recorded(recorded):
    """Recorded before variants and samplers became registries: stories made earlier stay reproducible."""
    assert digest_of_draws(recorded["settings"]) == recorded["sha256"]


def test_official_bypasses_are_those_recorded():
    config, bypasses = ConsistentSelfAttentionConfig(variant="official", seed=3), get_variant("official").bypasses
    drawn = [bypasses(config, step, 50, story, name) for step in range(50) for story in (0, 7) for name in "abc"]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest() == DRAWS["bypasses of official"]


@pytest.fixture
def previous_panel(registries):
    """A variant of a user's own: a panel attends to the one before it."""

    @register_variant("previous_panel")
    class PreviousPanel(Variant):
        def select(self, context, sampler):
            previous = torch.eye(context.panels).roll(1, 0).tril().bool()
            return super().select(replace(context, sources=context.sources & previous), sampler)

    return "previous_panel"


def test_a_registered_variant_is_chosen_by_its_name(previous_panel):
    story = attended_tokens(PanelGroup(4), variant=previous_panel)
    sources = [sorted(set((attended.rows // TOKENS).tolist())) for attended in story]
    assert sources == [[0], [0, 1], [1, 2], [2, 3]]


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones(previous_panel):
    known = "eq2, shared_row, algorithm1, official, off, previous_panel"
    with pytest.raises(UserError, match=f"'eq3': choose one of {known}"):
        get_variant("eq3")


def test_a_name_is_registered_once(registries):
    with pytest.raises(UserError, match="already registered"):
        register_variant("eq2")


def test_off_attends_to_own_tokens_only():
    assert make_plan(PanelGroup(3), variant="off") is None
