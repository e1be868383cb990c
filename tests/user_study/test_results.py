"""Counting answers with results computed by hand."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from storydiffusion.errors import UserError
from storydiffusion.user_study.files import Comparison, Key, load_key, save_key
from storydiffusion.user_study.results import UserStudyResultsConfig, user_study_results
from tests.conftest import compose_config, run_verb

COMPARISONS = {
    "c0": Comparison("mia", "overall", "ours", "off"),
    "c1": Comparison("bolt", "overall", "off", "ours"),
    "c2": Comparison("mia", "text", "ours", "off"),
    "c3": Comparison("bolt", "text", "ours", "off"),
}
KEY = Key("feed", 4, ["ours", "off"], {"overall": "Which?", "text": "Which fits?"}, COMPARISONS)


def answered(
    code: str, chosen: list[str], finished: str = "2026-01-02T03:04:05.678Z", **changes: Any
) -> dict[str, Any]:
    """Return the answers of a person; the first method is on the left, then on the right, alternately."""
    answers = [
        {"comparison": f"c{n}", "left": ("first", "second")[n % 2], "chosen": side, "seconds": n + 1.0}
        for n, side in enumerate(chosen)
    ]
    return {
        "format": 1, "study": "feed", "participant": code, "started": finished, "finished": finished,
        "answers": answers, **changes,
    }  # fmt: skip


@pytest.fixture
def count(tmp_path) -> Callable[..., dict[str, Any]]:
    """Counts the given answers (file name → content) and returns the results."""

    def call(**files: Any) -> dict[str, Any]:
        save_key(KEY, tmp_path / "key.json")
        (tmp_path / "answers").mkdir(exist_ok=True)
        for name, answers in files.items():
            text = answers if isinstance(answers, str) else json.dumps(answers)
            (tmp_path / "answers" / f"{name}.json").write_text(text, encoding="utf-8")
        given = [f"key={tmp_path}/key.json", f"answers={tmp_path}/answers", f"out={tmp_path}/out"]
        user_study_results(compose_config("user-study-results", *given))
        return json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))

    return call


def test_a_saved_key_loads_unchanged(tmp_path):
    save_key(KEY, tmp_path / "key.json")
    assert load_key(tmp_path / "key.json") == KEY


def test_votes_count_for_the_method_on_the_chosen_side(count, tmp_path):
    # left of c0 is ours (first), of c1 ours (second), of c2 ours (first), of c3 off (second)
    results = count(
        a=answered("a", ["left", "left", "left", "left"]), b=answered("b", ["left", "right", "left", "right"])
    )
    overall, text = results["preferences"]
    assert (overall["question"], overall["method"], overall["other"]) == ("overall", "ours", "off")
    assert (overall["votes"], overall["count"], overall["share"], overall["p_value"]) == (3, 4, 0.75, 0.625)
    assert (overall["people"], overall["items"]) == (2, 2)
    assert (overall["low"], overall["high"]) == (pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4))
    assert (text["question"], text["votes"], text["count"], text["p_value"]) == ("text", 3, 4, 0.625)
    assert results["people"][1] == {
        "participant": "b", "file": "b.json", "answers": 4, "left_share": 0.5, "median_seconds": 2.5,
    }  # fmt: skip
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| overall | ours over off | 3 of 4 | 75.0 | 30.1 – 95.4 | 0.625 | 2 | 2 |" in table
    assert "2 people, 8 answers, median 2.5 s per answer" in table


def test_people_who_always_choose_one_side_are_named_and_counted(count, tmp_path):
    results = count(a=answered("anna", ["right"] * 4), b=answered("bo", ["left", "right", "left", "left"]))
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "Always chose the same side (counted): anna." in table
    assert sum(one["count"] for one in results["preferences"]) == 8


def test_each_person_counts_once(count, tmp_path):
    results = count(
        a=answered("anna", ["right"] * 4, "2026-01-03T00:00:00Z"),
        b=answered(" anna", ["left"] * 4, "2026-01-02T00:00:00Z"),
        c=answered("anna", ["left"] * 4, "2026-01-01T00:00:00Z"),
    )
    assert [one["file"] for one in results["people"]] == ["a.json"]
    assert [one["file"] for one in results["not_counted"]] == ["b.json", "c.json"]
    assert results["preferences"][0]["votes"] == 0
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "Not counted, since the same participant finished a later file: b.json (anna), c.json (anna)." in table


def test_an_unasked_question_has_no_row(tmp_path):
    few = Key("feed", 1, KEY.methods, KEY.questions, KEY.comparisons)
    save_key(few, tmp_path / "key.json")
    (tmp_path / "a.json").write_text(json.dumps(answered("a", ["left"])))
    (tmp_path / "answers").mkdir()
    (tmp_path / "a.json").rename(tmp_path / "answers/a.json")
    user_study_results(UserStudyResultsConfig(f"{tmp_path}/key.json", f"{tmp_path}/answers", f"{tmp_path}/out"))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [one["question"] for one in results["preferences"]] == ["overall"]


GOOD = answered("b", ["left"] * 4)
FIRST = GOOD["answers"][0]


def with_first(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "answers": [{**FIRST, **changes}, *GOOD["answers"][1:]]}


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("", "is damaged or not an answers file"),
        (json.dumps(GOOD)[:-20], "is damaged"),
        ("[" * 100_000, "is damaged"),
        ([], "is damaged"),
        ({**GOOD, "study": "f00d"}, "holds answers to another study ('f00d')"),
        ({**GOOD, "format": 2}, "is damaged"),
        ({**GOOD, "participant": "a\n| b |"}, "is damaged"),
        ({**GOOD, "participant": ""}, "is damaged"),
        ({**GOOD, "finished": ""}, "is damaged"),
        ({**GOOD, "answers": GOOD["answers"][:3]}, "holds 3 answers instead of 4"),
        ({**GOOD, "answers": GOOD["answers"][:3] * 2}, "is damaged"),
        ({**GOOD, "answers": None}, "is damaged"),
        (with_first(comparison="c9"), "answers 'c9', which is not in the study"),
        (with_first(comparison=["c0"]), "is damaged"),
        (with_first(chosen="both"), "is damaged"),
        (with_first(left="ours"), "is damaged"),
        (with_first(seconds=-1), "is damaged"),
        (with_first(seconds=None), "is damaged"),
        (with_first(note="x"), "is damaged"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_nothing_is_written(count, tmp_path, bad, sentence):
    with pytest.raises(UserError, match=r"bad\.json " + re.escape(sentence)):
        count(good=GOOD, bad=bad)
    assert not (tmp_path / "out").exists()


def test_missing_answers_and_keys_are_errors(count, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"contains no \.json files"):
        count()
    with pytest.raises(UserError, match=r"mixed\.json is damaged or not an answers file"):
        count(mixed=(tmp_path / "key.json").read_text())
    (tmp_path / "answers/mixed.json").write_text("{}")
    overrides = [f"key={tmp_path}/answers/mixed.json", f"answers={tmp_path}/answers"]
    outcome = run_verb("user-study-results", overrides, capsys)
    assert (outcome.code, len(outcome.sentences)) == (1, 1)
    assert "is not the key of a study" in outcome.err
