"""The scripts in benchmarks/ run at tiny size; their figures are no concern here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import in_child

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_gpu_script_measures_every_section_at_tiny_size(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--size", "tiny", "--device", "cpu", "--out", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    sections = report["sections"]
    assert list(sections) == [
        "parity", "layers", "stories", "shares", "compile", "vae", "training", "collectives", "deepspeed", "checkpoint",
    ]  # fmt: skip
    assert all(section["rows"] for section in sections.values())
    parity = sections["parity"]["rows"]
    assert [row["dtype"] for row in parity] == ["float16", "bfloat16"]
    assert all(row["finite"] and row["relative error"] < 0.1 for row in parity)
    assert all(row["largest difference"] < 0.05 for row in sections["layers"]["rows"])
    for row in sections["shares"]["rows"]:
        assert abs(row["attention"] + row["gather"] + row["rest"] - 1) < 1e-6
        assert (row["gather"] > 0) == (row["csa"] != "off")
    assert sections["collectives"]["rows"][0]["right"]
    assert sections["training"]["rows"][0]["TFLOP"] > 0
    deepspeed = sections["deepspeed"]["rows"][0]
    assert deepspeed.get("ms a step", 0) > 0 or "not installed" in deepspeed["skipped"]
    met = {row["goal"]: row["met"] for row in report["goals"]["rows"]}
    assert [type(each) for each in met.values()] == [bool, bool, type(None)]  # a CPU has no peak to compare with
    assert all(section["title"] in (tmp_path / "gpu.md").read_text() for section in sections.values())


@in_child
def test_a_goal_is_judged_by_its_worst_figure():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu import judge_goals

    layers = [{"panels": 4, "ours/ideal": 1.0, "dense/ours": 2.0}, {"panels": 8, "ours/ideal": 1.2, "dense/ours": 5.0}]
    rows = judge_goals({"layers": {"rows": layers}})["rows"]
    assert [(row["found"], row["met"]) for row in rows] == [(1.2, False), (5.0, True), (None, None)]


@in_child
def test_a_spent_budget_is_said_in_the_table():
    """A section that starts no row at all for want of time."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu_context import SIZES, Context
    from gpu_images import measure_vae

    context = Context(SIZES["tiny"], torch.device("cpu"), torch.float32, Path(), -1.0)
    measure_vae(context)
    assert context.rows == [{"images": 1, "skipped": "the section's -1 s are spent"}]


@in_child
def test_regions_are_timed_and_judged():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import regions

    regions.main(["--steps", "2", "--size", "64", "--repeats", "1", "--device", "cpu"])
    whole = dict.fromkeys(regions.SETTINGS, 1.0)
    *_, characters, isolated, places = regions.describe({**whole, "with isolation": 1.25, "with places": 1.26})
    assert characters == "regions of characters: 1.00 × whole panels, within 1.25 ×"
    assert isolated == "with isolation: 1.25 × whole panels, within 1.25 ×"
    assert places == "with places: 1.26 × whole panels, ABOVE 1.25 ×"
