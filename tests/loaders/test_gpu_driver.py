"""A card that nvidia-smi sees and torch does not is never ignored in silence."""

import os
import stat
from pathlib import Path

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.loaders.devices import choose_device
from storydiffusion.loaders.gpu_driver import check_gpu_driver
from storydiffusion.training.distributed import build_strategy
from tests.helpers.video_model import composed

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(), reason="needs a torch for CUDA on a machine without a GPU"
)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Return a function that puts an nvidia-smi with this answer and exit code first in the path."""

    def make(answer: str, code: int = 0) -> Path:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return program

    return make


OLD = "NVIDIA A100-SXM4-80GB, 470.57.02\\nNVIDIA A100-SXM4-80GB, 470.57.02\\n"


def test_an_old_driver_is_named_with_the_one_that_is_needed(nvidia_smi):
    nvidia_smi(OLD)
    needed = r"A100.*470\.57\.02, but torch .* finds no GPU: install driver \d{3}\.\S+ or .*model\.device=cpu"
    with pytest.raises(UserError, match=needed):
        choose_device("auto", "model.device")
    with pytest.raises(UserError, match="trainer=cpu"):
        build_strategy(composed("trainer=gpu").trainer)
    assert choose_device("cpu", "model.device").type == "cpu"
    assert build_strategy(composed("trainer=cpu").trainer) == "auto"


def test_a_new_driver_whose_card_is_out_of_reach_is_another_fault(nvidia_smi):
    nvidia_smi("NVIDIA H200, 999.1\\n")
    with pytest.raises(UserError, match=r"H200 with driver 999\.1.*check CUDA_VISIBLE_DEVICES"):
        check_gpu_driver("device=cpu")


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_hidden_cards_are_meant(nvidia_smi, monkeypatch, hidden):
    nvidia_smi(OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check_gpu_driver("device=cpu")


@pytest.mark.parametrize(("answer", "code"), [("", 0), ("NVIDIA-SMI has failed\\n", 9)])
def test_no_card_is_no_fault(nvidia_smi, answer, code):
    nvidia_smi(answer, code)
    check_gpu_driver("device=cpu")
