"""training.json beside exported weights."""

import json
import math

import pytest

from storydiffusion.training.record import RECORD, read_record, round_figures, write_record


def test_a_record_comes_back(tmp_path):
    record = {"predictor": {"recipe": {"steps": 3}, "figures": {"loss": None}}}
    assert read_record(tmp_path) == {}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("content", [b"", b'{"transition": {"rec', b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_a_damaged_record_is_set_aside_and_named(tmp_path, capsys, content):
    (tmp_path / RECORD).write_bytes(content)
    assert read_record(tmp_path) == {}
    assert (tmp_path / "training.damaged.json").read_bytes() == content
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path / RECORD} is damaged" in said
    write_record(tmp_path, {"a": {}})
    assert json.loads((tmp_path / RECORD).read_text()) == {"a": {}}


def test_figures_that_are_not_finite_are_null(tmp_path):
    figures = round_figures({"loss": 0.123456, "a": math.nan, "b": math.inf, "c": -math.inf})
    assert figures == {"loss": 0.1235, "a": None, "b": None, "c": None}
    write_record(tmp_path, {"part": {"figures": figures}})
    assert read_record(tmp_path)["part"]["figures"] == figures


def test_no_number_that_is_not_finite_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(tmp_path, {"a": {"figures": {"loss": math.nan}}})
