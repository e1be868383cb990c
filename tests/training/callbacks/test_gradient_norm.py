"""The norm of the gradient, and clipping to the last bit as PyTorch's `clip_grad_norm_`."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from storydiffusion.training.callbacks.gradient_norm import GradientNorm


class Module(L.LightningModule):
    def __init__(self, batch: torch.Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learnt = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2).requires_grad_(False))
        self.batch = batch
        self.gradients: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        return self.learnt(self.batch).square().sum()

    def on_before_optimizer_step(self, optimizer):
        """Run after the callbacks."""
        self.gradients = [weight.grad.clone() for weight in self.parameters() if weight.grad is not None]

    def configure_optimizers(self):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.SGD([{"params": weights[2:]}, {"params": weights[:2]}], lr=0.1)


@pytest.mark.parametrize("largest", [None, 1e-3, 1e6])
def test_norm_is_that_before_clipping_and_clipping_is_pytorchs(largest):
    batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    callback, module = GradientNorm(largest), Module(batch)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(1)))  # type: ignore[arg-type]
    other = Module(batch)
    other.training_step(None, 0).backward()
    weights = list(other.parameters())
    norm = clip_grad_norm_([*weights[2:4], *weights[:2]], largest or torch.inf)
    assert torch.equal(callback.norm, norm)
    for gradient, weight in zip(module.gradients, weights[:4], strict=True):
        assert torch.equal(gradient, weight.grad)
