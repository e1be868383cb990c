"""Views: images of a batch that are some panels of a story, or further takes of one."""

import pytest
import torch

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup, View
from storydiffusion.attention.variants import get_read_panels, select_tokens
from storydiffusion.errors import UserError
from storydiffusion.pipelines.panels import view_panels
from tests.attention.story_plans import EVERY_SHARING, TOKENS

PANELS = 5


def select(group: PanelGroup, config: ConsistentSelfAttentionConfig) -> dict[int, list[list[int]]]:
    """Rows of each image, by window."""
    rows: dict[int, list[list[int]]] = {}
    for attended in select_tokens(config, group, TOKENS, 0.5, step=2):
        rows.setdefault(attended.panel, []).append(attended.rows.tolist())
    return rows


@pytest.mark.parametrize("settings", EVERY_SHARING)
def test_views_of_all_panels_are_the_story(settings):
    config = ConsistentSelfAttentionConfig(**settings)
    views = view_panels(PANELS, range(PANELS))
    assert select(PanelGroup(PANELS, views=views), config) == select(PanelGroup(PANELS), config)


@pytest.mark.parametrize("settings", EVERY_SHARING)
def test_a_take_reads_what_its_panel_reads_and_itself_in_its_place(settings):
    config = ConsistentSelfAttentionConfig(**settings)
    story = view_panels(PANELS, range(PANELS))
    takes = [View(2, (0, 1, PANELS + take, 3, 4)) for take in range(3)]
    found, whole = select(PanelGroup(PANELS + 3, views=[*story, *takes]), config), select(PanelGroup(PANELS), config)
    assert {panel: found[panel] for panel in whole} == whole
    for take in range(PANELS, PANELS + 3):
        expected = [[row + (take - 2) * TOKENS if row // TOKENS == 2 else row for row in rows] for rows in whole[2]]
        assert found[take] == expected


def test_some_panels_draw_as_in_the_whole_story():
    config = ConsistentSelfAttentionConfig(anchor_panels=1)
    whole, some = select(PanelGroup(PANELS), config), select(PanelGroup(2, views=view_panels(PANELS, [0, 3])), config)
    assert some[0] == whole[0]
    assert some[1] == [[row if row < TOKENS else row - 2 * TOKENS for row in rows] for rows in whole[3]]


def test_a_panel_that_is_read_and_not_in_the_batch_is_named():
    with pytest.raises(UserError, match="panel 1 reads panel 2, which is not in the batch"):
        select(PanelGroup(2, views=view_panels(PANELS, [0, 3])), ConsistentSelfAttentionConfig())


def test_sources_are_those_of_the_views_and_of_characters_in_common():
    config = ConsistentSelfAttentionConfig(anchor_panels=2)
    may_share = torch.tensor([[True, False, True], [False, True, True], [True, True, True]])
    group = PanelGroup(3, may_share=may_share, views=view_panels(PANELS, [0, 1, 4]))
    assert get_read_panels(config, [group]).tolist() == [[False] * 3, [False] * 3, [True, True, False]]


def test_one_view_an_image():
    with pytest.raises(UserError, match="views has 1 entries for 2 images"):
        PanelGroup(2, views=[View(0, (0, 1))])


@pytest.mark.parametrize("settings", EVERY_SHARING)
def test_a_view_draws_by_its_own_seed(settings):
    config = ConsistentSelfAttentionConfig(**settings)
    views = [view._replace(seed=7) for view in view_panels(PANELS, range(PANELS))]
    whole = select(PanelGroup(PANELS), ConsistentSelfAttentionConfig(**settings, seed=7))
    assert select(PanelGroup(PANELS, views=views), config) == whole


def test_references_are_read_whatever_is_in_reach():
    config = ConsistentSelfAttentionConfig(neighbor_window=0, anchor_panels=1)
    places = (0, 1, 2, 3, 4)
    views = [*view_panels(2, [0, 1]), *(View(panel, places, references=2) for panel in (2, 3, 4))]
    read = get_read_panels(config, [PanelGroup(PANELS, views=views)])
    assert read.int().tolist() == [
        [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0],
    ]  # fmt: skip
