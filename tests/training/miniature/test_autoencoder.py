"""The autoencoder's loss: a weighted mean over pixels, whose weights are those of the characters."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from storydiffusion.config import TrainConfig, load
from storydiffusion.config.command_line import CONF
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.training.build_training import build_training
from storydiffusion.training.miniature.autoencoder import AutoencoderModule, weighted_distances


def build(*overrides: str) -> AutoencoderModule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = ["experiment=storyworld_autoencoder", "trainer=cpu", "recipe.block_out_channels=[8,8,8,8]"]
        return build_training(load(TrainConfig, compose("train", [*settings, *overrides]))).module


def test_equal_weights_give_the_mean_distances_of_pixels_and_of_edges():
    a, b = torch.randn(2, 4, 3, 8, 6)
    pixel, edge = weighted_distances(a, b, torch.full((4, 1, 8, 6), 7.0))
    torch.testing.assert_close(pixel, (a - b).abs().mean())
    across, down = ((a - b).diff(dim=dim).abs().mean() for dim in (-1, -2))
    torch.testing.assert_close(edge, (across + down) / 2)


def test_an_error_counts_by_the_weight_of_its_pixel():
    weights = torch.ones(1, 1, 8, 8)
    weights[..., :2] = 3.0
    errors = []
    for column in (0, 6):
        image = torch.zeros(1, 3, 8, 8)
        image[..., column] = 1.0
        errors.append(weighted_distances(image, torch.zeros_like(image), weights)[0])
    torch.testing.assert_close(errors[0], 3 * errors[1])


@pytest.mark.parametrize("edition", EDITIONS)
def test_weights_are_those_of_the_characters_in_the_same_crops(edition):
    plain, weighted = (build(f"recipe.edition={edition}", f"recipe.character_weight={weight}") for weight in (1.0, 5.0))
    for step in range(3):
        assert torch.equal(plain.crops(step).images, weighted.crops(step).images)
        assert (plain.crops(step).weights == 1).all()
        assert weighted.crops(step).weights.unique().tolist() == [1.0, 5.0]
    world = EDITIONS[edition]
    truths = [world.sample(3, index) for index in range(12)]
    for truth, weights in zip(truths, weighted.weigh(truths), strict=True):
        assert torch.equal(weights[0] == 5, torch.from_numpy(world.character_masks(truth, 128).any(0)))
