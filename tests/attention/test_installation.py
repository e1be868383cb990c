"""Sharing under compilation, replaced processors and diffusers' callbacks; a warning where nothing was shared."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError
from tests.attention.conftest import NO_SAFETY, common_parts, tiny_unet
from tests.attention.test_plugin import arguments, generate
from tests.helpers.processes import in_child


def compile_wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compile_in_place(pipe):
    pipe.unet.compile(backend="eager")


def compile_after_a_call(pipe):
    compile_in_place(pipe)
    pipe(**arguments())


def compile_blocks(pipe):
    for block in pipe.unet.up_blocks:
        block.compile(backend="eager")


def compile_forward(pipe):
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager")


OTHER_WAYS = [
    pytest.param(way, marks=pytest.mark.slow)
    for way in (compile_forward, compile_wrapped, compile_blocks, compile_in_place)
]


@pytest.mark.parametrize("compiled", [compile_after_a_call, *OTHER_WAYS])
@in_child
def test_a_compiled_unet_shares_and_is_restored(sd_pipe, compiled):
    plain, shared = sd_pipe(**arguments()).images, generate(sd_pipe)
    compiled(sd_pipe)
    torch.testing.assert_close(generate(sd_pipe), shared, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sd_pipe(**arguments()).images, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [compile_after_a_call, *OTHER_WAYS])
@in_child
def test_a_compiled_unet_is_computed_in_chunks(sd_pipe, compiled):
    config = ConsistentSelfAttentionConfig(anchor_panels=1)
    joint, sizes = generate(sd_pipe, config), []
    sd_pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    compiled(sd_pipe)
    sizes.clear()
    divided = generate(sd_pipe, replace(config, panels_at_once=2))
    torch.testing.assert_close(divided, joint, rtol=1e-4, atol=1e-4)
    assert max(sizes) == 4


@in_child
def test_a_unet_compiled_as_one_graph_is_refused(sd_pipe):
    sd_pipe.unet = torch.compile(sd_pipe.unet, backend="eager", fullgraph=True)
    with pytest.raises(UserError, match="fullgraph=False"):
        generate(sd_pipe)


def set_all(pipe):
    pipe.unet.set_attn_processor(AttnProcessor())


def set_one(pipe):
    pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())


def fuse(pipe):
    pipe.unet.fuse_qkv_projections()


def slice_attention(pipe):
    pipe.enable_attention_slicing(1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (set_all, "AttnProcessor"),
        (set_one, "AttnProcessor2_0"),
        (fuse, "FusedAttnProcessor2_0"),
        (slice_attention, "SlicedAttnProcessor"),
    ],
)
def test_processors_set_inside_the_context_are_named(sd_pipe, change, name):
    before = dict(sd_pipe.unet.attn_processors)
    with consistent_self_attention(sd_pipe) as story:
        change(sd_pipe)
        with pytest.raises(UserError, match=rf"^{name} replaced consistent self-attention in up_blocks\.\d"):
            sd_pipe(**arguments(), callback_on_step_end=story.on_step_end)
    after = sd_pipe.unet.attn_processors
    assert all(after[key] is before[key] for key in before if "up_blocks" in key and "attn1" in key)


def test_processors_replaced_between_two_steps_are_named(sd_pipe):
    def replace(pipe, step, timestep, tensors):
        set_all(pipe)
        return story.on_step_end(pipe, step, timestep, tensors)

    with pytest.raises(UserError, match="AttnProcessor replaced"), consistent_self_attention(sd_pipe) as story:
        sd_pipe(**arguments(), callback_on_step_end=replace)


def test_contexts_of_one_pipeline_do_not_nest(sd_pipe):
    with (
        pytest.raises(UserError, match="ConsistentAttnProcessor replaced"),
        consistent_self_attention(sd_pipe),
        consistent_self_attention(sd_pipe),
    ):
        sd_pipe(**arguments())


@pytest.mark.parametrize("layers", ["up", "mid"])
def test_perturbed_attention_guidance_needs_other_blocks(layers):
    pipe = StableDiffusionPAGPipeline(unet=tiny_unet(), pag_applied_layers=[layers], **common_parts(), **NO_SAFETY)
    pipe.set_progress_bar_config(disable=True)
    if layers == "up":
        with pytest.raises(UserError, match=r"PAG.* replaced .*other blocks"):
            generate(pipe, pag_scale=3.0)
    else:
        plain = pipe(**arguments(pag_scale=3.0)).images
        assert (generate(pipe, pag_scale=3.0) - plain).abs().amax((1, 2, 3)).min() > 1e-3


class Recorded(PipelineCallback):
    tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012, as diffusers declares it

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.steps = [*getattr(self, "steps", []), step_index]
        return callback_kwargs


@pytest.mark.parametrize("ours_first", [True, False])
def test_diffusers_chain_of_callbacks(sd_pipe, ours_first):
    other = Recorded()
    config = ConsistentSelfAttentionConfig(variant="official")
    with consistent_self_attention(sd_pipe, config) as story:
        chain = [story.on_step_end, other] if ours_first else [other, story.on_step_end]
        images = sd_pipe(**arguments(), callback_on_step_end=MultiPipelineCallbacks(chain)).images
    assert other.steps == [0, 1, 2]
    assert torch.equal(images, generate(sd_pipe, config))


def test_latents_that_are_not_finite_stop_the_pipeline(sd_pipe):
    torch.nn.init.constant_(sd_pipe.unet.conv_out.weight, float("nan"))
    with pytest.raises(UserError, match="latents after step 1 are not finite"):
        generate(sd_pipe)


def call_one_by_one(pipe, story):
    for panel in range(3):
        pipe(**arguments([panel]))


def replace_the_unet(pipe, story):
    pipe.unet = tiny_unet()
    pipe(**arguments())


def call_with_callback(pipe, story):
    pipe(**arguments(), callback_on_step_end=story.on_step_end)


@pytest.mark.parametrize(
    ("use", "config", "cause"),
    [
        (call_one_by_one, {}, "each call had one prompt"),
        (replace_the_unet, {}, "its denoiser was not called"),
        (lambda pipe, story: None, {}, "its denoiser was not called"),
        (call_with_callback, {"end": 0.1}, "rate above 0"),
    ],
)
def test_sharing_nothing_gives_a_warning(sd_pipe, use, config, cause):
    with (
        pytest.warns(UserWarning, match=f"shared nothing: .*{cause}") as found,
        consistent_self_attention(sd_pipe, ConsistentSelfAttentionConfig(**config)) as story,
    ):
        use(sd_pipe, story)
    assert found[0].filename == __file__


def test_what_was_asked_for_gives_no_warning(sd_pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(sd_pipe)
        generate(sd_pipe, ConsistentSelfAttentionConfig(variant="off"))
        generate(sd_pipe, ConsistentSelfAttentionConfig(rate=0.0))
        generate(sd_pipe, stories=[1, 1, 1, 1])
