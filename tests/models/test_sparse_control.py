"""SparseCtrl against diffusers' own pipelines at tiny random weights: with it, and at scale 0."""

import copy
import dataclasses

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSparseControlNetPipeline,
    DDIMScheduler,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
)
from torchvision.transforms.functional import to_pil_image

from storydiffusion.errors import UserError
from storydiffusion.models.sparse_control import SparseControl
from storydiffusion.models.text_encoder import TextEncoder
from storydiffusion.models.video_model import VideoModel
from storydiffusion.models.video_unet import SemanticVideoUNet
from storydiffusion.pipelines.transition_sampling import TransitionSampling, keep_latents, sample_latents
from tests.attention.conftest import tiny_text_encoder, tiny_tokenizer
from tests.helpers.tiny_video_model import tiny_vae
from tests.pipelines.test_transition import pictures

CHANNELS = (32, 64)  # its motion modules have 32 norm groups, whatever its size
SIZES = {
    "block_out_channels": CHANNELS, "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 16,
    "attention_head_dim": 2,
}  # fmt: skip
KINDS = ("CrossAttnDownBlockMotion", "DownBlockMotion")
SAMPLING = TransitionSampling(frames=4, steps=3, guidance_scale=3.0, boundary_frames="free")
START, END = pictures(2, 0), pictures(2, 1)
PROMPTS, SEEDS = ["a cat", "fox"], [5, 6]


def tiny_network(**changes) -> SparseControlNetModel:
    """Random everywhere; a new one has zeros where it would act."""
    torch.manual_seed(7)
    sizes = {**SIZES, "motion_num_attention_heads": 2, "motion_max_seq_length": 6, "down_block_types": KINDS}
    network = SparseControlNetModel(**{**sizes, **changes}).eval()
    zeroed = [*network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding]
    for layer in zeroed:
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    return network


@pytest.fixture(scope="module")
def parts() -> dict:
    """Of both diffusers' pipelines and ours."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, **SIZES, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    adapter = MotionAdapter(
        block_out_channels=CHANNELS, motion_layers_per_block=1, motion_norm_num_groups=8,
        motion_num_attention_heads=2, motion_max_seq_length=6,
    ).eval()  # fmt: skip
    vae = tiny_vae()
    with torch.no_grad():  # no spread: the pipeline draws from what the VAE takes an image for, we take its mean
        vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -30
    return {
        "unet": unet, "motion_adapter": adapter, "vae": vae, "text_encoder": tiny_text_encoder(),
        "tokenizer": tiny_tokenizer(), "scheduler": DDIMScheduler(beta_schedule="linear", clip_sample=False),
    }  # fmt: skip


def ours(parts, control: SparseControl | None = None) -> VideoModel:
    video_unet = SemanticVideoUNet.from_parts(parts["unet"], parts["motion_adapter"])
    text = TextEncoder(parts["tokenizer"], parts["text_encoder"])
    return VideoModel(video_unet, parts["vae"], text, parts["scheduler"], sparse_control=control)


def sampled(model, start=START, end=END, sampling=SAMPLING, prompts=PROMPTS, seeds=SEEDS) -> torch.Tensor:
    return sample_latents(model, start, end, prompts, seeds, sampling, keep_latents, [""] * len(prompts), None)


def theirs(pipe, clip: int, sampling=SAMPLING, **more) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS[clip], num_frames=sampling.frames, num_inference_steps=sampling.steps, height=16, width=16,
        guidance_scale=sampling.guidance_scale, generator=torch.Generator().manual_seed(SEEDS[clip]),
        output_type="latent", **more,
    ).frames  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_clip_is_that_of_diffusers_own_pipeline(parts, guidance):
    network = tiny_network()
    sampling = dataclasses.replace(SAMPLING, guidance_scale=guidance)
    model = ours(parts, SparseControl(network, 0.7))
    together = sampled(model, sampling=sampling)
    pipe = AnimateDiffSparseControlNetPipeline(**copy.deepcopy(parts), controlnet=network)
    for clip in (0, 1):
        boundary = [to_pil_image(image[clip]) for image in (START, END)]
        reference = theirs(
            pipe, clip, sampling, conditioning_frames=boundary, controlnet_frame_indices=[0, 3],
            controlnet_conditioning_scale=0.7,
        )  # fmt: skip
        its = slice(clip, clip + 1)
        alone = sampled(model, START[its], END[its], sampling, PROMPTS[its], SEEDS[its])
        torch.testing.assert_close(alone, reference, rtol=1e-5, atol=1e-5 * guidance)  # it enlarges the rounding
        torch.testing.assert_close(together[its], alone, rtol=1e-4, atol=1e-4)


def test_at_scale_zero_it_is_animatediff(parts):
    silent = sampled(ours(parts, SparseControl(tiny_network(), 0.0)))
    assert torch.equal(silent, sampled(ours(parts)))
    reference = theirs(AnimateDiffPipeline(**copy.deepcopy(parts)), 0)
    torch.testing.assert_close(silent[:1], reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["start", "end"])
def test_both_boundary_frames_matter(parts, which):
    model = ours(parts, SparseControl(tiny_network()))
    change = (sampled(model, **{which: pictures(2, 9)}) - sampled(model)).abs()
    assert change.amax((1, 2, 3, 4)).min() > 1e-3


def test_without_it_boundary_frames_that_are_not_imposed_do_not_matter(parts):
    """So the effect in the test above comes through the network."""
    assert torch.equal(sampled(ours(parts), start=pictures(2, 9)), sampled(ours(parts)))


def test_a_network_that_does_not_fit_is_named(parts):
    with pytest.raises(UserError, match=r"cross_attention_dim is 24.*is 16: use one made for it"):
        ours(parts, SparseControl(tiny_network(cross_attention_dim=24)))
    with pytest.raises(UserError, match="for sketches"):
        SparseControl(
            SparseControlNetModel(
                **SIZES, down_block_types=KINDS, conditioning_channels=3,
                conditioning_embedding_out_channels=(16, 32), use_simplified_condition_embedding=False,
            )
        )  # fmt: skip
