"""The editions of StoryWorld, by number: what a recipe needs to draw, describe and label images of either.

The first has one character in every image. The second has zero to two characters, with moods and sides, and
clearer hats; see `scene`. Weights are trained on one edition, which their folder names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.storyworld import captions, clips, scene_captions, scene_clips
from storydiffusion.storyworld.readings import fit_reading, fit_scene_reading
from storydiffusion.storyworld.renderer import character_mask, render
from storydiffusion.storyworld.scene import (
    MOST_CHARACTERS,
    SCENE_LABELS,
    Scene,
    sample_scene,
    sample_scene_pair_member,
    sample_scene_relative,
    sample_scene_story_member,
    scene_labels,
    scene_positions,
)
from storydiffusion.storyworld.scene_renderer import figure_masks, render_scene
from storydiffusion.storyworld.truth import (
    ATTRIBUTES,
    LOOKS,
    Truth,
    sample_pair_member,
    sample_relative,
    sample_story_member,
    sample_truth,
    truth_labels,
    truth_positions,
)


@dataclass(frozen=True)
class Edition:
    """One edition. A truth is a `Truth` in the first and a `Scene` in the second; it is only passed on.

    labels: every attribute of an image and its values; `get_labels` returns an image's, None for what it lacks.
    most_characters: how many characters an image may show. max_tokens: of a caption, with start and end.
    sample(seed, index): truth number `index` of the world `seed`.
    sample_pair_member(seed, index): images 2k and 2k + 1 show the same characters in two activities.
    sample_story_member(seed, index, panels): `panels` images in a row show the same characters, the first all of them.
    sample_relative(seed, index, family): images of one family of `family` differ only in attire.
    get_positions(truth): x of each of `most_characters` characters, in pixels of 128 from the middle; NaN for none.
    render(truth, size): RGB uint8 (size, size, 3). character_masks(truth, size): what is visible of each character,
    bool (characters, size, size).
    caption(truth, seed): random words, parts of the attire left open; full_caption(truth): everything, in fixed words.
    draw_prompt(truth, seed): the same caption, with the labels that it states and the clause of each character.
    fit_reading(reading, stated): the attributes that a classifier read and that exist, characters as numbered there.
    draw_pair_prompts(first, second, seed): the same for two images of a pair side by side.
    draw_story_captions(truths, seed): captions of a story's panels, which leave parts of the attire to other panels.
    get_looks(truth): what makes each character the same in another image.
    sample_clip(seed, index), render_clip(clip, frames, size), caption_clip(clip, seed): the same for clips, whose
    `to_dict` is their record, which read_clip(record) reads; sample_clip also takes a motion. follow_clip(clip, frames,
    size): the truth of every frame; render_plates(clip, frames, size): the frames without characters;
    truth_at(clip, t): the image that describes the frame at t in [0, 1].
    """

    number: int
    labels: Mapping[str, tuple[str, ...]]
    most_characters: int
    max_tokens: int
    sample: Callable[[int, int], Any]
    sample_pair_member: Callable[[int, int], Any]
    sample_story_member: Callable[[int, int, int], Any]
    sample_relative: Callable[[int, int, int], Any]
    get_labels: Callable[[Any], dict[str, str | None]]
    get_positions: Callable[[Any], tuple[float, ...]]
    render: Callable[[Any, int], np.ndarray]
    character_masks: Callable[[Any, int], np.ndarray]
    caption: Callable[..., str]
    draw_prompt: Callable[[Any, int], captions.Prompt]
    fit_reading: Callable[[Mapping[str, str], Mapping[str, str]], dict[str, str]]
    full_caption: Callable[[Any], str]
    draw_pair_prompts: Callable[[Any, Any, int], tuple[captions.Prompt, captions.Prompt]]
    draw_story_captions: Callable[[Sequence[Any], int], list[str]]
    get_looks: Callable[[Any], tuple[tuple[str | None, ...], ...]]
    vocabulary: Callable[[], tuple[str, ...]]
    sample_clip: Callable[..., Any]
    render_clip: Callable[[Any, int, int], np.ndarray]
    render_plates: Callable[[Any, int, int], np.ndarray]
    caption_clip: Callable[[Any, int], str]
    read_clip: Callable[[Mapping[str, Any]], Any]
    follow_clip: Callable[[Any, int, int], tuple[Any, ...]]
    truth_at: Callable[[Any, float], Any]


def _mask_only_character(truth: Truth, size: int) -> np.ndarray:
    return character_mask(truth, size)[None]


def _get_looks_of_truth(truth: Truth) -> tuple[tuple[str | None, ...], ...]:
    return (tuple(getattr(truth, name) for name in LOOKS),)


def _get_looks_of_scene(scene: Scene) -> tuple[tuple[str | None, ...], ...]:
    return tuple(tuple(getattr(figure, name) for name in LOOKS) for figure in scene.characters)


EDITIONS: Mapping[int, Edition] = {
    1: Edition(
        number=1,
        labels=ATTRIBUTES,
        most_characters=1,
        max_tokens=48,
        sample=sample_truth,
        sample_pair_member=sample_pair_member,
        sample_story_member=sample_story_member,
        sample_relative=sample_relative,
        get_labels=truth_labels,
        get_positions=truth_positions,
        render=render,
        character_masks=_mask_only_character,
        caption=captions.caption,
        draw_prompt=captions.draw_prompt,
        fit_reading=fit_reading,
        full_caption=captions.full_caption,
        draw_pair_prompts=captions.draw_pair_prompts,
        draw_story_captions=captions.draw_story_captions,
        get_looks=_get_looks_of_truth,
        vocabulary=captions.vocabulary,
        sample_clip=clips.sample_clip,
        render_clip=clips.render_clip,
        render_plates=clips.render_plates,
        caption_clip=clips.caption_clip,
        read_clip=clips.ClipTruth.from_dict,
        follow_clip=clips.follow,
        truth_at=clips.truth_at,
    ),
    2: Edition(
        number=2,
        labels=SCENE_LABELS,
        most_characters=MOST_CHARACTERS,
        max_tokens=77,
        sample=sample_scene,
        sample_pair_member=sample_scene_pair_member,
        sample_story_member=sample_scene_story_member,
        sample_relative=sample_scene_relative,
        get_labels=scene_labels,
        get_positions=scene_positions,
        render=render_scene,
        character_masks=figure_masks,
        caption=scene_captions.caption_scene,
        draw_prompt=scene_captions.draw_scene_prompt,
        fit_reading=fit_scene_reading,
        full_caption=scene_captions.full_caption_of_scene,
        draw_pair_prompts=scene_captions.draw_scene_pair_prompts,
        draw_story_captions=scene_captions.draw_scene_story_captions,
        get_looks=_get_looks_of_scene,
        vocabulary=scene_captions.scene_vocabulary,
        sample_clip=scene_clips.sample_scene_clip,
        render_clip=scene_clips.render_scene_clip,
        render_plates=scene_clips.render_scene_plates,
        caption_clip=scene_clips.caption_scene_clip,
        read_clip=scene_clips.SceneClip.from_dict,
        follow_clip=scene_clips.follow_scene_clip,
        truth_at=scene_clips.scene_at,
    ),
}


def get_edition(number: int) -> Edition:
    """Return the edition of that number; raise UserError if there is none."""
    if number not in EDITIONS:
        raise UserError(f"edition={number} is unknown: choose one of {', '.join(map(str, EDITIONS))}")
    return EDITIONS[number]
