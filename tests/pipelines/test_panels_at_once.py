"""Stories in chunks of panels, resumed; large images decoded in tiles."""

import numpy as np
import pytest
import torch

from storydiffusion import ConsistentSelfAttentionConfig, StoryPipeline
from storydiffusion.errors import UserError
from storydiffusion.loaders.text_to_image import LARGEST_TILE
from storydiffusion.story.script import Character, Panel, Story

PLACES = ("park", "beach", "city", "snow", "room")
STORY = Story(
    "story",
    (Character("Mia", "a girl"),),
    tuple(Panel(f"[Mia] is standing in the {place}", "", ("Mia",)) for place in PLACES),
)
CHUNKS = ConsistentSelfAttentionConfig(anchor_panels=1, panels_at_once=2)


@pytest.fixture(scope="module")
def pipe():
    return StoryPipeline.from_pretrained("package://miniature", device="cpu", scheduler="ddim")


def test_an_interrupted_story_in_chunks_resumes_bit_for_bit(pipe, capsys):
    steps = []

    def keep(pipe, step, timestep, tensors):
        steps.append(tensors["latents"].clone())

    settings = {"csa": CHUNKS, "num_inference_steps": 3, "output_type": "np"}
    whole = pipe(STORY, callback_on_step_end=keep, **settings).images
    assert "denoising 2 of 5 panels at once, in about 0.0" in capsys.readouterr().err
    resumed = pipe(STORY, start=(1, steps[0]), **settings).images
    assert (whole == resumed).all()
    joint = pipe(STORY, **{**settings, "csa": ConsistentSelfAttentionConfig(anchor_panels=1)}).images
    assert abs(whole - joint).max() < 1e-3


def test_panels_that_cannot_be_divided_are_refused_before_the_run(pipe):
    with pytest.raises(UserError, match="5 panels attend to each other"):
        pipe(STORY, csa=ConsistentSelfAttentionConfig(panels_at_once=2))


def test_large_images_are_decoded_in_tiles_and_others_whole(pipe):
    vae, tiles = pipe.pipe.vae, []
    hook = vae.decoder.register_forward_hook(lambda module, args, images: tiles.append(max(images.shape)))
    factor = pipe.pipe.vae_scale_factor
    with torch.no_grad():
        for height, width in ((64, LARGEST_TILE), (64, LARGEST_TILE + 256)):
            assert vae.decode(torch.randn(1, 16, height // factor, width // factor)).sample.shape[-1] == width
    hook.remove()
    assert tiles[0] == LARGEST_TILE
    assert len(tiles) > 2
    assert max(tiles) <= LARGEST_TILE


def test_images_are_converted_one_by_one_to_what_the_pipeline_gives(pipe):
    sizes = []
    whole = pipe(STORY, csa=CHUNKS, num_inference_steps=2, output_type="np").images
    processor = pipe.pipe.image_processor
    convert = processor.postprocess
    processor.postprocess = lambda image, **settings: (sizes.append(image.shape), convert(image, **settings))[1]
    try:
        images = pipe(STORY, csa=CHUNKS, num_inference_steps=2).images
    finally:
        del processor.postprocess
    assert all(np.array_equal(np.asarray(a), (b * 255).round()) for a, b in zip(images, whole, strict=True))
    assert sizes == [*[(1, 3, 128, 128)] * 5, (5, 3, 1, 1)]
    assert "decode" not in vars(pipe.pipe.vae)


def test_a_pipeline_that_checks_its_images_checks_them(pipe):
    pipe.pipe.safety_checker = True
    pipe.pipe.run_safety_checker = lambda images, device, dtype: (torch.zeros_like(images), [True] * len(images))
    try:
        images = pipe(STORY, csa=CHUNKS, num_inference_steps=1).images
    finally:
        pipe.pipe.safety_checker = None
        del pipe.pipe.run_safety_checker
    assert all(np.asarray(image).max() == 0 and image.size == (128, 128) for image in images)
