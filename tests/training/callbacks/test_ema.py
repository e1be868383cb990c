from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.callbacks.stopwatch import Stopwatch


class Module(L.LightningModule):
    """Trains the second of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.learnt = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.learnt(self.frozen(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.learnt.parameters(), lr=0.3)


def fit(callbacks: list[L.Callback], steps: int = 4, accumulate: int = 1, checkpoint: Path | None = None) -> Module:
    module = Module()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    batches = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    trainer.fit(module, DataLoader(batches, batch_size=4))  # type: ignore[arg-type]  # a tensor is a map-style dataset
    if checkpoint:
        trainer.save_checkpoint(checkpoint)
    return module


def test_frozen_weights_are_not_averaged():
    average = EMA(0.999, SkipNonFiniteSteps(1, GradientNorm(), StepAgreement()))
    fit([average])
    assert set(average.average) == {"learnt.weight", "learnt.bias"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_the_running_mean_of_the_weights_after_each_step(accumulate):
    seen: list[torch.Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step > len(seen) - 1:
                seen.append(pl_module.learnt.weight.detach().clone())

        def on_fit_start(self, trainer, pl_module):
            seen.append(pl_module.learnt.weight.detach().clone())

    average = EMA(0.2, SkipNonFiniteSteps(1, GradientNorm(), StepAgreement()))
    fit([average, Watch()], accumulate=accumulate)
    wanted = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        wanted = wanted.lerp(weight, 1 - min(0.2, (1 + step) / (10 + step)))
    assert len(seen) == 5
    torch.testing.assert_close(average.average["learnt.weight"], wanted)


def test_state_survives_saving_and_loading(tmp_path):
    average, stopwatch = EMA(0.999, SkipNonFiniteSteps(1, GradientNorm(), StepAgreement())), Stopwatch()
    fit([average, stopwatch], checkpoint=tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    again, resumed = EMA(0.999, SkipNonFiniteSteps(1, GradientNorm(), StepAgreement())), Stopwatch()
    again.load_state_dict(stored["EMA"])
    resumed.load_state_dict(stored["Stopwatch"])
    assert again.average.keys() == average.average.keys()
    assert all(torch.equal(again.average[name], average.average[name]) for name in average.average)
    assert 0 < resumed.seconds <= stopwatch.seconds


def test_applied_swaps_in_the_average_and_restores_the_weights():
    average = EMA(0.9, SkipNonFiniteSteps(1, GradientNorm(), StepAgreement()))
    module = fit([average])
    own = module.learnt.weight.detach().clone()
    with average.applied(module):
        assert torch.equal(module.learnt.weight, average.average["learnt.weight"])
        assert not torch.equal(module.learnt.weight, own)
    assert torch.equal(module.learnt.weight, own)
    with pytest.raises(KeyError), average.applied(module):
        raise KeyError
    assert torch.equal(module.learnt.weight, own)
