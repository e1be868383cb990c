import copy

import pytest
import torch
from torch import nn

from storydiffusion.training.optim.muon import Muon, orthogonalise, split_parameters


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(16, 3, 6, 6, generator=generator)
        loss = (model(images) - images.mean((2, 3)) @ torch.ones(3, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(4, 24, 24), (2, 16, 48), (2, 48, 16), (3, 8, 80)])
def test_singular_values_approach_one(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrices = 37 * u @ torch.diag_embed(torch.linspace(1, 0.1, u.shape[-1])) @ vh
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape
    assert values.min() > 0.6
    assert values.max() < 1.25
    kept = u.mT @ result @ vh.mT  # the singular vectors are kept
    torch.testing.assert_close(kept, torch.diag_embed(kept.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 24, 240), (2, 240, 24)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 0.0])
def test_wide_and_tall_matrices_give_what_the_plain_iteration_gives(shape, smallest):
    generator = torch.Generator().manual_seed(2)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrices = u @ torch.diag_embed(torch.linspace(1, smallest, u.shape[-1])) @ vh
    plain = orthogonalise(matrices, torch.float64)  # of float32 alone are the products with X saved
    torch.testing.assert_close(orthogonalise(matrices).double(), plain, atol=1e-4, rtol=0)


def test_scale_does_not_matter():
    matrices = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalise(matrices * 1000), orthogonalise(matrices))


def test_hidden_matrices_are_separated_from_edge_layers():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    matrices, others = split_parameters(model, ("3.",))
    assert [id(p) for p in matrices] == [id(model[1].weight)]
    wanted = [model[0].weight, model[2].weight, model[2].bias, model[3].weight, model[3].bias]
    assert [id(p) for p in others] == [id(p) for p in wanted]


def test_loss_falls():
    model = network()
    losses = train(model, Muon(*split_parameters(model, ("4.",)), lr=0.02, adam_lr=3e-3), range(60))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_resumed_optimizer_is_bit_equal():
    model = network()
    optimizer = Muon(*split_parameters(model, ("4.",)))
    train(model, optimizer, range(3))
    again = copy.deepcopy(model)
    resumed = Muon(*split_parameters(again, ("4.",)))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    train(again, resumed, range(3, 6))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
