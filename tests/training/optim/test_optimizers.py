"""AdamW is one fused kernel on a GPU, except under float16."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision

from storydiffusion.training.optim.optimizers import build_adamw

PRECISIONS = {
    "32-true": Precision, "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cuda"),
    "16-mixed": lambda: MixedPrecision("16-mixed", "cuda"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.*GradScaler is enabled, but CUDA is not available")
@pytest.mark.parametrize(
    ("device", "precision", "is_fused"),
    [
        ("cuda", "32-true", True), ("cuda", "bf16-mixed", True), ("cuda", "16-mixed", None),
        ("cpu", "32-true", None), ("cpu", "bf16-mixed", None), ("mps", "32-true", None),
    ],
)  # fmt: skip
def test_adamw_is_fused_on_cuda_except_under_float16(make, monkeypatch, device, precision, is_fused):
    module = make("predictor")
    monkeypatch.setattr(L.LightningModule, "device", property(lambda _: torch.device(device)))
    module.trainer = L.Trainer(accelerator="cpu", logger=False, plugins=[PRECISIONS[precision]()])
    optimizer = build_adamw(module, module.recipe)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"] is is_fused
    assert [id(weight) for weight in optimizer.param_groups[0]["params"]] == [id(w) for w in module.trained_weights()]
