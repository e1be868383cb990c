"""The registry of metrics: its entries are complete, and evidence decides which metrics an item gets."""

import re

import pytest

from storydiffusion.evaluation.metrics import registry
from storydiffusion.evaluation.metrics.registry import ARROWS, METRICS, Metric, compute_metrics


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_is_complete(name):
    metric = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert metric.label
    assert metric.unit
    assert metric.needs
    assert metric.direction in ARROWS
    assert all(f" {part}" in str(registry.__doc__) for part in metric.needs), "evidence that the head does not explain"


def test_labels_are_unique():
    labels = [metric.label for metric in METRICS.values()]
    assert len(set(labels)) == len(labels)


def test_an_item_gets_the_metrics_whose_evidence_is_there():
    evidence = {"readings": [{"shirt": "red"}, {"shirt": "red"}], "open_attributes": ["shirt"]}
    assert compute_metrics("story", evidence) == {"consistency": 1, "neighbor_consistency": 1}
    assert compute_metrics("clip", evidence) == {}
    assert compute_metrics("clip", {"flow": 0.5}) == {"motion": 0.5}


def test_one_entry_adds_a_metric(monkeypatch):
    monkeypatch.setitem(METRICS, "brightness", Metric("brightness", "clip", "higher", "share", ("flow",), abs))
    assert compute_metrics("clip", {"flow": -0.5})["brightness"] == 0.5
