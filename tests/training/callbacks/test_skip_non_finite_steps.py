"""A non-finite loss on any process leaves weights, optimizer and average unchanged on all of them."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision.amp import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from storydiffusion.errors import UserError
from storydiffusion.training import process_group
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.optim.muon import Muon, split_parameters
from tests.helpers.processes import run_processes

NAN, INF, GRADIENT = "nan", "inf", "gradient"


class Module(L.LightningModule):
    """A linear map whose loss is non-finite in the batches `bad` on the process `rank`."""

    def __init__(self, bad: set[int], kind: str = NAN, rank: int = 0, optimizer: str = "adamw") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learnt = nn.Linear(4, 4)
        self.bad, self.kind, self.rank, self.optimizer = bad, kind, rank, optimizer
        self.seen = 0

    def training_step(self, batch, batch_idx):
        loss = self.learnt(batch).square().mean()
        is_bad = self.seen in self.bad and self.global_rank == self.rank
        self.seen += 1
        if is_bad and self.kind == INF:
            return loss + torch.inf  # its gradients are finite
        if is_bad and self.kind == GRADIENT:
            return loss + (self.learnt.weight * 0).abs().sum().sqrt()  # ∞ · 0, though the loss is finite
        return loss * torch.nan if is_bad else loss

    def configure_optimizers(self):
        if self.optimizer == "muon":
            return Muon(*split_parameters(self))
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Watch(L.Callback):
    """Keeps weights, average and optimizer state after each step."""

    def __init__(self, average: EMA) -> None:
        self.average = average
        self.seen: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == len(self.seen):
            return
        tensors = [*pl_module.state_dict().values(), *self.average.average.values()]
        for entry in trainer.optimizers[0].state_dict()["state"].values():
            tensors += [torch.as_tensor(value) for value in entry.values()]
        self.seen.append([tensor.detach().clone() for tensor in tensors])


def fit(module: Module, steps: int = 5, limit: int = 3, **options: Any) -> tuple[SkipNonFiniteSteps, Watch]:
    gradient, agreement = GradientNorm(1.0), StepAgreement()
    guard = SkipNonFiniteSteps(limit, gradient, agreement)
    average = EMA(0.9, guard)
    watch = Watch(average)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[gradient, agreement, guard, average, watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    batches = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    trainer.fit(module, DataLoader(batches, batch_size=4))  # type: ignore[arg-type]  # a tensor is a map-style dataset
    return guard, watch


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def unmoved(watch: Watch) -> list[int]:
    """Return the numbers of the steps, from 1, that changed nothing."""
    pairs = zip(watch.seen, watch.seen[1:], strict=False)
    return [number for number, pair in enumerate(pairs, start=2) if same(*pair)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", [NAN, INF, GRADIENT])
def test_non_finite_step_changes_nothing_and_later_steps_do(kind, optimizer, capfd):
    guard, watch = fit(Module({2, 4}, kind, optimizer=optimizer))
    assert unmoved(watch) == [3, 5]
    assert all(tensor.isfinite().all() for tensor in watch.seen[-1])
    assert (guard.skipped, guard.in_a_row) == (2, 1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert [line.partition(":")[0] for line in lines] == ["skipped step 3", "skipped step 5"]


@pytest.mark.parametrize("bad", [{2}, {3}, {2, 3}], ids=str)
def test_one_non_finite_batch_of_two_skips_the_step(bad):
    _, watch = fit(Module(bad, INF), steps=3, accumulate_grad_batches=2)
    assert unmoved(watch) == [2]


def half() -> MixedPrecision:
    """Return what trainer.precision=16-mixed is on a GPU; by name Lightning would use bfloat16 on the CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


@pytest.mark.parametrize("options", [lambda: {"precision": "bf16-mixed"}, lambda: {"plugins": [half()]}])
def test_mixed_precision_skips_non_finite_steps(options):
    guard, watch = fit(Module({2}), **options())
    assert unmoved(watch) == [3]
    assert guard.skipped == 1


def test_steps_skipped_by_the_gradient_scaler_are_not_counted():
    precision = half()
    guard, watch = fit(Module({1, 2}, GRADIENT), limit=1, plugins=[precision])
    assert guard.skipped == 0
    weights = [seen[0] for seen in watch.seen]
    assert torch.equal(weights[0], weights[2])  # skipped by the scaler
    assert not torch.equal(weights[2], weights[3])
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 1024 / 4


def test_too_many_consecutive_non_finite_steps_abort():
    with pytest.raises(UserError, match=r"step 4 is not finite, 3 times in a row: .*trainer\.max_bad_steps"):
        fit(Module({1, 2, 3, 4}), steps=9)
    guard, _ = fit(Module({1, 2, 4, 5, 7}), steps=9)
    assert guard.skipped == 5


def rank_in_world(rank: int, folder: Path, kind: str, accumulate: int) -> None:
    """Train one of two processes; batch 2 is non-finite on the second one alone."""
    guard, watch = fit(
        Module({2}, kind, rank=1), steps=4, strategy="ddp", devices=2, accumulate_grad_batches=accumulate
    )
    torch.save({"seen": watch.seen, "skipped": guard.skipped}, folder / f"{rank}.pt")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [NAN, INF])
def test_non_finite_loss_on_one_process_skips_the_step_on_all(tmp_path, kind, accumulate):
    assert run_processes(rank_in_world, 2, tmp_path, kind, accumulate) == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for result in results:
        assert result["skipped"] == 1
        watch = Watch(None)  # type: ignore[arg-type]
        watch.seen = result["seen"]
        assert unmoved(watch) == [3 if accumulate == 1 else 2]
    for one, two in zip(results[0]["seen"], results[1]["seen"], strict=True):
        assert same(one, two)


def rank_in_bad_world(rank: int, folder: Path) -> None:
    try:
        fit(Module(set(range(9)), rank=1), steps=9, strategy="ddp", devices=2)
    except UserError as error:
        (folder / f"{rank}.txt").write_text(str(error))
        sys.exit(1)


def test_all_processes_exit_and_the_first_reports_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(process_group, "PATIENCE", 0.5)
    assert run_processes(rank_in_bad_world, 2, tmp_path) == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["0.txt"]
