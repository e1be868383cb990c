"""Boundary-frame attention at tiny size: against a dense softmax and plain attention, and inside the video U-Net."""

import copy

import pytest
import torch

from storydiffusion.models.boundary_frame_attention import BoundaryFrameAttnProcessor, attend_to_boundary_frames
from storydiffusion.models.motion_adapters import new_motion_adapter
from storydiffusion.models.video_unet import SemanticVideoUNet
from tests.models.test_video_unet import LATENTS, SEMANTIC, TEXT, TIMESTEPS, random, tiny_adapter, tiny_unet


def dense(query, key, value, frames, heads):
    """One softmax for each frame over the tokens of the frames that it attends to, written out."""
    query, key, value = (x.double().unflatten(0, (-1, frames)).unflatten(-1, (heads, -1)) for x in (query, key, value))
    output = torch.zeros_like(query)
    for i in range(frames):
        attended = sorted({0, i, frames - 1})
        keys, values = (x[:, attended].flatten(1, 2) for x in (key, value))
        scores = torch.einsum("bnhc,bmhc->bhnm", query[:, i], keys) / query.shape[-1] ** 0.5
        output[:, i] = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), values)
    return output.flatten(-2).flatten(0, 1).float()


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_it_is_one_softmax_over_the_frame_and_both_boundary_frames(frames):
    query, key, value = (random(2 * frames, 7, 12, seed=seed) for seed in range(3))
    output = attend_to_boundary_frames(query, key, value, frames, heads=3)
    torch.testing.assert_close(output, dense(query, key, value, frames, 3), rtol=0, atol=1e-5)


@pytest.fixture
def static_unet() -> tuple[SemanticVideoUNet, SemanticVideoUNet]:
    """The plain model and the one with boundary-frame attention; motion modules that do nothing."""
    unet = tiny_unet()
    adapter = new_motion_adapter(unet.config, frames=6)
    return SemanticVideoUNet.from_parts(unet, adapter), SemanticVideoUNet.from_parts(
        unet, adapter, boundary_attention=True
    )


@torch.no_grad()
def predict(unet, latents, semantic=SEMANTIC):
    return unet(latents, TIMESTEPS, TEXT, semantic)


def test_a_clip_of_equal_frames_agrees_with_the_plain_model(static_unet):
    plain, ours = static_unet
    latents = LATENTS[:, :, :1].expand(-1, -1, 5, -1, -1)
    expected = predict(plain, latents, None)
    torch.testing.assert_close(predict(ours, latents, None), expected, rtol=0, atol=1e-5)


def test_a_clip_of_different_frames_differs_from_the_plain_model(static_unet):
    plain, ours = static_unet
    assert (predict(ours, LATENTS) - predict(plain, LATENTS)).abs().max() > 1e-3


@pytest.mark.parametrize("boundary", [0, -1])
def test_a_boundary_frame_reaches_distant_places_of_all_frames(static_unet, boundary):
    """Without motion modules, beyond the reach of convolutions: one corner changes, the opposite one is compared."""
    plain, ours = static_unet
    latents = random(2, 4, 5, 16, 16)
    changed = latents.clone()
    changed[1, :, boundary, :2, :2] += 3
    others = [i for i in range(5) if i != boundary % 5]
    effect = (predict(ours, changed, None) - predict(ours, latents, None)).abs()
    assert effect[1][:, others, -2:, -2:].amax((0, 2, 3)).min() > 1e-5
    assert effect[0].max() == 0  # the other clip
    alone = (predict(plain, changed, None) - predict(plain, latents, None)).abs()
    assert alone[:, :, others].max() == 0


def test_a_middle_frame_reaches_no_other_frame(static_unet):
    changed = LATENTS.clone()
    changed[:, :, 1] += 3
    effect = (predict(static_unet[1], changed) - predict(static_unet[1], LATENTS)).abs()
    assert effect[:, :, [0, 2]].max() == 0
    assert effect[:, :, 1].min() > 0


def test_each_call_may_have_another_number_of_frames(static_unet):
    plain, ours = static_unet
    for frames in (4, 2, 1, 3):
        latents = random(2, 4, frames, 8, 8)
        out = predict(ours, latents, None)
        assert out.shape == latents.shape
    one = random(2, 4, 1, 8, 8)
    torch.testing.assert_close(predict(ours, one, None), predict(plain, one, None), rtol=0, atol=1e-5)


def test_no_weight_is_added_and_only_spatial_self_attention_is_changed():
    plain = SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter())
    ours = SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter(), boundary_attention=True)
    ours.load_state_dict(plain.state_dict())  # strict
    changed = {n for n, p in ours.unet.attn_processors.items() if isinstance(p, BoundaryFrameAttnProcessor)}
    spatial = {n for n in ours.unet.attn_processors if "attn1" in n and "motion_modules" not in n}
    assert changed == spatial
    assert any("mid_block" in name for name in spatial)


def gradients(unet: SemanticVideoUNet) -> torch.Tensor:
    latents = LATENTS.clone().requires_grad_()
    unet(latents, TIMESTEPS, TEXT, SEMANTIC)[:, :, 1].square().mean().backward()
    assert latents.grad is not None
    return latents.grad


def test_a_middle_frames_loss_has_gradients_at_the_boundary_frames_and_motion_modules(static_unet):
    plain, ours = static_unet
    assert gradients(plain)[:, :, [0, 2]].abs().max() == 0
    assert gradients(ours).abs().amax((1, 3, 4)).min() > 0
    moving = SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter(), boundary_attention=True)
    for weight in moving.motion_parameters():
        weight.requires_grad_()
    moving.train()
    expected = gradients(moving)
    assert all(weight.grad is not None for weight in moving.motion_parameters())
    moving.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(moving), expected, rtol=1e-5, atol=1e-7)


def test_a_copy_is_independent(static_unet):
    """EMA and evaluation copy the model."""
    ours = static_unet[1]
    expected = predict(ours, LATENTS)
    twin = copy.deepcopy(ours)
    predict(ours, random(2, 4, 5, 8, 8), None)  # another length in the original
    torch.testing.assert_close(predict(twin, LATENTS), expected, rtol=0, atol=0)
