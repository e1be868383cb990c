"""A classifier's torch file becomes a probe with the same logits; anything else is refused in one sentence."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from storydiffusion.models.emotion_probe import load_probe
from tests.conftest import Outcome, run_verb


class Classifier(torch.nn.Module):
    """The layout of EmoGen's classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(768, 8)

    def forward(self, x):
        return self.fc(x)


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Outcome]:
    """Save the content of a torch file and convert it to probe.safetensors, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(content: object, *overrides: str) -> Outcome:
        torch.save(content, "best.pth")
        return run_verb("convert-emotion-probe", ["state=best.pth", "out=probe.safetensors", *overrides], capsys)

    return run


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"module": s}])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_converted_classifier_has_the_same_logits(convert, wrap, normalize):
    torch.manual_seed(0)
    classifier, features = Classifier(), torch.randn(5, 768) * 10
    outcome = convert(wrap(classifier.state_dict()), *(["normalize=true"] if normalize else []))
    assert outcome.code == 0, outcome.err
    assert "768 channels" in outcome.out
    probe = load_probe(Path("probe.safetensors"))
    assert (probe.features, probe.normalize, probe.accuracy) == ("pooled", normalize, {})
    read = torch.nn.functional.normalize(features, dim=-1) if normalize else features
    with torch.no_grad():
        np.testing.assert_allclose(probe.logits(features.numpy()), classifier(read).numpy(), atol=1e-4)


def test_half_precision_is_read_in_float32(convert):
    assert convert(Classifier().half().state_dict()).code == 0
    assert load_probe(Path("probe.safetensors")).weight.shape == (8, 768)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Classifier(), "is not a file of tensors"),  # a module, which is code
        ({}, "holds no tensors"),
        ([1, 2], "holds no tensors"),
        (torch.nn.Linear(768, 7).state_dict(), "weight (7, 768)"),
        (torch.nn.Linear(768, 8, bias=False).state_dict(), "weight (8, 768)"),
        (torch.nn.Sequential(torch.nn.Linear(9, 768), torch.nn.Linear(768, 8)).state_dict(), "0.weight (768, 9)"),
        (OrderedDict(weight=torch.full((8, 4), torch.nan), bias=torch.zeros(8)), "not finite"),
    ],
)
def test_what_is_not_one_linear_layer_is_refused_and_nothing_is_written(convert, content, said):
    outcome = convert(content)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err
    assert not Path("probe.safetensors").exists()


def test_damaged_and_missing_files_and_names_are_refused(convert, capsys):
    assert convert(Classifier().state_dict()).code == 0
    written = Path("probe.safetensors").read_bytes()
    assert "already exists" in convert(torch.nn.Linear(4, 8).state_dict()).err
    assert Path("probe.safetensors").read_bytes() == written
    assert convert(torch.nn.Linear(4, 8).state_dict(), "overwrite=true").code == 0
    Path("cut.pth").write_bytes(Path("best.pth").read_bytes()[:100])
    for arguments, said in (
        (["state=cut.pth", "out=a.safetensors"], "cut.pth is not a file of tensors"),
        (["state=no.pth", "out=a.safetensors"], "no.pth"),
        (["state=best.pth", "out=a.pth"], "out=a.pth must end in .safetensors"),
    ):
        outcome = run_verb("convert-emotion-probe", arguments, capsys)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        assert said in outcome.err
