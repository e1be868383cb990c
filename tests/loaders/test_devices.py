"""The device and the dtype that `model.device` and `model.dtype` stand for."""

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from tests.loaders.test_text_to_image import config


@pytest.fixture(params=[True, False], ids=["MPS", "no MPS"])
def has_mps(request, monkeypatch) -> bool:
    """Let torch find an MPS device, or none, and no GPU of another kind."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return request.param


def test_mps_is_used_where_it_is_asked_for_and_available(tiny_model, has_mps):
    model = resolve_model(config(tiny_model, device="mps", dtype="float16"))
    if has_mps:
        assert model.device == torch.device("mps")
        assert model.dtype == torch.float16
    else:
        with pytest.raises(UserError) as error:
            _ = model.device
        assert str(error.value) == (
            "model.device=mps, but torch finds no MPS device on this machine: set model.device=cpu"
        )


def test_auto_is_never_mps(tiny_model, has_mps):
    model = resolve_model(config(tiny_model, device="auto", dtype="auto"))
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("mps", "auto", torch.float32), ("mps", "bfloat16", torch.bfloat16), ("cpu", "auto", torch.float32)],
)
def test_the_dtype_is_float32_unless_it_is_given(tiny_model, monkeypatch, device, dtype, expected):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_model(config(tiny_model, device=device, dtype=dtype)).dtype == expected


def test_mps_takes_no_offloaded_networks(tiny_model):
    with pytest.raises(UserError, match=r"model\.offload=model needs model\.device=cuda: set model\.offload=none"):
        config(tiny_model, device="mps", offload="model")


def test_a_run_without_the_device_ends_in_one_sentence(generate_story, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    outcome = generate_story("model.device=mps", "run_dir=run")
    assert outcome.code == 1
    assert outcome.sentences == [
        "infer.py: model.device=mps, but torch finds no MPS device on this machine: set model.device=cpu"
    ]
    assert not list((tmp_path / "run").glob("panels/*"))
