"""The smallest LightningModule, for tests of callbacks: one linear layer of width 4."""

import lightning as L
import torch
from torch import nn


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.learnt = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        return self.learnt(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
