"""The linear probes find what is linear in features, and tokens become features of one size."""

import pytest
import torch

from storydiffusion.evaluation.linear_probe import fit_classifiers, fit_ridge
from storydiffusion.models.image_encoders import flatten_tokens


def test_a_linear_relation_is_found_with_more_and_with_fewer_features_than_images():
    generator = torch.Generator().manual_seed(0)
    for count, width in ((400, 10), (60, 200)):
        basis = torch.randn(5, width, generator=generator)
        latent = torch.randn(count + 50, 5, generator=generator)
        features = latent @ basis + 3
        targets = torch.stack([latent[:, 0] - 2 * latent[:, 1] + 7, latent[:, 2]], 1)
        predicted = fit_ridge(features[:count], targets[:count])(features[count:])
        assert (predicted - targets[count:]).square().mean() < 0.02 * targets.var()


def test_unrelated_features_predict_the_mean():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator)
    targets = 5 + torch.randn(200, 1, generator=generator)
    assert fit_ridge(features, targets)(torch.randn(50, 4, generator=generator)).std() < 0.3


def test_a_constant_feature_is_harmless():
    features = torch.cat([torch.ones(20, 1), torch.linspace(-1, 1, 20)[:, None]], 1)
    read = fit_ridge(features, 3 * features[:, 1:])
    torch.testing.assert_close(read(features), 3 * features[:, 1:], rtol=0, atol=0.1)


def test_linear_classes_are_found_where_they_are_labelled():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2400, 12, generator=generator)
    labels = {"three": features[:, :3].argmax(1), "two": (features[:, 3] > 0).long()}
    labels["two"][:1000] = -1
    read = fit_classifiers(
        features[:2000], {name: part[:2000] for name, part in labels.items()}, {"three": 3, "two": 2}
    )
    for name, part in labels.items():
        assert (read[name](features[2000:]).argmax(1) == part[2000:]).float().mean() > 0.95


def test_labels_without_relation_get_their_shares():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(4000, 3, generator=generator), (torch.arange(4000) % 4 == 0).long()
    probabilities = fit_classifiers(features, {"some": labels}, {"some": 2})["some"](features).softmax(1)
    torch.testing.assert_close(probabilities[:, 1], torch.full((4000,), 0.25), rtol=0, atol=0.1)


@pytest.mark.parametrize(("tokens", "cells"), [(16, 16), (65, 1 + 16), (257, 1 + 16), (4, 4), (1, 1)])
def test_tokens_are_averaged_to_a_grid_beside_the_class_token(tokens, cells):
    assert flatten_tokens(torch.randn(3, tokens, 8)).shape == (3, cells * 8)


def test_cells_are_means_of_neighbouring_tokens():
    grid = torch.arange(64.0).view(1, 64, 1)
    features = flatten_tokens(torch.cat([torch.full((1, 1, 1), -1.0), grid], 1))
    assert features[0, 0] == -1
    assert features[0, 1] == torch.tensor([0.0, 1, 8, 9]).mean()
    assert features[0, -1] == torch.tensor([54.0, 55, 62, 63]).mean()
