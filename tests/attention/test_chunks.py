"""A call of the denoiser in chunks of panels equals the joint call, or is refused with what would work.

Libraries choose the kernels of matrix products and convolutions by the size of the batch, so single bits differ. In
float64 a difference of 1e-9 is rounding; a token too few, or one of another panel, shows in the second digit.
"""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storydiffusion.attention.chunks import find_components, plan_chunks
from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.consistent_self_attention import PanelGroup
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.attention.token_samplers import SamplingContext, register_token_sampler
from storydiffusion.attention.variants import Variant, register_variant
from storydiffusion.errors import UserError
from tests.attention.story_plans import attended_tokens
from tests.attention.test_plugin import arguments

ANCHORS = ConsistentSelfAttentionConfig(anchor_panels=2, blocks="all")
TWO_CHARACTERS = [[i % 2 == j % 2 for j in range(8)] for i in range(8)]
DIVISIBLE = {
    "anchors": (ANCHORS, None, 3),
    "one anchor, one panel at a time": (replace(ANCHORS, anchor_panels=1), None, 1),
    "anchors, shared_row": (replace(ANCHORS, variant="shared_row"), None, 2),
    "anchors, official": (replace(ANCHORS, variant="official"), None, 2),
    "anchors, in some steps": (replace(ANCHORS, start=0.3, end=0.7), None, 2),
    "anchors, one grid": (replace(ANCHORS, rate={2: 0.5}), None, 2),
    "progressive": (ConsistentSelfAttentionConfig(sampler="progressive"), None, 3),
    "progressive, window": (ConsistentSelfAttentionConfig(sampler="progressive", neighbor_window=2), None, 1),
    "characters that never meet": (ConsistentSelfAttentionConfig(blocks="all"), TWO_CHARACTERS, 5),
    "algorithm1 of such characters": (ConsistentSelfAttentionConfig(variant="algorithm1"), TWO_CHARACTERS, 4),
    "no sharing": (ConsistentSelfAttentionConfig(variant="off"), None, 3),
}


def generate(pipe, config, story, **changes):
    sizes = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    try:
        given = arguments(**{"panels": range(8), **changes})
        given["latents"] = given["latents"].to(pipe.unet.dtype)
        with consistent_self_attention(pipe, config, story) as state:
            images = pipe(**given, callback_on_step_end=state.on_step_end).images
    finally:
        hook.remove()
    return images, sizes


def assert_equal(divided: torch.Tensor, joint: torch.Tensor) -> None:
    assert joint.dtype == torch.float64
    torch.testing.assert_close(divided, joint, rtol=0, atol=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", DIVISIBLE)
def test_chunks_equal_the_joint_batch(exact_pipe, name, guidance):
    config, may_share, limit = DIVISIBLE[name]
    story = [PanelGroup(8, may_share=may_share)]
    joint, _ = generate(exact_pipe, config, story, guidance=guidance)
    divided, sizes = generate(exact_pipe, replace(config, panels_at_once=limit), story, guidance=guidance)
    assert_equal(divided, joint)
    parts = 2 if guidance > 1 else 1
    assert max(sizes) <= parts * limit
    assert sum(sizes) == 3 * parts * 8
    assert len(sizes) > 3


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
def test_several_stories_in_a_batch(exact_pipe, limit):
    stories = [PanelGroup(3, key=1), PanelGroup(1, key=2), PanelGroup(4, key=3)]
    config = ConsistentSelfAttentionConfig(sampler="progressive")
    joint, _ = generate(exact_pipe, config, stories)
    assert_equal(generate(exact_pipe, replace(config, panels_at_once=limit), stories)[0], joint)


def test_every_argument_of_a_call_is_divided(any_pipe):
    pipe, extra = any_pipe
    pipe.to(torch.float64)
    given = extra(range(8), True)
    joint, _ = generate(pipe, ANCHORS, [8], **given)
    assert_equal(generate(pipe, replace(ANCHORS, panels_at_once=3), [8], **given)[0], joint)


def test_a_third_guidance_part(exact_pipe):
    pipe = StableDiffusionPAGPipeline(
        **{**exact_pipe.components, "safety_checker": None}, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    config = replace(ANCHORS, blocks="up")
    joint, _ = generate(pipe, config, [8], pag_scale=2.0)
    assert_equal(generate(pipe, replace(config, panels_at_once=3), [8], pag_scale=2.0)[0], joint)


@pytest.mark.parametrize(
    ("value", "what"),
    [(object(), "a object"), (torch.ones(3, 2), "a tensor of 3 rows"), ([{1}], "a set")],
    ids=["object", "rows", "nested"],
)
def test_an_argument_that_cannot_be_divided_is_refused(sd_pipe, value, what):
    with pytest.raises(UserError, match=f"cross_attention_kwargs.extra.* is {what} for a batch of 16"):
        generate(sd_pipe, replace(ANCHORS, panels_at_once=3), [8], cross_attention_kwargs={"extra": value})


@pytest.mark.parametrize("name", ["all panels", "window", "algorithm1"])
def test_panels_that_all_attend_to_each_other_are_refused_with_what_works(sd_pipe, name):
    config = {
        "all panels": ConsistentSelfAttentionConfig(),
        "window": ConsistentSelfAttentionConfig(neighbor_window=1),
        "algorithm1": ConsistentSelfAttentionConfig(variant="algorithm1", tile_size=2),
    }[name]
    divided = replace(config, panels_at_once=4)
    advice = (
        "4, but 8 panels attend to each other.*anchor_panels of 1 to 4 without neighbor_window, sampler progressive"
    )
    with pytest.raises(UserError, match=advice):
        generate(sd_pipe, divided, [8])
    generate(sd_pipe, replace(divided, anchor_panels=4, neighbor_window=None, variant="eq2", tile_size=None), [8])
    generate(sd_pipe, replace(divided, sampler="progressive", variant="eq2", tile_size=None), [8])
    generate(sd_pipe, replace(divided, panels_at_once=8), [8])


def test_a_sampler_that_reads_all_panels_is_refused(registries):
    @register_token_sampler("largest_norm", needs=["features"])
    def largest_norm(context: SamplingContext) -> torch.Tensor:
        raise NotImplementedError

    with pytest.raises(UserError, match="largest_norm with variant eq2 reads the features of all panels"):
        ConsistentSelfAttentionConfig(sampler="largest_norm", panels_at_once=2)
    for wrong in (0, -1, True, 2.0, "all"):
        with pytest.raises(UserError, match="panels_at_once is"):
            ConsistentSelfAttentionConfig(panels_at_once=wrong)  # type: ignore[arg-type]


def test_a_variant_that_leaves_its_sources_is_refused(sd_pipe, registries):
    @register_variant("everything")
    class Everything(Variant):
        def select(self, context, sampler):
            everyone = ~torch.eye(context.panels, dtype=torch.bool)
            return super().select(replace(context, sources=everyone), sampler)

    config = replace(ANCHORS, variant="everything", panels_at_once=3)
    with pytest.raises(UserError, match="outside of its sources"):
        generate(sd_pipe, config, [8])


def test_a_sampler_of_earlier_panels_keeps_to_them(registries):
    @register_token_sampler("first", earlier_only=True)
    def first(context: SamplingContext) -> torch.Tensor:
        return context.sources[..., None] & torch.ones(context.tokens, dtype=torch.bool)

    with pytest.raises(UserError, match="first chose tokens of later panels"):
        attended_tokens(PanelGroup(3), sampler="first")


def test_keys_are_kept_as_long_as_they_are_read_and_no_longer(sd_pipe):
    """Of each layer: those of the window's two panels within a call, nothing between calls, also after an error."""
    config = ConsistentSelfAttentionConfig(sampler="progressive", neighbor_window=2, panels_at_once=1)
    kept = []
    with consistent_self_attention(sd_pipe, config) as state:
        hook = sd_pipe.unet.conv_in.register_forward_hook(
            lambda *_: kept.append({len(key) for key, _ in state._chunked._kept.values()})
        )

        def on_step_end(pipe, step, timestep, tensors):
            assert not state._chunked._kept
            return state.on_step_end(pipe, step, timestep, tensors)

        sd_pipe(**arguments(range(8), guidance=1.0), callback_on_step_end=on_step_end)
        assert kept == [set(), {1}, {2}, {2}, {2}, {2}, {2}, {2}] * 3
        hook.remove()

        def fail(*_):
            if state._chunked._kept:
                raise KeyError("stop")

        hook = sd_pipe.unet.conv_in.register_forward_hook(fail)
        with pytest.raises(KeyError):
            sd_pipe(**arguments(range(8)))
        assert not state._chunked._kept
        hook.remove()
        assert sd_pipe(**arguments(range(8))).images.isfinite().all()
    assert "forward" not in vars(sd_pipe.unet)


def test_the_graph_of_another_forward_is_restored(sd_pipe):
    """Offloading replaces `forward` of the denoiser itself."""
    forward, calls = sd_pipe.unet.forward, []

    def offloaded(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    sd_pipe.unet.forward = offloaded
    generate(sd_pipe, replace(ANCHORS, panels_at_once=4), [8])
    assert len(calls) == 6
    assert sd_pipe.unet.forward is offloaded


graphs = st.integers(1, 9).flatmap(
    lambda panels: st.lists(st.lists(st.booleans(), min_size=panels, max_size=panels), min_size=panels, max_size=panels)
)


@given(graphs, st.integers(1, 9))
@hypothesis_settings(max_examples=200, deadline=None)
def test_chunks_cover_the_panels_once_and_read_backwards(rows, limit):
    sources = torch.tensor(rows, dtype=torch.bool)
    components = find_components(sources)
    assert sorted(chain(*components)) == list(range(len(rows)))
    if max(map(len, components)) > limit:
        with pytest.raises(UserError, match="panels_at_once"):
            plan_chunks(sources, limit)
        return
    chunks = plan_chunks(sources, limit)
    assert sorted(chain(*(chunk.panels for chunk in chunks))) == list(range(len(rows)))
    for number, chunk in enumerate(chunks):
        assert len(chunk.panels) <= limit
        readable = {*chunk.kept, *chunk.panels}
        assert all(readable >= set(sources[panel].nonzero()[:, 0].tolist()) for panel in chunk.panels)
        assert chunk.kept == (chunks[number - 1].keeps if number else [])
        later = [panel for each in chunks[number + 1 :] for panel in each.panels]
        assert all(sources[later, panel].any() for panel in chunk.keeps)
