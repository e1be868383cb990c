import json

import pytest

from storydiffusion.errors import UserError
from storydiffusion.evaluation.result import FILE, MetricValues, Result, load_result, save_result

METRICS = {"consistency": MetricValues([0.5, None]), "place_error": MetricValues([0.1, 0.2], "a network")}


def test_a_result_is_loaded_as_it_was_saved(tmp_path):
    result = Result(["a", "b"], METRICS, {"rate": 0.5}, ["of a small model"], ["x", "y"])
    save_result(result, tmp_path)
    assert load_result(tmp_path / FILE) == result


def test_an_item_without_a_value_is_left_out():
    result = Result(["a", "b"], METRICS, {})
    assert result.values("consistency") == {"a": 0.5}
    assert result.values("place_error") == {"a": 0.1, "b": 0.2}
    assert result.values("unknown") == {}


def test_a_value_that_is_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_result(Result(["a"], {"place_error": MetricValues([float("nan")])}, {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("items", "metrics", "groups", "message"),
    [
        (["a", "a"], METRICS, [], "the same name"),
        (["a"], METRICS, [], "2 values for 1 items"),
        (["a", "b"], METRICS, ["x"], "1 groups for 2 items"),
        (["a"], {"accuracy": MetricValues([1])}, [], "'accuracy' is unknown"),
    ],
)
def test_a_malformed_result_is_refused(items, metrics, groups, message):
    with pytest.raises(UserError, match=message):
        Result(items, metrics, {}, [], groups)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"items": ["a"], "metrics": {"accuracy": {"values": [1]}}, "settings": {}})]
)
def test_a_file_that_is_not_a_result_is_named(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=FILE if "accuracy" not in content else "'accuracy' is unknown"):
        load_result(tmp_path / FILE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=FILE):
        load_result(tmp_path / FILE)
