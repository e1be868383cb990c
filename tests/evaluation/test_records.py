"""Measurements that are interrupted resume at the next batch."""

import json

import pytest

from storydiffusion.errors import UserError
from storydiffusion.evaluation.records import can_resume, measure_all


def test_an_interrupted_measurement_resumes_at_the_next_batch(tmp_path):
    calls: list[list[int]] = []

    def measure(items):
        calls.append(list(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [{"number": item, "square": item**2} for item in items]

    file, settings, items = tmp_path / "out" / "records.json", {"rate": 0.0, "seed": 1}, list(range(7))
    with pytest.raises(KeyboardInterrupt):
        measure_all(file, settings, items, measure, 2, "rate 0", "story")
    assert len(json.loads(file.read_text())["records"]) == 4
    done = measure_all(file, settings, items, measure, 2, "rate 0", "story")
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    assert [(one["number"], one["square"]) for one in done] == [(item, item**2) for item in items]
    assert all(one["seconds"] >= 0 for one in done)
    assert measure_all(file, settings, items[:5], measure, 2, "rate 0", "story") == done[:5]
    assert len(calls) == 5
    assert can_resume(file, settings)
    assert not can_resume(file, {**settings, "seed": 2})
    with pytest.raises(UserError, match="measured with seed 1, not 2"):
        measure_all(file, {**settings, "seed": 2}, items, measure, 2, "rate 0", "story")


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {}}'])
def test_a_file_without_records_is_refused(tmp_path, content):
    (tmp_path / "records.json").write_text(content)
    with pytest.raises(UserError, match="holds no records"):
        measure_all(tmp_path / "records.json", {}, [1], lambda items: [], 1, "x", "story")
