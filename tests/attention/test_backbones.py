"""The U-Net as a backbone, denoisers that are unknown, and one of a user's own."""

import types

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from storydiffusion.attention.backbones import UNetBackbone, find_denoiser, get_backbone, register_backbone
from storydiffusion.attention.grids import Grid, InputShape
from storydiffusion.attention.plugin import consistent_self_attention
from storydiffusion.errors import UserError


def test_layers_of_a_unet(unet):
    backbone = get_backbone(unet)
    up, every = (backbone.self_attention_layers(blocks) for blocks in ("up", "all"))
    assert set(up) == {name for name in every if name.startswith("up_blocks.")}
    assert {name.split(".")[0] for name in every} == {"down_blocks", "mid_block", "up_blocks"}
    assert all(name.endswith(".attn1") for name in every)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (15, 9), (7, 7)])
def test_grids_are_those_of_the_layers(unet, height, width):
    backbone, seen = UNetBackbone(unet), {}
    for name, layer in backbone.self_attention_layers("all").items():
        layer.register_forward_hook(lambda module, args, output, name=name: seen.update({name: args[0].shape[1]}))
    noise = torch.randn(1, 4, height, width)
    with torch.no_grad():
        unet(noise, 1, torch.randn(1, 5, 16))
    shape = backbone.input_shape((noise,), {})
    assert shape == InputShape(1, height, width) == backbone.input_shape((), {"sample": noise})
    fine, coarse = Grid(1, height, width), Grid(2, -(-height // 2), -(-width // 2))
    grids = {name: backbone.grid(tokens, shape) for name, tokens in seen.items()}
    assert set(grids.values()) == {fine, coarse}
    assert all(grid.height * grid.width == seen[name] for name, grid in grids.items())


def test_guidance_parts(unet):
    parts = UNetBackbone(unet).guidance_parts
    assert parts(types.SimpleNamespace()) is None
    assert parts(types.SimpleNamespace(do_classifier_free_guidance=False)) == 1
    assert parts(types.SimpleNamespace(do_classifier_free_guidance=True)) == 2
    both = types.SimpleNamespace(do_classifier_free_guidance=True, do_perturbed_attention_guidance=True)
    assert parts(both) == 3


def test_a_denoiser_without_a_backbone_is_named():
    transformer = DiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=8, sample_size=8)
    pipe = types.SimpleNamespace(transformer=transformer)
    assert find_denoiser(pipe) is transformer
    with pytest.raises(UserError, match=r"DiTTransformer2DModel: take one of .*register a backbone"):
        consistent_self_attention(pipe).__enter__()


def test_a_pipeline_without_a_denoiser_is_named():
    with pytest.raises(UserError, match="DDIMScheduler has no denoiser"):
        find_denoiser(DDIMScheduler())


def test_a_registered_backbone_serves_a_class_and_its_subclasses(registries):
    class Denoiser(nn.Linear):
        pass

    class Refined(Denoiser):
        pass

    @register_backbone("Denoiser")
    class Own(UNetBackbone):
        pass

    assert isinstance(get_backbone(Refined(1, 1)), Own)
    with pytest.raises(UserError, match="UNet2DConditionModel already has a backbone"):
        register_backbone("UNet2DConditionModel")


def test_subclasses_of_the_unet_are_unets():
    class Mine(UNet2DConditionModel):
        pass

    assert isinstance(get_backbone(Mine.__new__(Mine)), UNetBackbone)
