"""Stories whose characters share by region: their tokens, some panels, an interrupted run, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from storydiffusion import ConsistentSelfAttentionConfig, StoryPipeline
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import encode_prompts, find_character_tokens, padded_windows
from storydiffusion.pipelines.conditioning import Conditions
from storydiffusion.pipelines.panels import group_panels
from storydiffusion.story import Character, Panel, Story

STORY = Story(
    "story",
    (Character("Mia", "a girl in a red shirt"), Character("Tom", "a cat")),
    (
        Panel("[Mia] is standing in the park", "", ("Mia",), place="park"),
        Panel("[Tom] and [Mia] are waving on the beach", "", ("Tom", "Mia")),
        Panel("[NC] the park", "", ()),
        Panel("[Tom] is standing in the park", "", ("Tom",)),
    ),
)
BY_REGION = ConsistentSelfAttentionConfig(regions="characters", blocks="all")
WITH_PLACES = ConsistentSelfAttentionConfig(regions="characters+places", blocks="all")
SETTINGS = {"num_inference_steps": 4, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe():
    return StoryPipeline.from_pretrained("package://miniature", device="cpu", scheduler="ddim")


@pytest.mark.parametrize("filler", ["", "a cat waving in the park, " * 30])
def test_tokens_of_characters_are_those_of_the_embeddings(pipe, filler):
    words = {"Mia": "a girl in a red shirt", "Tom": "a cat"}
    prompt = f"{filler.replace('cat', 'fox')}a girl in a red shirt and a cat"
    tokenizer = pipe.pipe.tokenizer
    found = find_character_tokens(pipe.pipe, prompt, words)
    length = encode_prompts(pipe.pipe, [prompt], [""]).prompt_embeds.shape[1]
    windows = padded_windows(tokenizer, prompt, length // tokenizer.model_max_length)
    spelled = tokenizer.convert_ids_to_tokens([token for window in windows for token in window])
    assert (length > tokenizer.model_max_length) == bool(filler)
    for name, tokens in found.items():
        assert "".join(spelled[token] for token in tokens).replace("</w>", "") == words[name].replace(" ", "")


def test_each_way_of_sharing_makes_other_images(pipe):
    made = [pipe(STORY, csa=csa, **SETTINGS).images for csa in (None, BY_REGION, WITH_PLACES)]
    for one, other in ((0, 1), (1, 2)):
        assert np.abs(made[one] - made[other]).max() > 1e-2


@pytest.mark.parametrize("csa", [BY_REGION, WITH_PLACES])
def test_some_panels_with_all_that_they_read_are_as_in_the_whole_story(pipe, csa):
    whole = pipe(STORY, csa=csa, **SETTINGS).images
    chosen = [0, 1, 3] if csa is BY_REGION else [0, 1, 2, 3]
    some = pipe(STORY, csa=csa, panels=chosen, **SETTINGS).images
    assert np.abs(some - whole[chosen]).max() < 1e-3


def test_an_interrupted_story_repeats_all_steps_with_the_same_pixels(pipe):
    kept = []
    whole = pipe(
        STORY, csa=BY_REGION, **SETTINGS, callback_on_step_end=lambda *given: kept.append(given[3]["latents"].clone())
    ).images
    assert np.array_equal(pipe(STORY, csa=BY_REGION, start=(2, kept[1]), **SETTINGS).images, whole)


def test_what_regions_cannot_read_is_named(pipe):
    with pytest.raises(UserError, match="leave out conditions, or set regions=off"):
        pipe(STORY, csa=BY_REGION, conditions=Conditions({}), **SETTINGS)
    nowhere = replace(STORY, panels=tuple(replace(panel, place="") for panel in STORY.panels))
    with pytest.raises(UserError, match=r"regions=characters\+places, but no panel has a place"):
        pipe(nowhere, csa=WITH_PLACES, **SETTINGS)
    with pytest.raises(UserError, match="the prompt 'a cat' does not have the words 'a dog' of Tom"):
        group_panels(pipe.pipe, BY_REGION, ["a cat"], [{"Tom": "a dog"}])
