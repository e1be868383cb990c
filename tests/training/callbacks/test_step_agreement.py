"""What the processes agree on costs one all-reduce a step."""

import os
from collections import Counter
from pathlib import Path

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.preemption import Preemption
from storydiffusion.training.callbacks.run_checkpoints import RunCheckpoints
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.checkpoint_io import VerifiedCheckpointIO
from tests.helpers.linear_module import Module
from tests.helpers.processes import run_processes

STEPS = 6


class Record(L.Callback):
    """Keeps what the processes have agreed on after each batch."""

    def __init__(self, agreement: StepAgreement) -> None:
        self.agreement = agreement
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_end(self, *_):
        self.seen.append((self.agreement["one"], self.agreement["other"]))


def fit(*callbacks: L.Callback, **options) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, callbacks=list(callbacks), logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, RunCheckpoints) for callback in callbacks),
        plugins=[VerifiedCheckpointIO()], default_root_dir=os.devnull, **options,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(torch.randn(80, 4), batch_size=4))  # type: ignore[arg-type]


def test_the_largest_vote_of_a_step_counts_and_accumulating_batches_have_none():
    agreement = StepAgreement()
    record = Record(agreement)
    agreement.add("one", lambda trainer: trainer.global_step)
    agreement.add("other", lambda trainer: torch.tensor(trainer.global_step == 1))
    fit(agreement, record, accumulate_grad_batches=2)
    assert record.seen == [
        (0, 0),
        (0, 0),
        (0, 0),
        (1, 1),
        (1, 1),
        (2, 0),
        (2, 0),
        (3, 0),
        (3, 0),
        (4, 0),
        (4, 0),
        (5, 0),
    ]


def rank_that_votes(number: int, folder: Path) -> None:
    agreement = StepAgreement()
    record = Record(agreement)
    agreement.add("one", lambda trainer: 3 - number)
    agreement.add("other", lambda trainer: number if trainer.global_step == 2 else 0)
    fit(agreement, record, strategy="ddp", devices=2)
    torch.save(record.seen, folder / f"{number}.pt")


def test_two_processes_agree_on_the_larger_vote(tmp_path):
    assert run_processes(rank_that_votes, 2, tmp_path) == [0, 0]
    for number in range(2):
        assert torch.load(tmp_path / f"{number}.pt") == [(3, 0), (3, 0), (3, 1), (3, 0), (3, 0), (3, 0)]


def rank_that_counts(number: int, folder: Path) -> None:
    agreement, gradient = StepAgreement(), GradientNorm(1.0)
    guard = SkipNonFiniteSteps(3, gradient, agreement)
    checkpoints = RunCheckpoints(folder / "checkpoints", 60, agreement)
    counts: list[Counter] = []

    class Watch(L.Callback):
        """Counts the collective operations from one batch to the next."""

        def __init__(self) -> None:
            self.profiler = profile(activities=[ProfilerActivity.CPU])

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:  # DDP has arranged its buckets
                self.profiler.start()
            if batch_idx == STEPS - 1:
                self.profiler.stop()
                names = [event.name for event in self.profiler.events() if event.name.startswith("gloo:")]
                counts.append(Counter(names))

    preemption = Preemption(checkpoints.save, False, agreement)
    fit(Watch(), gradient, agreement, guard, EMA(0.9, guard), preemption, checkpoints, strategy="ddp", devices=2)
    torch.save(dict(counts[0]), folder / f"{number}.pt")


def test_a_step_has_one_collective_operation_beside_that_of_its_gradients(tmp_path):
    assert run_processes(rank_that_counts, 2, tmp_path) == [0, 0]
    steps = STEPS - 3
    for number in range(2):  # the broadcast is Lightning's own, of a flag for SIGTERM
        assert torch.load(tmp_path / f"{number}.pt") == {"gloo:all_reduce": 2 * steps, "gloo:broadcast": steps}
