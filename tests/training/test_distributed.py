"""The strategies of trainings in several processes."""

import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from storydiffusion.errors import UserError
from storydiffusion.training.distributed import build_strategy
from tests.helpers.linear_module import Module
from tests.helpers.processes import run_processes
from tests.helpers.video_model import composed

TWO = ("trainer=cpu", "trainer.devices=2", "trainer.strategy=ddp")


class CompareStorages(L.Callback):
    """Ends the process with code 3 unless all gradients lie in one buffer, that of their all-reduce."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [weight.grad for weight in pl_module.parameters()]
        if len({gradient.untyped_storage().data_ptr() for gradient in gradients}) != 1:
            sys.exit(3)


def rank(number: int, strategy: DDPStrategy) -> None:
    trainer = L.Trainer(
        accelerator="cpu", strategy=strategy, devices=2, max_steps=2, callbacks=[CompareStorages()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(torch.randn(16, 4), batch_size=4))  # type: ignore[arg-type]


def test_gradients_are_views_of_the_buffers_that_the_processes_sum():
    strategy = build_strategy(composed(*TWO).trainer)
    assert isinstance(strategy, DDPStrategy)
    assert run_processes(rank, 2, strategy) == [0, 0]


@pytest.mark.parametrize("has_unused", [False, True])
def test_unused_weights_are_looked_for_only_where_there_are_some(has_unused):
    strategy = build_strategy(composed(*TWO).trainer, has_unused)
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "find_unused_parameters": has_unused}


def test_one_process_has_no_strategy_unless_it_is_asked_for():
    assert build_strategy(composed("trainer=cpu").trainer) == "auto"
    assert isinstance(build_strategy(composed("trainer=cpu", "trainer.strategy=ddp").trainer), DDPStrategy)
    assert isinstance(build_strategy(composed("trainer=cpu", "trainer.nodes=2").trainer), DDPStrategy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpus_that_there_are_not_are_named(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for trainer, mend in (("gpu", "use trainer=cpu"), ("deepspeed", "use trainer=ddp")):
        with pytest.raises(UserError, match=mend):
            build_strategy(composed(f"trainer={trainer}", "recipe.optimizer=adamw").trainer)
