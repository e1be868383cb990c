"""The images of a story that are denoised together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.errors import UserError
from storydiffusion.pipelines.conditioning import Conditions, select_panels, text_conditions
from storydiffusion.pipelines.panels import group_panels, view_panels
from storydiffusion.story import Story, character_words, panel_places, panel_prompts


@dataclass(frozen=True)
class Batch:
    """Images to denoise together.

    Attributes:
        story: of these images alone.
        conditions, seeds: one row and one seed for each.
        group: the images as a story; see `generate_panels`.
    """

    story: Story
    conditions: Conditions
    seeds: list[int]
    group: PanelGroup


def batch_panels(
    pipe: Any,
    story: Story,
    seeds: Sequence[int],
    csa: ConsistentSelfAttentionConfig,
    conditions: Conditions | None,
    panels: Sequence[int] | None,
) -> Batch:
    """Return the panels of a story.

    Args:
        seeds: of all panels.
        conditions: of all panels; None: the story's prompts.
        panels: numbers from 0 of the panels to generate; None: all.

    Raises:
        UserError: regions with conditions, or regions of places in a story without places.
    """
    if conditions is not None and csa.uses_regions:
        raise UserError("regions are read from the story's own prompts: leave out conditions, or set regions=off")
    conditions = conditions or text_conditions(pipe, *get_prompts(story))
    group = _group_story(pipe, story, csa, panels)
    if panels is None:
        return Batch(story, conditions, list(seeds), group)
    return Batch(
        replace(story, panels=tuple(story.panels[panel] for panel in panels)),
        select_panels(conditions, len(seeds), panels),
        [seeds[panel] for panel in panels],
        group,
    )


def _group_story(
    pipe: Any, story: Story, csa: ConsistentSelfAttentionConfig, panels: Sequence[int] | None
) -> PanelGroup:
    """Return the story's panels, or those of `panels` as they see the story."""
    (prompts, _), words, places = get_prompts(story), character_words(story), panel_places(story)
    if csa.regions == "characters+places" and not any(places):
        raise UserError(f"regions={csa.regions}, but no panel has a place: add place: WORDS, or set regions=characters")
    described = [{name: words[name] for name in panel.characters} for panel in story.panels]
    if panels is None:
        return group_panels(pipe, csa, prompts, described, places)
    return group_panels(
        pipe,
        csa,
        [prompts[panel] for panel in panels],
        [described[panel] for panel in panels],
        [places[panel] for panel in panels],
        views=view_panels(len(prompts), panels),
    )


def get_prompts(story: Story) -> tuple[list[str], list[str]]:
    """Return the prompts and the negative prompts of a story's panels."""
    prompts = panel_prompts(story)
    return [each.prompt for each in prompts], [each.negative_prompt for each in prompts]
