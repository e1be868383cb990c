"""The convolutional image tower: its grid and pooling, frozen statistics, and saving."""

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPVisionConfig,
)

from storydiffusion.models.convolutional_clip import ConvolutionalClip, ConvolutionalClipConfig
from storydiffusion.models.image_encoders import (
    ClipImageEncoder,
    load_clip,
    load_image_encoder,
)
from tests.models.test_image_encoders import PROJECTION, images


@pytest.fixture
def convolutional():
    """A ConvolutionalClip of random weights, in train mode and with statistics of other images."""
    vision = CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=32, intermediate_size=256
    )
    text = CLIPTextConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = ConvolutionalClipConfig(projection_dim=PROJECTION)
    config.vision_config, config.text_config = vision, text
    torch.manual_seed(0)
    model = ConvolutionalClip(config).train()
    for name, weight in model.named_parameters():
        if name.endswith("bn3.weight"):  # zero in new weights, so that a block is the identity
            torch.nn.init.normal_(weight)
    model(input_ids=torch.zeros(2, 4, dtype=torch.long), pixel_values=torch.randn(2, 3, 64, 64))
    return model


def test_a_convolutional_tower_gives_the_grid_and_the_pooling_of_open_clip(convolutional):
    encoder = ClipImageEncoder(convolutional)
    frames = images(64, 96)
    pixels = encoder.preprocess(frames)
    resnet = convolutional.vision_model.tower
    with torch.no_grad():
        states = resnet.forward_intermediates(pixels)
    grid, pooled = states["image_intermediates"][-1], states["image_features"]
    assert grid.shape == (2, 64, 2, 2)
    hidden = encoder.features(frames)
    assert hidden.shape == (2, 4, 64)
    assert torch.equal(hidden[:, 1], grid[:, :, 0, 1])
    assert torch.equal(hidden[:, 2], grid[:, :, 1, 0])
    assert torch.equal(encoder.features(frames, "pooled")[:, 0], pooled)
    assert encoder.widths == {"hidden": 64, "pooled": PROJECTION}
    embedded = convolutional.get_image_features(pixels).pooler_output
    assert torch.equal(embedded, pooled)


def test_a_convolutional_encoder_is_frozen_with_its_statistics(convolutional):
    encoder = ClipImageEncoder(convolutional).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    encoder.features(images(64, 64))
    assert not any(module.training for module in encoder.modules())
    for name, buffer in encoder.named_buffers():
        assert torch.equal(before[name], buffer), name


def test_a_convolutional_clip_survives_saving_in_half_precision(tmp_path, convolutional):
    half = convolutional.half()
    half.save_pretrained(tmp_path)
    loaded = load_clip(tmp_path)
    assert isinstance(loaded, ConvolutionalClip)
    assert loaded.dtype == torch.float32
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor.to(loaded.state_dict()[name].dtype), loaded.state_dict()[name]), name
    frames = images(64, 64)
    expected = ClipImageEncoder(half.float())
    for kind in ("hidden", "pooled"):
        found = load_image_encoder(str(tmp_path)).features(frames, kind)
        assert torch.equal(found, expected.features(frames, kind)), kind
