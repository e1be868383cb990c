"""The command that updates RESULTS.md: on finished sweeps, and on a real one of the tiny model."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storydiffusion.commands import reproduce
from storydiffusion.evaluation.metrics.registry import PROMPTED_ATTRIBUTES
from storydiffusion.evaluation.result import MetricValues, Result, save_result
from storydiffusion.loaders.resolve import read_edition
from storydiffusion.loaders.sources import find_model_folder
from tests.conftest import Outcome, run_verb
from tests.evaluation.test_compare import plan
from tests.helpers.world_model import build_mood_model, build_world_model

EDITION = read_edition(find_model_folder("package://miniature", None))
RATES = {"0": 0.1, "0.1": 0.2, "0.3": 0.3, "0.5": 0.5, "0.7": 0.6, "1": 0.7}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Outcome]:
    """Call the command in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    return lambda *overrides: run_verb("reproduce", overrides, capsys)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sweep over rates, already finished; infer.py is replaced and does nothing."""
    folder = tmp_path / "runs" / "results" / "sampling_rate"
    plan(folder, "experiment=x", params={"csa.rate": ",".join(RATES)}, shared=("experiment",))
    for rate, mean in RATES.items():
        job = folder / f"csa.rate={rate}"
        aligned = {name: MetricValues([1.0, 1.0, 1.0]) for name in ("alignment", *PROMPTED_ATTRIBUTES)}
        values = {"consistency": MetricValues([mean, 1.02 * mean, 0.99 * mean]), **aligned}
        save_result(Result(list("abc"), values, {"csa.rate": rate}, ["Of a small model."]), job)
        (job / "records.json").write_text(json.dumps({"settings": {}, "records": [{"seconds": 20.0}] * 3}))
    monkeypatch.setattr(
        reproduce.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0)
    )  # infer.py itself: the last test
    return folder


def test_sections_are_updated_and_the_others_stay(command, measured):
    outcome = command("claims=[sharing,sampling_rate]")
    assert outcome.code == 0, outcome.err
    document = Path("RESULTS.md").read_text()
    sharing = document.split("<!-- measured: sharing -->")[1].split("<!-- end -->")[0]
    assert sharing.strip().startswith("**Reproduced.** Sharing at rate 0.5 changes consistency by +40.1 ± 0.4 points")
    assert "| consistency ↑ (n 3) | 0.100 ± 0.001 | 0.502 ± 0.004 |" in sharing
    assert "| consistency, minus 0 | – | +0.401 ± 0.004 |" in sharing
    assert "| consistency, p | – | < 0.001 |" in sharing
    assert "![sharing](results/sharing.png)" in sharing
    assert sharing.rstrip().endswith("Of a small model.")
    summary = document.split("<!-- measured: summary -->")[1].split("<!-- end -->")[0]
    assert f"| sampling_rate | reproduced | {EDITION} |" in summary
    assert f"the model draws StoryWorld's edition {EDITION}; claims: sharing, sampling_rate\n" in outcome.out
    assert "The jobs took 6 minutes in total" in summary
    assert "| anchor_panels |" not in summary
    assert Path("results/sampling_rate.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_is_compared_with_the_first(command, measured):
    assert "two standard errors" not in command("claims=[sharing]").out
    again = command("claims=[sharing]").out
    assert "sharing: 10 of 10 means lie within two standard errors of the earlier ones" in again
    job = measured / "csa.rate=0.5"
    content = json.loads((job / "result.json").read_text())
    content["metrics"]["consistency"]["values"] = [0.55, 0.55, 0.57]
    (job / "result.json").write_text(json.dumps(content))
    outcome = command("claims=[sharing]")
    assert "9 of 10 means" in outcome.out
    assert "not consistency of csa.rate=0.5 0.502 → 0.557" in outcome.out


def test_a_claim_with_a_missing_job_is_not_judged(command, measured):
    (measured / "csa.rate=0.7" / "result.json").unlink()
    outcome = command("claims=[sampling_rate]")
    assert outcome.code == 1
    assert "csa.rate=0.7 is missing: it started but did not finish" in outcome.err
    assert "Run the same command again" in outcome.err
    assert not Path("RESULTS.md").exists()


def test_an_empty_sweep_does_not_prevent_other_verdicts(command, measured):
    outcome = command("claims=[sampling_rate,anchor_panels]")
    assert outcome.code == 1
    assert "runs/results/anchor_panels contains no multirun.yaml" in outcome.err
    assert f"sampling_rate, edition {EDITION}: reproduced" in outcome.out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("claims=[none]", "Choose from sharing, sampling_rate"),
        ("most=1", "most=1"),
        ("claims=[dit_blocks]", "claims=dit_blocks is about a model with a transformer, but this one has a unet"),
        ("overrides=[model.path=/no/such/folder]", "/no/such/folder"),
    ],
)
def test_bad_input_ends_in_one_sentence(command, override, said):
    outcome = command(override)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err


def test_a_claim_about_another_edition_is_refused(command, tmp_path, capsys):
    model = build_world_model(tmp_path / "model", 1)
    (model / "storydiffusion.json").write_text('{"kind": "miniature", "edition": 1}')
    capsys.readouterr()  # progress of writing the model
    outcome = command("claims=[moods]", f"overrides=[model.path={model}]")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "claims=moods is about StoryWorld's edition 2, but the model draws edition 1" in outcome.err


def test_a_file_of_numbers_without_an_edition_is_of_the_first(command, measured):
    assert command("claims=[sharing]").code == 0
    file = Path("results/sharing.json")
    content = json.loads(file.read_text())
    assert content.pop("edition") == EDITION
    file.write_text(json.dumps(content))
    assert command("claims=[sampling_rate]").code == 0
    assert "| sharing | reproduced | 1 |" in Path("RESULTS.md").read_text()


@pytest.mark.slow
def test_claims_of_the_second_edition_are_measured_on_its_model(command, tmp_path):
    model = build_world_model(tmp_path / "model", 2)
    small = f"overrides=[model.path={model},model.device=cpu,model.video=null,steps=1]"
    outcome = command("claims=[keeping_two]", "most=2", small)
    assert outcome.code == 0, outcome.err
    assert "the model draws StoryWorld's edition 2; claims: keeping_two\n" in outcome.out
    document = Path("RESULTS.md").read_text()
    assert "| keeping_two | " in document
    assert "2 frozen stories of 4 panels and 2 characters" in document
    assert json.loads(Path("results/keeping_two.json").read_text())["edition"] == 2


def test_a_claim_is_measured_by_infer_from_scratch(command, tmp_path):
    model = build_world_model(tmp_path / "model")
    shutil.rmtree(model / "attribute_classifier")
    shutil.copytree(
        find_model_folder("package://miniature", None) / "attribute_classifier", model / "attribute_classifier"
    )
    small = f"overrides=[model.path={model},model.device=cpu,model.video=null,steps=1,benchmark.batch=2]"
    outcome = command("claims=[sampler]", "most=2", small)
    assert outcome.code == 0, outcome.err
    document = Path("RESULTS.md").read_text()
    assert "| csa.rate, csa.sampler | 0.25 uniform | 0.3333 uniform |" in document
    assert "(n 2)" in document
    assert set(json.loads(Path("results/sampler.json").read_text())["seconds"]) == {
        f"csa.rate={rate},csa.sampler={sampler}"
        for rate in ("0.25", "0.3333")
        for sampler in ("uniform", "progressive")
    }


@pytest.mark.slow
def test_emotions_are_measured_on_a_model_that_draws_moods(command, tmp_path):
    model = build_mood_model(tmp_path / "model")
    small = f"overrides=[model.path={model},model.device=cpu,model.video=null,steps=1,benchmark.batch=2]"
    outcome = command("claims=[emotion]", "most=2", small)
    assert outcome.code == 0, outcome.err
    document = Path("RESULTS.md").read_text()
    section = document.split("<!-- measured: emotion -->")[1].split("<!-- end -->")[0]
    assert "| Emo-Score ↑ (n 2) |" in section
    assert "| Emo-Score, minus neutral uniform |" in section
    assert "accuracy on held-out images is, in %: one character 75.0" in section
