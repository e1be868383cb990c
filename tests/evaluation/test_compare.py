"""The command `compare`, on results written by hand whose means, differences and faults are known."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from storydiffusion.config.sweep import planned_sweep
from storydiffusion.errors import UserError
from storydiffusion.evaluation.compare import compare_jobs
from storydiffusion.evaluation.result import MetricValues, Result, save_result
from tests.conftest import Outcome, run_verb

SETTINGS = {"seed": 0, "csa.rate": 0.0, "model.weights.unet": "abc"}
ITEMS = "abcdefghijklmnopqrst"
VALUES = {"0": [0.1, 0.2, 0.3], "0.5": [0.3, 0.5, 0.4], "1": [0.6, 0.7, 0.8]}


def plan(
    folder: Path, *overrides: str, params: dict[str, str] | None = None, shared: tuple[str, ...] = (), **more
) -> None:
    """Write multirun.yaml as Hydra does, from an experiment's params and the command line's overrides."""
    folder.mkdir(parents=True, exist_ok=True)
    hydra = {
        "sweeper": {"params": params},
        "overrides": {"task": list(overrides)},
        "job": {"config": {"override_dirname": {"exclude_keys": list(shared)}}},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra, **more}))


def write(folder: Path, values: list[float | None], names: str = "abc", **settings) -> None:
    metrics = {"place_error": MetricValues([1 - (v or 0) for v in values]), "consistency": MetricValues(values)}
    save_result(Result(list(names), metrics, {**SETTINGS, **settings}, ["Of a small model."]), folder)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three rates, written in another order than planned."""
    folder = tmp_path / "ablation"
    plan(folder, "experiment=x", params={"csa.rate": "0,0.5,1"}, shared=("experiment",))
    for rate in ("1", "0", "0.5"):
        write(folder / f"csa.rate={rate}", VALUES[rate], **{"csa.rate": float(rate)})
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Call the command in this process."""

    return lambda *overrides: run_verb("compare", overrides, capsys)


def rows(table: str, metric: str = "consistency ↑") -> list[list[str]]:
    """Return the cells of a metric's table, below its header."""
    lines = table.split(f"**{metric}**")[1].split("**")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_means_differences_and_significance_are_those_by_hand(command, sweep):
    outcome = command(f"sweep={sweep}")
    assert outcome.code == 0, outcome.err
    table = (sweep / "table.md").read_text()
    assert outcome.out.strip() == table.strip()
    assert rows(table) == [
        ["0", "0.200 ± 0.058", "–", "–", "3"],
        ["0.5", "0.400 ± 0.058", "+0.200 ± 0.058", "0.074", "3"],  # differences 0.2, 0.3, 0.1: t = 3.464 of 2 degrees
        ["1", "0.700 ± 0.058", "+0.500 ± 0.000", "< 0.001", "3"],
    ]
    assert rows(table, "place error ↓")[1][2] == "-0.200 ± 0.058"
    assert table.index("**consistency ↑**") < table.index("**place error ↓**"), "in the order of the registry"
    assert table.count("Of a small model.") == 1
    found = json.loads((sweep / "comparison.json").read_text())
    assert found["metrics"]["consistency"]["jobs"]["csa.rate=0.5"]["difference"]["p_value"] == pytest.approx(
        0.0742, abs=1e-4
    )
    assert (sweep / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_baseline_and_folder(command, sweep, tmp_path):
    assert command(f"sweep={sweep}", "baseline_job=csa.rate=1", f"out={tmp_path}/out").code == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert rows(table)[0][2] == "-0.500 ± 0.000"
    assert not (sweep / "table.md").exists()
    outcome = command(f"sweep={sweep}", "baseline_job=csa.rate=2")
    assert outcome.code == 1
    assert "Choose one of csa.rate=0; " in outcome.err


def test_items_are_paired_by_name(sweep):
    write(sweep / "csa.rate=0.5", [0.4, 0.3, None, 0.9], "bacd", **{"csa.rate": 0.5})
    difference = compare_jobs(sweep).get_cell("consistency", "csa.rate=0.5").difference
    assert difference is not None
    assert (difference.count, difference.mean) == (2, pytest.approx(((0.4 - 0.2) + (0.3 - 0.1)) / 2))


def test_a_metric_that_an_item_lacks_is_compared_over_the_other_pairs(sweep):
    write(sweep / "csa.rate=0", [0.2, 0.4, None], **{"csa.rate": 0.0})
    write(sweep / "csa.rate=0.5", [0.5, 0.8, 0.9], **{"csa.rate": 0.5})
    cell = compare_jobs(sweep).get_cell("consistency", "csa.rate=0.5")
    assert cell.mean is not None
    assert cell.difference is not None
    assert (cell.mean.count, cell.difference.count) == (3, 2)
    assert cell.difference.mean == pytest.approx(0.35)


def test_small_differences_of_noisy_items_are_found_by_pairing(tmp_path):
    rng = random.Random(0)
    clips = [rng.random() for _ in range(20)]
    plan(tmp_path, "benchmark.method=predictor,cross-fade")
    write(tmp_path / "benchmark.method=predictor", list(clips), ITEMS)
    write(tmp_path / "benchmark.method=cross-fade", [clip + 0.1 + 0.01 * rng.random() for clip in clips], ITEMS)
    difference = compare_jobs(tmp_path).get_cell("consistency", "benchmark.method=cross-fade").difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.105, abs=0.005)
    assert difference.p_value < 1e-9


def test_values_of_two_networks_are_not_compared(tmp_path):
    plan(tmp_path, "seed=1,2")
    for seed, network in ((1, "one"), (2, "another")):
        metrics = {"clip_score": MetricValues([0.1 * seed, 0.3], network)}
        save_result(Result(["a", "b"], metrics, {"seed": seed}), tmp_path / f"seed={seed}")
    cell = compare_jobs(tmp_path).get_cell("clip_score", "seed=2")
    assert cell.mean is not None
    assert cell.difference is None


def test_items_in_groups_get_a_table_of_their_means(command, tmp_path):
    plan(tmp_path, "benchmark.method=predictor,truth")
    for job, errors in (("predictor", [0.1, 0.3, 0.5, 0.7]), ("truth", [0.0, 0.0, 0.0, 0.0])):
        metrics = {"perceptual_error": MetricValues(list(errors)), "place_error": MetricValues([0.2, None, 0.4, None])}
        groups = ["jumping", "travelling"] * 2
        result = Result(list("abcd"), metrics, {}, [], groups)
        save_result(result, tmp_path / f"benchmark.method={job}")
    assert command(f"sweep={tmp_path}").code == 0
    table = (tmp_path / "table.md").read_text().split("Means by group")[1]
    assert "| jumping | perceptual error ↓ | 2 | 0.300 | 0.000 |" in table
    assert "| travelling | perceptual error ↓ | 2 | 0.500 | 0.000 |" in table
    assert "| jumping | place error ↓ | 2 | 0.300 | 0.300 |" in table
    assert "| travelling | place error" not in table


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda job: (job / "result.json").unlink(), "is missing: it did not start"),
        (lambda job: (job / "result.json").rename(job / "records.json"), "is missing: it started but did not finish"),
        (lambda job: (job / "result.json").write_text("{"), "is missing: its result.json cannot be read"),
    ],
)
def test_a_job_without_result_is_named_and_nothing_is_averaged_over_it(command, sweep, fault, said):
    fault(sweep / "csa.rate=0.5")
    outcome = command(f"sweep={sweep}")
    assert outcome.code == 1
    assert f"csa.rate=0.5 {said}" in outcome.err
    assert outcome.err.count("\n") == 1
    table = (sweep / "table.md").read_text()
    assert rows(table)[1] == ["0.5", "missing", "–", "–", "–"]
    assert rows(table)[2][1] == "0.700 ± 0.058"
    assert f"**0.5 {said}.**" in table
    assert "csa.rate=0.5" in json.loads((sweep / "comparison.json").read_text())["missing"]


def test_without_the_baseline_there_are_no_differences(command, sweep):
    (sweep / "csa.rate=0" / "result.json").unlink()
    assert command(f"sweep={sweep}").code == 1
    assert [row[2] for row in rows((sweep / "table.md").read_text())] == ["–"] * 3


def test_a_job_of_other_settings_is_named(command, sweep):
    write(sweep / "csa.rate=0.5", VALUES["0.5"], seed=7, **{"csa.rate": 0.5})
    outcome = command(f"sweep={sweep}")
    assert outcome.code == 1
    assert "csa.rate=0.5 was measured with seed 7, the others 0" in outcome.err
    assert "**0.5 was measured with seed 7, the others 0.**" in (sweep / "table.md").read_text()


def test_settings_below_a_swept_group_may_differ(tmp_path):
    plan(tmp_path, "csa=off,eq2")
    for name in ("off", "eq2"):
        write(tmp_path / f"csa={name}", VALUES["0"], **{"csa.variant": name})
    comparison = compare_jobs(tmp_path)
    assert not comparison.deviating
    assert list(comparison.labels.values()) == ["off", "eq2"]


def test_weights_may_differ_between_trainings_and_nowhere_else(tmp_path):
    for folder, more in ((tmp_path / "trainings", {"recipe": {}}), (tmp_path / "stories", {})):
        plan(folder, "predictor.layers=0,1", **more)
        for layers in "01":
            write(folder / f"predictor.layers={layers}", VALUES["0"], **{"model.weights.predictor": layers})
    assert not compare_jobs(tmp_path / "trainings").deviating
    assert set(compare_jobs(tmp_path / "stories").deviating) == {"predictor.layers=1"}


def test_a_training_that_was_not_measured_is_named(tmp_path):
    plan(tmp_path, "predictor.layers=0,1", recipe={})
    write(tmp_path / "predictor.layers=0", VALUES["0"])
    (tmp_path / "predictor.layers=1" / "export").mkdir(parents=True)
    assert "experiment=trained" in compare_jobs(tmp_path).missing["predictor.layers=1"]


def test_jobs_of_an_earlier_sweep_in_the_same_folder_are_compared_in_their_place(sweep):
    plan(sweep, "experiment=x", "csa.rate=0,1", params={"csa.rate": "0,0.5,1"}, shared=("experiment",))
    assert list(compare_jobs(sweep).labels.values()) == ["0", "0.5", "1"]


def test_a_plan_is_expanded_as_hydra_does(tmp_path):
    plan(
        tmp_path, "experiment=x", "steps=2", "csa.rate={1:0.5,2:0.5},0", "run_dir=there",
        params={"csa.rate": "0.1,0.2", "csa.sampler": "uniform,progressive"},
        shared=("experiment", "steps"),
    )  # fmt: skip
    planned = planned_sweep(tmp_path)
    assert planned.keys == ("csa.rate", "csa.sampler")
    assert planned.jobs == (
        "csa.rate={1:0.5,2:0.5},csa.sampler=uniform",
        "csa.rate={1:0.5,2:0.5},csa.sampler=progressive",
        "csa.rate=0,csa.sampler=uniform",
        "csa.rate=0,csa.sampler=progressive",
    )


@pytest.mark.parametrize("content", [None, "", "{", "hydra: {}", "hydra: {sweeper: {params: {a: '('}}}"])
def test_a_folder_that_is_not_a_sweep_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "multirun.yaml").write_text(content)
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        compare_jobs(tmp_path)


def test_a_sweep_without_any_result_is_refused(command, tmp_path):
    plan(tmp_path, "seed=1,2")
    outcome = command(f"sweep={tmp_path}")
    assert outcome.code == 1
    assert "seed=1 is missing: it did not start; seed=2" in outcome.err
    assert not (tmp_path / "table.md").exists()
    assert "sweep has no value" in command().err
