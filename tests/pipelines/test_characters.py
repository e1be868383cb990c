"""Saved characters: their images have the features that were recorded, and a story's panels read them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError
from storydiffusion.pipelines.characters import place_characters
from storydiffusion.pipelines.panels import view_panels
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.story import Character, Panel, Story
from storydiffusion.story.character_file import read_character

SETTINGS = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 3.0}
CHUNKED = ConsistentSelfAttentionConfig(sampler="progressive", panels_at_once=1)
"""calls of one image each, so that equal inputs give equal bits in batches of any size"""


def write_story(*prompts: str, **characters: str) -> Story:
    """Return a story whose characters are described, or have a file."""
    cast = tuple(
        Character(name, read_character(text).character.description, text)
        if text.endswith(".safetensors")
        else Character(name, text)
        for name, text in characters.items()
    )
    panels = tuple(Panel(prompt, "", tuple(name for name in characters if f"[{name}]" in prompt)) for prompt in prompts)
    return Story("A story", cast, panels)


FIRST = write_story("[Pip] runs", "[Bo] in the park", "[Pip] on the beach", Pip="a red cat", Bo="a blue fox")


@pytest.fixture
def pipe(tiny_model) -> StoryPipeline:
    return StoryPipeline.from_pretrained(tiny_model, device="cpu", scheduler="ddim", guidance_start=0.0)


@pytest.fixture
def pip(pipe, tmp_path) -> Path:
    return pipe(FIRST, seed=5, **SETTINGS).save_character("Pip", tmp_path / "pip")


def record(pipe: StoryPipeline) -> list[Tensor]:
    """Return a list that the keys of every self-attention layer and call are added to."""
    kept: list[Tensor] = []
    for name, module in pipe.pipe.unet.named_modules():
        if name.endswith("attn1.to_k"):
            module.register_forward_hook(lambda layer, inputs, output: kept.append(output.clone()))
    return kept


def by_image(calls: Sequence[Tensor], layers: int, images: int) -> list[list[Tensor]]:
    """Return the keys of each image of calls of one image: step by step, layer by layer."""
    rows: list[list[Tensor]] = [[] for _ in range(images)]
    for number in range(0, len(calls), layers):
        rows[number // layers % images] += calls[number : number + layers]
    return rows


def test_the_images_of_a_character_have_the_recorded_features_bit_for_bit(pipe, tmp_path):
    kept = record(pipe)
    layers = sum(name.endswith("attn1") for name, _ in pipe.pipe.unet.named_modules())
    output = pipe(FIRST, seed=5, csa=CHUNKED, **SETTINGS)
    recorded = by_image(kept, layers, 3)
    file = output.save_character("Pip", tmp_path / "pip.safetensors")
    assert len(read_character(file).story.images) == 2  # Bo's panel reaches none of Pip's
    kept.clear()
    pipe(write_story("[Mo] in the park", "[Mo] runs", Mo=str(file)), seed=9, csa=CHUNKED, **SETTINGS)
    again = by_image(kept, layers, 4)
    for image, panel in ((0, 0), (1, 2)):
        assert len(again[image]) == len(recorded[panel]) > 0
        assert all(torch.equal(a, b) for a, b in zip(again[image], recorded[panel], strict=True))
    assert not torch.equal(again[2][-1], recorded[0][-1])


@pytest.mark.parametrize("csa", [{}, {"variant": "shared_row"}, {"blocks": "all"}, {"anchor_panels": 1}])
def test_recomputed_images_are_those_of_the_story(pipe, tmp_path, csa):
    """Generated in a batch of another size, within one level of 255."""
    sharing = ConsistentSelfAttentionConfig(**csa)
    output = pipe(FIRST, seed=5, csa=sharing, **SETTINGS)
    file = output.save_character("Pip", tmp_path / "pip")
    decoded = []
    pipe.pipe.vae.decoder.register_forward_hook(lambda decoder, inputs, images: decoded.append(images))
    made = pipe(write_story("[Pip] in the park", Pip=str(file)), seed=9, csa=sharing, **SETTINGS)
    assert len(made.images) == 1
    images = (torch.cat(decoded)[:2].permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1).numpy() * 255
    for again, first in zip(images, (output.images[0], output.images[2]), strict=True):
        assert np.abs(again - np.asarray(first)).max() <= 1


def test_images_are_encoded_in_as_many_windows_as_those_of_their_story(pipe, tmp_path):
    """Bo's long prompt, which no file of Pip holds, pads Pip's prompt; the other story's short prompts are padded."""
    kept = record(pipe)
    layers = sum(name.endswith("attn1") for name, _ in pipe.pipe.unet.named_modules())
    story = write_story("[Pip] runs", "[Bo] " + "on the beach " * 5, Pip="a red cat", Bo="a blue fox")
    output = pipe(story, seed=5, csa=CHUNKED, **SETTINGS)
    recorded = by_image(kept, layers, 2)[0]
    file = output.save_character("Pip", tmp_path / "pip")
    assert len(read_character(file).story.images) == 1
    kept.clear()
    pipe(write_story("[Mo] runs", Mo=str(file)), seed=9, csa=CHUNKED, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(by_image(kept, layers, 2)[0], recorded, strict=True))


def test_the_panels_of_a_character_read_its_images_and_the_others_do_not(pipe, pip):
    story = write_story("[Pip] in the park", "[Bo] runs", "in the park", Pip=str(pip), Bo="a blue fox")
    alone = replace(story, characters=(Character("Pip", "a red cat"), story.characters[1]))
    with_file, without = (np.stack(pipe(each, seed=9, **SETTINGS).images) for each in (story, alone))
    differs = (with_file.astype(int) - without).reshape(3, -1)
    assert np.abs(differs[0]).max() > 1
    assert np.abs(differs[1:]).max() <= 1


def test_the_order_of_characters_and_their_names_change_nothing(pipe, pip, tmp_path):
    other = write_story("[Bo] runs", "[Bo] in the park", Bo="a blue fox")
    bo = pipe(other, seed=6, **SETTINGS).save_character("Bo", tmp_path / "bo")
    prompts = ("[A] runs", "[B] in the park", "[A] and [B] on the beach")
    images = [
        np.stack(pipe(write_story(*prompts, **cast), seed=9, **SETTINGS).images)
        for cast in ({"A": str(pip), "B": str(bo)}, {"B": str(bo), "A": str(pip)})
    ]
    assert np.array_equal(*images)
    swapped = [prompt.translate(str.maketrans("AB", "BA")) for prompt in prompts]
    renamed = pipe(write_story(*swapped, A=str(bo), B=str(pip)), seed=9, **SETTINGS).images
    assert np.array_equal(images[0], np.stack(renamed))


def test_two_characters_of_one_story_are_computed_once(pipe, tmp_path):
    both = write_story("[Pip] runs", "[Pip] and [Bo] in the park", Pip="a red cat", Bo="a blue fox")
    output = pipe(both, seed=5, **SETTINGS)
    files = {name: read_character(output.save_character(name, tmp_path / name)) for name in ("Pip", "Bo")}
    cast = place_characters(files, [("Pip",), ("Bo",)], view_panels(2, range(2)))
    assert len(cast.images) == 2
    assert cast.may_share.tolist()[2:] == [[True, True, True, False], [False, True, False, True]]
    assert [view.references for view in cast.views] == [0, 0, 2, 2]


@pytest.mark.parametrize("csa", [{"neighbor_window": 0}, {"anchor_panels": 0}, {"neighbor_window": 1}])
def test_saved_images_are_within_reach_of_every_panel(pipe, tmp_path, csa):
    from storydiffusion.attention.consistent_self_attention import PanelGroup
    from storydiffusion.attention.variants import get_read_panels

    config = ConsistentSelfAttentionConfig(neighbor_window=1)
    files = {"Pip": read_character(pipe(FIRST, seed=5, csa=config, **SETTINGS).save_character("Pip", tmp_path / "p"))}
    cast = place_characters(files, [("Pip",)] * 4, view_panels(4, range(4)))
    images = len(cast.images)
    group = PanelGroup(len(cast.views), may_share=cast.may_share, views=cast.views)
    read = get_read_panels(ConsistentSelfAttentionConfig(**csa), [group])[images:]
    assert read[:, list(files["Pip"].character.reads)].all()
    near = csa.get("neighbor_window") == 1
    assert read[:, images:].tolist() == [[near and abs(i - j) == 1 for j in range(4)] for i in range(4)]


def test_some_panels_with_saved_characters_are_as_in_the_whole_story(pipe, tmp_path):
    csa = ConsistentSelfAttentionConfig(neighbor_window=0)
    with pytest.raises(UserError, match="has no character 'Pop': did you mean"):
        pipe(FIRST, seed=5, csa=csa, **SETTINGS).save_character("Pop", tmp_path / "pip")
    file = pipe(FIRST, seed=5, csa=csa, **SETTINGS).save_character("Pip", tmp_path / "pip")
    story = write_story("[Pip] runs", "[Pip] on the beach", Pip=str(file))
    whole = pipe(story, seed=9, csa=csa, **SETTINGS).images
    some = pipe(story, seed=9, csa=csa, panels=[1], **SETTINGS).images
    assert len(some) == 1
    assert np.abs(np.asarray(whole[1]).astype(int) - some[0]).max() <= 1


def test_saved_characters_restart_from_the_latents_of_an_interrupted_call(pipe, pip):
    story, kept = write_story("[Pip] runs", "[Pip] on the beach", Pip=str(pip)), []
    whole = pipe(
        story, seed=9, **SETTINGS,
        callback_on_step_end=lambda pipe, step, timestep, tensors: kept.append((step + 1, tensors["latents"].clone())),
    ).images  # fmt: skip
    again = pipe(story, seed=9, start=kept[0], **SETTINGS).images
    assert np.array_equal(np.stack(whole), np.stack(again))


def test_a_story_without_recipe_saves_no_character(pipe, pip, tmp_path):
    outputs = [
        pipe(write_story("[Pip] runs", Pip=str(pip)), **SETTINGS),
        pipe(FIRST, panels=[0, 1, 2], **SETTINGS),
        StoryPipeline(pipe.pipe, pipe.defaults)(FIRST, **SETTINGS),
    ]
    for output in outputs:
        with pytest.raises(UserError, match="a character file holds no poses"):
            output.save_character("Pip", tmp_path / "x")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("csa", "sentence"),
    [
        ({"variant": "off"}, "the panels share no features"),
        ({"rate": 0.0}, "the panels share no features"),
        ({"variant": "official"}, "csa.variant=official bypasses layers"),
        ({"variant": "algorithm1", "tile_size": 2}, "with csa.tile_size=2 panels read their neighbors only"),
    ],
)
def test_settings_without_a_character_to_save_are_refused(pipe, tmp_path, csa, sentence):
    output = pipe(FIRST, csa=ConsistentSelfAttentionConfig(**csa), **SETTINGS)
    with pytest.raises(UserError, match=sentence):
        output.save_character("Pip", tmp_path / "pip")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_of_unknown_weights_and_longer_prompts_are_refused(pipe, pip):
    story = write_story("[Pip] runs", Pip=str(pip))
    with pytest.raises(UserError, match="this pipeline's weights are unknown"):
        StoryPipeline(pipe.pipe, pipe.defaults)(story, **SETTINGS)
    long = write_story(f"[Pip] runs {'on the beach ' * 6}", Pip=str(pip))
    with pytest.raises(UserError, match=f"{pip} was saved from prompts of at most 14 tokens"):
        pipe(long, **SETTINGS)
