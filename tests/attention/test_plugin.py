"""Consistent self-attention in real diffusers pipelines at tiny size: parity, batches, steps, restoring, bad input."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor

from storydiffusion.attention.backbones import get_backbone
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.token_samplers import SamplingContext, register_token_sampler
from storydiffusion.errors import UserError

WORDS = ["fox", "cat", "red fox", "a cat", "fox reads", "cat runs", "big fox", "no cat"]


def arguments(panels=range(4), guidance=5.0, steps=3, **more) -> dict:
    """One prompt and one noise for each panel, the same at any place in a batch."""
    noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return {
        "prompt": [WORDS[panel] for panel in panels],
        "latents": noise[list(panels)],
        "guidance_scale": guidance,
        "num_inference_steps": steps,
        "output_type": "latent",
        **more,
    }


def generate(pipe, config=None, stories=None, callback=True, **changes):
    with consistent_self_attention(pipe, config, stories) as story:
        more = {"callback_on_step_end": story.on_step_end} if callback else {}
        return pipe(**arguments(**changes), **more).images


def processors(pipe):
    return dict(pipe.unet.attn_processors)


def test_the_public_use(sd_pipe):
    pipe, prompts = sd_pipe, WORDS[:4]
    with consistent_self_attention(pipe, ConsistentSelfAttentionConfig(rate=0.5, variant="eq2")) as story:
        images = pipe(prompts, callback_on_step_end=story.on_step_end, num_inference_steps=2).images
    assert len(images) == 4
    assert images[0].size == (32, 32)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_pipeline_generates_two_stories_at_once_as_alone(any_pipe, guidance):
    pipe, extra = any_pipe
    config = ConsistentSelfAttentionConfig(blocks="all")

    def generate_stories(panels, stories):
        return generate(pipe, config, stories, panels=panels, guidance=guidance, **extra(panels, guidance > 1))

    before = processors(pipe)
    together = generate_stories(range(8), [PanelGroup(4, key=1), PanelGroup(4, key=2)])
    torch.testing.assert_close(together[:4], generate_stories(range(4), [PanelGroup(4, key=1)]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        together[4:], generate_stories(range(4, 8), [PanelGroup(4, key=2)]), rtol=1e-4, atol=1e-4
    )
    plain = pipe(**arguments(range(8), guidance), **extra(range(8), guidance > 1)).images
    assert (together - plain).abs().amax((1, 2, 3)).min() > 1e-3
    assert processors(pipe) == before


@pytest.mark.parametrize("any_pipe", ["controlnet", "ip_adapter"], indirect=True)
def test_the_control_and_the_image_prompt_still_have_an_effect(any_pipe):
    pipe, extra = any_pipe
    ours, other = (generate(pipe, **extra(range(4), True, variant)) for variant in (0, 1))
    assert (ours - other).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(
    ("config", "panels"),
    [
        (ConsistentSelfAttentionConfig(rate=0.0), range(4)),
        (ConsistentSelfAttentionConfig(rate={1: 0.0, 2: 0.0}), range(4)),
        (ConsistentSelfAttentionConfig(variant="off"), range(4)),
        (ConsistentSelfAttentionConfig(start=0.0, end=0.1), range(4)),
        (ConsistentSelfAttentionConfig(), range(1)),
        (ConsistentSelfAttentionConfig(variant="algorithm1"), range(1)),
    ],
    ids=["rate 0", "rates 0", "off", "no step active", "one panel", "one panel of algorithm1"],
)
def test_without_sharing_equals_the_plain_pipeline_bit_for_bit(sd_pipe, config, panels, guidance):
    plain = sd_pipe(**arguments(panels, guidance)).images
    assert torch.equal(generate(sd_pipe, config, panels=panels, guidance=guidance), plain)


def test_stories_of_one_panel_each_equal_plain(sd_pipe):
    plain = sd_pipe(**arguments()).images
    assert torch.equal(generate(sd_pipe, stories=[1, 1, 1, 1]), plain)


def test_guidance_parts_never_mix(sd_pipe):
    """The U-Net's unconditional half does not depend on the prompts of the other half."""
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    text = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(2))
    other = torch.cat([text[:2], -text[2:]])
    sd_pipe._guidance_scale = 5.0
    with consistent_self_attention(sd_pipe), torch.no_grad():
        one = sd_pipe.unet(noise, 1, text).sample
    with consistent_self_attention(sd_pipe), torch.no_grad():
        two = sd_pipe.unet(noise, 1, other).sample
    assert torch.equal(one[:2], two[:2])
    assert not torch.allclose(one[2:], two[2:], atol=1e-3)


def test_a_panel_outside_the_mask_equals_plain(sd_pipe):
    may_share = torch.ones(4, 4, dtype=torch.bool)
    may_share[1, :] = may_share[:, 1] = False
    plain = sd_pipe(**arguments()).images
    shared = generate(sd_pipe, stories=[PanelGroup(4, may_share=may_share)])
    torch.testing.assert_close(shared[1], plain[1], rtol=1e-4, atol=1e-4)
    assert (shared - plain)[[0, 2, 3]].abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        ConsistentSelfAttentionConfig(variant="shared_row"),
        ConsistentSelfAttentionConfig(variant="algorithm1", tile_size=2),
        ConsistentSelfAttentionConfig(variant="official"),
        ConsistentSelfAttentionConfig(sampler="progressive"),
        ConsistentSelfAttentionConfig(rate={2: 0.5}),
        ConsistentSelfAttentionConfig(start=0.3, end=0.7),
        ConsistentSelfAttentionConfig(blocks="all"),
        ConsistentSelfAttentionConfig(seed=1),
    ],
    ids=lambda config: f"{config.variant} {config.sampler} {config.rate} {config.blocks} {config.start} {config.seed}",
)
def test_every_setting_shares_and_repeats(sd_pipe, config):
    once = generate(sd_pipe, config)
    assert torch.equal(once, generate(sd_pipe, config))
    assert torch.isfinite(once).all()
    assert not torch.allclose(once, generate(sd_pipe), atol=1e-4)
    assert not torch.allclose(once, sd_pipe(**arguments()).images, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("steps", [1, 4])
def test_any_scheduler_and_number_of_steps(sd_pipe, scheduler, steps):
    sd_pipe.scheduler = scheduler.from_config(sd_pipe.scheduler.config)
    seen = []
    with consistent_self_attention(sd_pipe, ConsistentSelfAttentionConfig(variant="official")) as story:
        hook = sd_pipe.unet.register_forward_hook(lambda *_: seen.append(story.step))
        sd_pipe(**arguments(steps=steps), callback_on_step_end=story.on_step_end)
    hook.remove()
    assert seen == list(range(sd_pipe.num_timesteps))


def test_a_step_may_call_the_unet_more_than_once(sd_pipe):
    sd_pipe.scheduler = HeunDiscreteScheduler.from_config(sd_pipe.scheduler.config)
    seen = []
    noise, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    with (
        consistent_self_attention(sd_pipe, ConsistentSelfAttentionConfig(start=0.0, end=0.5)) as story,
        torch.no_grad(),
    ):
        sd_pipe.scheduler.set_timesteps(2)
        for step in range(2):
            for _ in range(2):
                sd_pipe.unet(noise, 1, text)
                seen.append(story.step)
            story.on_step_end(sd_pipe, step, 1, {})
    assert seen == [0, 0, 1, 1]


def test_without_the_callback_every_call_is_a_step(sd_pipe):
    assert torch.equal(generate(sd_pipe, callback=False), generate(sd_pipe))


def test_a_new_run_starts_again_even_after_an_interruption(sd_pipe):
    first = generate(sd_pipe)
    for callback in (True, False):
        with consistent_self_attention(sd_pipe) as story:
            more = {"callback_on_step_end": story.on_step_end} if callback else {}

            def stop(pipe, step, timestep, tensors):
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                sd_pipe(**arguments(), callback_on_step_end=stop)
            for _ in range(2):
                assert torch.equal(sd_pipe(**arguments(), **more).images, first)


@pytest.mark.parametrize("config", [{"start": 0.5}, {"end": 0.5}, {"variant": "official"}], ids=str)
def test_a_schedule_without_the_callback_is_refused(sd_pipe, config):
    before = processors(sd_pipe)
    with pytest.raises(UserError, match="callback_on_step_end"):
        generate(sd_pipe, ConsistentSelfAttentionConfig(**config), callback=False)
    assert processors(sd_pipe) == before


class CustomProcessor(torch.nn.Module, AttnProcessor2_0):
    """A processor with weights of its own, as adapters have."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    __call__ = AttnProcessor2_0.__call__


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("make", [AttnProcessor, lambda: SlicedAttnProcessor(1), CustomProcessor])
def test_processors_are_restored_exactly(sd_pipe, make, fail):
    sd_pipe.unet.set_attn_processor({name: make() for name in sd_pipe.unet.attn_processors})
    before, weights = processors(sd_pipe), list(sd_pipe.unet.state_dict())
    hooks = len(sd_pipe.unet._forward_pre_hooks)
    try:
        with consistent_self_attention(sd_pipe):
            changed = [name for name, processor in processors(sd_pipe).items() if processor is not before[name]]
            assert changed
            assert all(name.startswith("up_blocks") and name.endswith("attn1.processor") for name in changed)
            if fail:
                raise KeyError
    except KeyError:
        assert fail
    assert all(processor is before[name] for name, processor in processors(sd_pipe).items())
    assert list(sd_pipe.unet.state_dict()) == weights
    assert len(sd_pipe.unet._forward_pre_hooks) == hooks


def test_attention_slicing_gives_the_same_images(sd_pipe):
    plain = generate(sd_pipe)
    sd_pipe.enable_attention_slicing()
    torch.testing.assert_close(generate(sd_pipe), plain, rtol=1e-4, atol=1e-4)


def test_stories_that_do_not_fit_the_batch_are_refused(sd_pipe):
    with pytest.raises(UserError, match="batch of 8 for 3 panels"):
        generate(sd_pipe, stories=[3])
    with pytest.raises(UserError, match="batch of 8 for 8 panels"):  # guidance would otherwise pass for a story
        generate(sd_pipe, stories=[4, 4])
    with pytest.raises(UserError, match="stories is empty"):
        generate(sd_pipe, stories=[])
    with pytest.raises(UserError, match="grid 4"):
        generate(sd_pipe, ConsistentSelfAttentionConfig(rate={2: 0.5, 4: 0.5}))
    with pytest.raises(UserError, match="no denoiser"), consistent_self_attention(DDIMScheduler()):
        pass


def test_an_unknown_pipeline_is_one_story(unet):
    class Holder:
        def __init__(self):
            self.unet = unet

    noise, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    with consistent_self_attention(Holder()), torch.no_grad():
        shared = unet(noise, 1, text).sample
    with torch.no_grad():
        assert not torch.allclose(shared, unet(noise, 1, text).sample, atol=1e-4)
    late = consistent_self_attention(Holder(), ConsistentSelfAttentionConfig(start=0.5))
    with pytest.raises(UserError, match="number of steps"), late:
        unet(noise, 1, text)


def keep_largest(scores, context):
    """(P, N) scores → (P, P, N): the round(rate · N) largest of every source."""
    top = scores.topk(round(context.rate * context.tokens)).indices
    chosen = torch.zeros(scores.shape, dtype=torch.bool).scatter(1, top, True)
    return context.sources[..., None] & chosen


def test_a_sampler_sees_the_features_of_its_layer_and_guidance_part(sd_pipe, registries):
    """A sampler of a user's own, which keeps the tokens of largest norm."""
    seen, inputs = [], {}

    @register_token_sampler("largest_norm", needs=["features"])
    def largest_norm(context: SamplingContext) -> torch.Tensor:
        assert context.features is not None
        assert context.attention_maps is None
        assert context.masks is None
        seen.append((context.layer, context.features))
        return keep_largest(context.features.norm(dim=-1), context)

    config = ConsistentSelfAttentionConfig(sampler="largest_norm", rate=0.25, blocks="all")
    for name, layer in get_backbone(sd_pipe.unet).self_attention_layers("all").items():
        layer.register_forward_pre_hook(lambda module, args, name=name: inputs.setdefault(name, args[0]))
    shared = generate(sd_pipe, config, [PanelGroup(3), PanelGroup(1)])
    first_step = seen[: 4 * len(inputs)]  # two stories in two guidance parts
    for number, name in enumerate(inputs):
        of_layer = first_step[4 * number : 4 * number + 4]
        assert [layer for layer, _ in of_layer] == [name] * 4
        assert torch.equal(torch.cat([features for _, features in of_layer]), inputs[name])
    assert torch.equal(shared, generate(sd_pipe, config, [PanelGroup(3), PanelGroup(1)]))
    uniform = ConsistentSelfAttentionConfig(rate=0.25, blocks="all")
    assert (shared - generate(sd_pipe, uniform, [PanelGroup(3), PanelGroup(1)]))[:3].abs().max() > 1e-4
    plain = sd_pipe(**arguments()).images
    torch.testing.assert_close(shared[3], plain[3], rtol=1e-4, atol=1e-4)


def test_a_sampler_sees_attention_maps_and_masks(sd_pipe, registries):
    rows = []

    @register_token_sampler("attended_foreground", needs=["attention_maps", "masks"])
    def attended_foreground(context: SamplingContext) -> torch.Tensor:
        assert context.features is None
        assert context.attention_maps is not None
        assert context.masks is not None
        assert context.attention_maps.shape == (4, context.tokens, context.tokens)
        rows.append(context.attention_maps.sum(-1))
        return keep_largest(context.attention_maps.mean(1), context) & context.masks

    config = ConsistentSelfAttentionConfig(sampler="attended_foreground")
    masks = torch.zeros(4, 32, 32)
    masks[:, 8:24, 8:24] = 1
    foreground = generate(sd_pipe, config, [PanelGroup(4, masks=masks)])
    assert all(torch.allclose(each, torch.ones_like(each), atol=1e-5) for each in rows)
    plain = sd_pipe(**arguments()).images
    assert (foreground - plain).abs().amax((1, 2, 3)).min() > 1e-4
    nothing = generate(sd_pipe, config, [PanelGroup(4, masks=torch.zeros(4, 32, 32))])
    torch.testing.assert_close(nothing, plain, rtol=0, atol=0)
    with pytest.raises(UserError, match="needs masks"):
        generate(sd_pipe, config, [4])
