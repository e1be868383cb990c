import json

import pytest

from storydiffusion.errors import UserError
from storydiffusion.evaluation.result import FILE, Figure, Result, load_result, save_result

FIGURES = {"consistency": Figure([0.5, None], "higher"), "error": Figure([0.1, 0.2], "lower")}


def test_it_comes_back_as_it_was(tmp_path):
    result = Result(["a", "b"], FIGURES, {"rate": 0.5}, ["of a small model"])
    save_result(result, tmp_path)
    assert load_result(tmp_path / FILE) == result


def test_a_subject_without_a_value_is_left_out():
    result = Result(["a", "b"], FIGURES, {})
    assert result.values("consistency") == {"a": 0.5}
    assert result.values("error") == {"a": 0.1, "b": 0.2}
    assert result.values("unknown") == {}


def test_a_value_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_result(Result(["a"], {"error": Figure([float("nan")], "lower")}, {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("subjects", "figures", "message"),
    [
        (["a", "a"], FIGURES, "one name"),
        (["a"], FIGURES, "2 values for 1 subjects"),
    ],
)
def test_what_cannot_be_paired_is_refused(subjects, figures, message):
    with pytest.raises(UserError, match=message):
        Result(subjects, figures, {})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"figures": {"error": {"values": [1], "better": "most"}}})]
)
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=FILE if "most" not in content else "better='most'"):
        load_result(tmp_path / FILE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=FILE):
        load_result(tmp_path / FILE)
