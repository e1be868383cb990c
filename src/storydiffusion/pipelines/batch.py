"""The images that are denoised together for a story: those of its saved characters, if any, then its panels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.errors import UserError
from storydiffusion.pipelines.calls import is_unet
from storydiffusion.pipelines.characters import choose_windows, place_characters
from storydiffusion.pipelines.conditioning import Conditions, select_panels, text_conditions
from storydiffusion.pipelines.panels import group_panels, view_panels
from storydiffusion.story import Story, character_words, panel_places, panel_prompts
from storydiffusion.story.character_file import CharacterFile
from storydiffusion.story.poses import has_poses


@dataclass(frozen=True)
class Batch:
    """Images to denoise together.

    Attributes:
        story: of only the generated panels, which are the last images.
        conditions, seeds: one row and one seed for each image.
        group, given_noise: see `generate_panels`.
    """

    story: Story
    conditions: Conditions
    seeds: list[int]
    group: PanelGroup
    given_noise: Tensor | None = None


def batch_panels(
    pipe: Any,
    story: Story,
    seeds: Sequence[int],
    csa: ConsistentSelfAttentionConfig,
    conditions: Conditions | None,
    panels: Sequence[int] | None,
) -> Batch:
    """Return the panels of a story without saved characters.

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
        select_story(story, panels),
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


def batch_with_characters(
    pipe: Any,
    story: Story,
    seeds: Sequence[int],
    files: Mapping[str, CharacterFile],
    panels: Sequence[int] | None,
) -> Batch:
    """Return the images of saved characters and the panels of a story; `seeds` and `panels` as in `batch_panels`.

    Raises:
        UserError: a diffusion transformer, poses, or prompts that are too long.
    """
    if not is_unet(pipe):
        raise UserError(f"saved characters are read by U-Nets, not by {type(pipe).__name__}: describe them in words")
    if has_poses(story):
        raise UserError("a story with saved characters takes no poses: leave out its poses or its character files")
    numbers = range(len(seeds)) if panels is None else panels
    shown = select_story(story, numbers)
    prompts, negative_prompts = get_prompts(shown)
    windows = choose_windows(pipe.tokenizer, files, [*prompts, *negative_prompts])
    cast = place_characters(files, [each.characters for each in shown.panels], view_panels(len(seeds), numbers))
    conditions = text_conditions(
        pipe,
        [*(each.prompt for each in cast.images), *prompts],
        [*(each.negative_prompt for each in cast.images), *negative_prompts],
        windows,
    )
    own = [seeds[panel] for panel in numbers]
    all_seeds = [*(each.seed for each in cast.images), *own]
    return Batch(
        shown, conditions, all_seeds, PanelGroup(len(all_seeds), may_share=cast.may_share, views=cast.views), cast.noise
    )


def select_story(story: Story, panels: Sequence[int]) -> Story:
    """Return the story with some of its panels."""
    return replace(story, panels=tuple(story.panels[panel] for panel in panels))


def get_prompts(story: Story) -> tuple[list[str], list[str]]:
    """Return the prompts and the negative prompts of a story's panels."""
    prompts = panel_prompts(story)
    return [each.prompt for each in prompts], [each.negative_prompt for each in prompts]
