"""The cross-attention as a part of its own: which weights it is, its folder, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from storydiffusion.errors import UserError
from storydiffusion.video.cross_attention import (
    WEIGHTS,
    cross_attention_settings,
    cross_attention_weights,
    load_cross_attention,
    save_cross_attention,
)
from storydiffusion.video.semantic_video_unet import SemanticVideoUNet, frame_contexts
from tests.video.test_semantic_video_unet import LATENTS, SEMANTIC, TEXT, TIMESTEPS, tiny_adapter, tiny_unet


@pytest.fixture
def unet():
    return SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter()).unet


@pytest.fixture
def folder(unet, tmp_path):
    """Of other weights than the U-Net's own."""
    changed = {name: weight + 0.1 for name, weight in cross_attention_weights(unet).items()}
    save_cross_attention(changed, cross_attention_settings(unet), tmp_path)
    return tmp_path


def test_it_is_all_that_reads_the_context_and_no_motion_module(unet):
    weights = cross_attention_weights(unet)
    assert not any("motion_modules" in name for name in weights)
    told = [unet(LATENTS, TIMESTEPS, context).sample for context in contexts()]
    assert not torch.allclose(*told)
    for weight in weights.values():
        torch.nn.init.zeros_(weight)
    torch.testing.assert_close(*[unet(LATENTS, TIMESTEPS, context).sample for context in contexts()])


def contexts() -> list[torch.Tensor]:
    return [frame_contexts(text, SEMANTIC, LATENTS.shape[2]) for text in (TEXT, TEXT.flip(1) + 1)]


def test_the_weights_come_back_bit_for_bit_and_nothing_else_changes(unet, folder):
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    load_cross_attention(unet, folder)
    stored = load_file(folder / WEIGHTS)
    assert stored.keys() == cross_attention_weights(unet).keys()
    for name, weight in unet.named_parameters():
        assert torch.equal(weight, stored.get(name, before[name])), name
        assert (name in stored) != torch.equal(weight, before[name]), name


@pytest.mark.parametrize("fault", ["no file", "damaged", "a tensor too few", "a tensor too many", "another shape"])
def test_what_does_not_fit_is_refused_and_changes_nothing(unet, folder, fault):
    file, before = folder / WEIGHTS, {name: weight.clone() for name, weight in unet.named_parameters()}
    weights = load_file(file)
    name = min(weights)
    if fault == "no file":
        file.unlink()
    elif fault == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    elif fault == "a tensor too few":
        save_file({other: weight for other, weight in weights.items() if other != name}, file)
    elif fault == "a tensor too many":
        save_file({**weights, "more": torch.zeros(1)}, file)
    else:
        save_file({**weights, name: weights[name][:1]}, file)
    named = {"no file": WEIGHTS, "damaged": WEIGHTS, "a tensor too many": "more"}.get(fault, name)
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        load_cross_attention(unet, folder)
    for name, weight in unet.named_parameters():
        assert torch.equal(weight, before[name]), name
