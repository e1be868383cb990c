import itertools
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.pipelines.panels import generate_panels, panel_seeds, shared_characters, starting_noise

STEPS = 5
PROMPTS = ["a cat on the beach", "a fox in the park", "the girl reads"]
ARGUMENTS = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 3.0}
SEEDS = [11, 22, 33]


@pytest.fixture
def pipe(tiny_model):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


def test_seeds_depend_on_the_storys_seed_and_the_panels_number_alone():
    names = [("A",), ("B",), (), ("A", "B")]
    assert panel_seeds(3, names)[:2] == panel_seeds(3, names[:2])
    assert len(set(panel_seeds(3, names) + panel_seeds(4, names))) == 8
    assert all(0 <= seed < 2**32 for seed in panel_seeds(2**32 - 1, names))


def test_shared_noise_gives_the_panels_of_a_character_one_seed():
    a, b, nobody, both, other = panel_seeds(3, [("A",), ("B",), (), ("A", "B"), ()], "shared")
    assert both == a
    assert len({a, b, nobody, other}) == 4
    own = panel_seeds(3, [("A",), ("B",), (), ("A", "B"), ()])
    assert [a, b, nobody, other] == [own[0], own[1], own[2], own[4]]


def test_noise_is_the_seeds_in_any_batch_and_order(pipe):
    whole, _ = starting_noise(pipe, SEEDS, 64, 96)
    alone, _ = starting_noise(pipe, [SEEDS[1]], 64, 96)
    assert whole.shape == (3, 4, 8, 12)
    assert torch.equal(whole[1:2], alone)
    assert torch.equal(starting_noise(pipe, SEEDS[::-1], 64, 96)[0], whole.flip(0))


def test_panels_with_a_character_in_common_may_share():
    shares = shared_characters([("A",), ("B",), ("A", "B"), ()])
    assert shares.tolist() == [
        [True, False, True, False], [False, True, True, False], [True, True, True, False], [False] * 4,
    ]  # fmt: skip


def test_without_sharing_it_is_the_pipeline_itself(pipe):
    off = ConsistentSelfAttentionConfig(variant="off")
    ours = generate_panels(pipe, {"prompt": PROMPTS, **ARGUMENTS}, SEEDS, off)
    theirs = pipe(PROMPTS, **ARGUMENTS, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]).images
    assert np.array_equal(pixels(ours), pixels(theirs))


def test_a_character_never_reads_the_panels_of_another(pipe):
    """Changing the second character's panel leaves the first one's panels as they are."""
    share = PanelGroup(3, may_share=shared_characters([("A",), ("B",), ("A",)]))
    for rate in (0.5, 1.0):
        images = [
            pixels(
                generate_panels(
                    pipe, {"prompt": [PROMPTS[0], other, PROMPTS[2]], **ARGUMENTS}, SEEDS,
                    ConsistentSelfAttentionConfig(rate=rate, blocks="all"), share,
                )
            )
            for other in ("a fox in the park", "a red hat")
        ]  # fmt: skip
        assert np.array_equal(images[0][[0, 2]], images[1][[0, 2]])
        assert not np.array_equal(images[0][1], images[1][1])


def test_sharing_changes_the_images(pipe):
    images = [
        pixels(generate_panels(pipe, {"prompt": PROMPTS, **ARGUMENTS}, SEEDS, ConsistentSelfAttentionConfig(rate=rate)))
        for rate in (0.0, 0.5)
    ]
    assert not np.array_equal(*images)


SCHEDULERS = (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, EulerAncestralDiscreteScheduler)


@pytest.mark.parametrize(
    ("scheduler", "variant"), [*itertools.product(SCHEDULERS, ["eq2"]), (DDIMScheduler, "official")]
)
def test_an_interrupted_run_ends_with_the_same_pixels(pipe, scheduler, variant):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    consistency = ConsistentSelfAttentionConfig(variant=variant, blocks="all")
    kept = []
    whole = generate_panels(
        pipe, {"prompt": PROMPTS, **ARGUMENTS}, SEEDS, consistency,
        callback_on_step_end=lambda pipe, step, timestep, tensors: kept.append((step + 1, tensors["latents"].clone())),
    )  # fmt: skip
    assert [step for step, _ in kept] == list(range(1, len(kept) + 1))
    calls = []
    counter = pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    for start in (kept[0], kept[2], kept[-1]):
        calls.clear()
        again = generate_panels(pipe, {"prompt": PROMPTS, **ARGUMENTS}, SEEDS, consistency, start=start)
        assert np.array_equal(pixels(again), pixels(whole))
        resumable = scheduler in (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler)
        assert len(calls) == len(kept) - (start[0] if resumable else 0)
    counter.remove()


def test_after_an_exception_the_unet_is_as_before(pipe):
    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("stop")

    start = (2, torch.zeros(3, 4, 8, 8))
    with pytest.raises(RuntimeError, match="stop"):
        generate_panels(
            pipe, {"prompt": PROMPTS, **ARGUMENTS}, SEEDS, ConsistentSelfAttentionConfig(), None, start, fail
        )
    assert "forward" not in vars(pipe.unet)


def test_stored_latents_of_another_size_are_refused(pipe):
    with pytest.raises(ValueError, match="stored latents"):
        generate_panels(
            pipe,
            {"prompt": PROMPTS, **ARGUMENTS},
            SEEDS,
            ConsistentSelfAttentionConfig(),
            None,
            (2, torch.zeros(3, 4, 8, 9)),
        )


def test_a_page_warns_of_characters_without_a_font():
    from storydiffusion.pipelines.story import StoryPipelineOutput
    from storydiffusion.story import story_from_dict

    panels = [
        {"prompt": "[NC] a beach", "caption": "Beach"},
        {"prompt": "[NC] a park", "caption": "\u0e15 park", "says": "\u0e44"},
    ]
    images = [Image.new("RGB", (64, 64))] * 2
    for shown, warned in ((panels[:1], False), (panels, True)):
        story = story_from_dict({"title": "Two", "characters": {}, "panels": shown}, "here")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            page = StoryPipelineOutput(images[: len(shown)], ["a"], [""], [1], story).page
        assert page.width > 64
        messages = [str(each.message) for each in found]
        assert messages == [
            message for message in messages if "caption 2: \u0e15; says 2: \u0e44; add a font" in message
        ]
        assert bool(messages) == warned
