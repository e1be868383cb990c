"""What a refactoring must not change: to the last bit where a file was recorded on such a machine, else roughly."""

import json
from typing import Any

import pytest

from tests.golden.outputs import file_of, fingerprint, record


def recorded(name: str) -> dict[str, Any]:
    return json.loads(file_of(name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["key_order", "results"])
def test_what_depends_on_no_processor_is_as_recorded(name):
    assert record(name)["outputs"] == recorded(name)["outputs"]


@pytest.mark.slow
def test_pixels_of_stories_are_as_recorded():
    golden = recorded("stories")
    if golden["fingerprint"] != fingerprint():
        pytest.skip("recorded on another processor or with other libraries: pixels may differ in the last bits")
    assert record("stories")["outputs"] == golden["outputs"]


def close_to(values: list[float | None]) -> list[Any]:
    """Return what equals values within 1 %, and None where there is none."""
    return [None if value is None else pytest.approx(value, rel=1e-2) for value in values]


@pytest.mark.slow
def test_benchmarks_measure_the_recorded_values():
    golden, found = recorded("benchmarks"), record("benchmarks")
    is_same_machine = golden["fingerprint"] == fingerprint()
    for benchmark, metrics in golden["outputs"].items():
        assert found["outputs"][benchmark].keys() == metrics.keys()
        for name, values in metrics.items():
            assert found["outputs"][benchmark][name] == (values if is_same_machine else close_to(values))
