"""Settings of consistent self-attention: reach, rates, active steps, and values that are refused."""

import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.errors import UserError
from tests.attention.story_plans import TOKENS, attended_tokens


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
def test_neighbor_window_and_anchor_panels_bound_the_sources(reach, sources):
    story = attended_tokens(PanelGroup(5), rate=1.0, **reach)
    assert [
        "".join(str(panel) for panel in (attended.rows // TOKENS).unique().tolist()) for attended in story
    ] == sources


def test_neighbor_window_and_may_share_both_apply():
    group = PanelGroup(4, may_share=torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]))
    story = attended_tokens(group, rate=1.0, neighbor_window=2)
    assert [(attended.rows // TOKENS).unique().tolist() for attended in story] == [[0, 2], [1], [0, 2, 3], [2, 3]]


def test_each_grid_has_its_rate():
    config = ConsistentSelfAttentionConfig(rate={2: 0.5, 4: 0.25})
    assert [config.get_rate(factor) for factor in (1, 2, 4)] == [0.0, 0.5, 0.25]


def test_active_steps_are_fractions_of_the_schedule():
    config = ConsistentSelfAttentionConfig(start=0.2, end=0.6)
    assert [step for step in range(10) if config.is_active(step, 10)] == [2, 3, 4, 5]
    assert [step for step in range(25) if config.is_active(step, 25)] == list(range(5, 15))


@pytest.mark.parametrize(
    ("settings", "named"),
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
def test_impossible_settingsare_named(settings, named):
    with pytest.raises(UserError, match=named):
        ConsistentSelfAttentionConfig(**settings)
