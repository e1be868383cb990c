"""Counting answers with results computed by hand."""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.evaluation.tables import escape_markdown
from storydiffusion.user_study.files import Comparison, Key, load_answers, load_key, save_key
from storydiffusion.user_study.results import participant_record, user_study_results
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
    given = (f"key={tmp_path}/key.json", f"answers={tmp_path}/answers", f"out={tmp_path}/out")
    user_study_results(compose_config("user-study-results", *given))
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
        (with_first(seconds=10**400), "is damaged or not an answers file (it holds an integer of more than 64 bits)"),
        (with_first(seconds=10**9), "is damaged"),
        (with_first(seconds=float("nan")), "is damaged or not an answers file (it holds the number nan"),
        (with_first(seconds=float("inf")), "is damaged"),
        (with_first(seconds=True), "is damaged or not an answers file (answers[0].seconds is not of type float)"),
        (with_first(seconds="1"), "is damaged"),
        (with_first(comparison="c" * 10**6), "answers 'cccc"),
        ({**GOOD, "participant": "a" * 10**6}, "is damaged"),
        ({**GOOD, "participant": "\u202ea"}, "is damaged"),
        ({**GOOD, "participant": "\ud800"}, "is damaged"),
        ({**GOOD, "participant": 7}, "is damaged or not an answers file (participant is not of type str)"),
        ({**GOOD, "started": []}, "is damaged"),
        ({**GOOD, "finished": 10**18}, "is damaged"),
        ({**GOOD, "study": ["feed"]}, "is damaged"),
        ({**GOOD, "format": True}, "is damaged"),
        (" " * (8 * 2**20 + 1), "is damaged or not an answers file (it is larger than 8,388,608 bytes)"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_nothing_is_written(count, tmp_path, bad, sentence):
    with pytest.raises(UserError, match=r"bad\.json " + re.escape(sentence)):
        count(good=GOOD, bad=bad)
    assert not (tmp_path / "out").exists()


def check_sentence(error: UserError) -> None:
    assert len(str(error).splitlines()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["c0", "left", "first"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


def some_of(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings with the keys of `valid`, whose values are those or any."""
    return st.fixed_dictionaries({name: st.just(value) | VALUES for name, value in valid.items()})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    some_of({**GOOD, "participant": "b"})
    | st.tuples(some_of(FIRST)).map(lambda found: {**GOOD, "answers": [*found, *GOOD["answers"][1:]]})
    | VALUES
)
def test_any_answers_are_counted_or_refused_in_one_sentence(answers):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.json"
        file.write_text(json.dumps(answers), encoding="utf-8")
        try:
            found = load_answers(file, KEY)
        except UserError as error:
            check_sentence(error)
            return
    assert participant_record(found)["answers"] == 4


@settings(max_examples=100, deadline=None, derandomize=True)
@given(some_of({"format": 1, **asdict(KEY)}) | VALUES)
def test_any_key_is_read_or_refused_in_one_sentence(key):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key.json"
        file.write_text(json.dumps(key), encoding="utf-8")
        try:
            found = load_key(file)
        except UserError as error:
            check_sentence(error)
            return
    assert all(isinstance(one, Comparison) for one in found.comparisons.values())


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "a|b", "`a` *b*", "https://a.b"]
)
def test_what_participants_wrote_is_no_markup_in_the_table(count, tmp_path, name):
    earlier = answered(name, ["right"] * 4, "2026-01-01T00:00:00Z")
    results = count(**{"a": answered(name, ["left"] * 4), "<b>[c](d)\u202e": earlier})
    assert [one["participant"] for one in results["people"]] == [name]
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "<" not in table.replace("< 0.001", "")
    assert "](" not in table
    assert "\u202e" not in table
    assert escape_markdown(name) in table


def test_a_key_of_wrong_types_is_refused_with_the_place(tmp_path):
    file = tmp_path / "key.json"
    save_key(KEY, file)
    content = json.loads(file.read_text())
    for changes, place in (
        ({"methods": "ours"}, "methods is not of type list"),
        ({"questions": {"overall": 3}}, "questions.overall is not of type str"),
        ({"comparisons": {"c0": {}}}, "comparisons.c0.item is missing"),
        ({"per_person": 10**30}, "more than 64 bits"),
    ):
        file.write_text(json.dumps({**content, **changes}))
        with pytest.raises(UserError, match=f"is not the key of a study .*{place}"):
            load_key(file)


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
