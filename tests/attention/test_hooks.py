"""Diffusers' hooks on a denoiser: those that reuse attention are refused by name, however they were applied."""

import pytest
import torch
from diffusers.hooks.faster_cache import FasterCacheConfig, apply_faster_cache
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.layer_skip import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layerwise_casting import apply_layerwise_casting
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache

from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError
from tests.attention.conftest import stable_diffusion
from tests.attention.test_plugin import arguments
from tests.attention.transformers import flux


def broadcast(denoiser):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(denoiser, config)


APPLIED = {
    "fbc_leader_block_hook": lambda denoiser: apply_first_block_cache(denoiser, FirstBlockCacheConfig(threshold=0.1)),
    "pyramid_attention_broadcast": broadcast,
    "faster_cache": lambda denoiser: apply_faster_cache(
        denoiser, FasterCacheConfig(current_timestep_callback=lambda: 500)
    ),
    "taylorseer_cache": lambda denoiser: apply_taylorseer_cache(denoiser, TaylorSeerCacheConfig()),
    "mag_cache": lambda denoiser: apply_mag_cache(denoiser, MagCacheConfig(num_inference_steps=2, mag_ratios=[1, 1])),
    "layer_skip_hook": lambda denoiser: apply_layer_skip(
        denoiser, LayerSkipConfig(indices=[0], fqn="transformer_blocks")
    ),
}


def generate(pipe, given):
    with consistent_self_attention(pipe) as story:
        return pipe(**given, callback_on_step_end=story.on_step_end).images


@pytest.mark.parametrize("hook", APPLIED)
def test_a_hook_that_diffusers_functions_apply_to_a_transformer_is_named(hook):
    family = flux()
    APPLIED[hook](family.pipe.transformer)
    with pytest.raises(UserError, match=rf"^the hook {hook}\S* \(\w+\) on .* may skip or reuse attention"):
        generate(family.pipe, family.arguments([0, 1]))


def test_a_hook_on_the_attention_of_a_unet_is_named():
    pipe = stable_diffusion()
    broadcast(pipe.unet)
    with pytest.raises(UserError, match=r"^the hook pyramid_attention_broadcast \(\w+\) on \w+_block\S+\.attn1 may"):
        generate(pipe, arguments(steps=1))


def test_a_hook_that_casts_weights_changes_nothing_and_is_taken():
    family = flux()
    expected = generate(family.pipe, family.arguments([0, 1]))
    apply_layerwise_casting(family.pipe.transformer, storage_dtype=torch.float32, compute_dtype=torch.float32)
    assert torch.equal(generate(family.pipe, family.arguments([0, 1])), expected)
