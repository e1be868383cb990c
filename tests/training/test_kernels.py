"""`trainer.kernels=fast` alone chooses kernels whose last digits differ between runs."""

from collections.abc import Iterator

import pytest
import torch

from storydiffusion.training.build_training import build_training
from tests.helpers.video_model import composed, overrides


@pytest.fixture(autouse=True)
def _restore_kernels() -> Iterator[None]:
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


def test_fast_kernels_are_chosen_by_their_key_and_a_later_training_is_exact_again(tiny_video_model, cache, tmp_path):
    for kernels in ("exact", "fast", "exact"):
        given = (*overrides(tiny_video_model, cache), f"run_dir={tmp_path}", f"trainer.kernels={kernels}")
        run = build_training(composed(*given))
        is_fast = kernels == "fast"
        assert torch.backends.cudnn.benchmark is is_fast
        assert torch.get_float32_matmul_precision() == ("high" if is_fast else "highest")
        for network in (run.module.video_unet, run.module.vae):
            weights = [weight for weight in network.parameters() if weight.ndim == 4 and min(weight.shape[1:3]) > 1]
            assert weights
            assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights} == {is_fast}


@pytest.mark.parametrize(
    ("trainer", "kernels"),
    [("auto", "exact"), ("cpu", "exact"), ("gpu", "fast"), ("ddp", "fast"), ("deepspeed", "fast")],
)
def test_trainers_of_gpus_are_fast_and_others_exact(trainer, kernels):
    assert composed(f"trainer={trainer}", "recipe.optimizer=adamw").trainer.kernels == kernels
