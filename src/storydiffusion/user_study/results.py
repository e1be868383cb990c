"""Count the answers to a preference study: votes per question and pair of methods, Wilson interval, binomial test.

A damaged file, or one of another study, ends the count with an error. Of several files with one participant code the
one finished last counts. These files, and participants who always chose the same side, are named; the latter count.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically

if TYPE_CHECKING:
    from storydiffusion.user_study.files import Answers, Key


@dataclass
class UserStudyResultsConfig:
    """The command's settings."""

    key: str
    answers: str
    out: str


def user_study_results(config: UserStudyResultsConfig) -> None:
    """Read and count the answers, and write the results."""
    from storydiffusion.files.json_file import json_bytes
    from storydiffusion.user_study.files import load_key

    key = load_key(Path(config.key))
    received = read_answers(Path(config.answers), key)
    people, superseded = keep_latest(received)
    results = {
        "study": key.study,
        "questions": key.questions,
        "preferences": count_preferences(key, people),
        "people": [participant_record(person) for person in people],
        "not_counted": [{"participant": one.participant, "file": one.file.name} for one in superseded],
    }
    write_atomically(Path(config.out) / "results.json", json_bytes(results))
    table = format_results(results)
    write_atomically(Path(config.out) / "table.md", table.encode())
    print(table)


def read_answers(folder: Path, key: "Key") -> list["Answers"]:
    """Read every .json file of the folder. Raises UserError for none, or a file that does not answer this study."""
    from storydiffusion.user_study.files import load_answers

    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"answers={folder} contains no .json files: put the participants' files there")
    return [load_answers(file, key) for file in files]


def keep_latest(received: Sequence["Answers"]) -> tuple[list["Answers"], list["Answers"]]:
    """Split the answers into those that count, each participant's latest, and the superseded ones."""
    counted: dict[str, Answers] = {}
    for one in sorted(received, key=lambda one: (one.finished, one.file.name)):
        counted[one.participant] = one
    kept = sorted(counted.values(), key=lambda one: one.participant)
    return kept, [one for one in received if counted[one.participant] is not one]


def count_preferences(key: "Key", people: Sequence["Answers"]) -> list[dict[str, Any]]:
    """Return one record per question and compared pair of methods, in the order of the key."""
    from storydiffusion.user_study.preference import compute_preference

    votes: dict[tuple[str, frozenset[str]], list[tuple[str, str, str]]] = {}
    for person in people:
        for answer in person.answers:
            comparison = key.comparisons[answer.comparison]
            group = comparison.question, frozenset((comparison.first, comparison.second))
            chosen = comparison.first if answer.order == "first" else comparison.second
            votes.setdefault(group, []).append((person.participant, comparison.item, chosen))
    records = []
    for question in key.questions:
        for method, other in combinations(key.methods, 2):
            given = votes.get((question, frozenset((method, other))))
            if given:
                found = compute_preference(sum(chosen == method for _, _, chosen in given), len(given))
                voters, items = {person for person, _, _ in given}, {item for _, item, _ in given}
                counts = {"people": len(voters), "items": len(items)}
                records.append({"question": question, "method": method, "other": other, **asdict(found), **counts})
    return records


def participant_record(person: "Answers") -> dict[str, Any]:
    return {
        "participant": person.participant,
        "file": person.file.name,
        "answers": len(person.answers),
        "left_share": person.left_share,
        "median_seconds": statistics.median(answer.seconds for answer in person.answers),
    }


def format_results(results: Mapping[str, Any]) -> str:
    """Format the results as a Markdown table, with notes on the participants and the test below it."""
    from storydiffusion.evaluation.tables import escape_markdown, markdown_table

    header = ["question", "methods", "votes", "share, %", "95% interval, %", "p", "people", "items"]
    rows = [
        [
            escape_markdown(one["question"]),
            escape_markdown(f"{one['method']} over {one['other']}"),
            f"{one['votes']} of {one['count']}",
            f"{100 * one['share']:.1f}",
            f"{100 * one['low']:.1f} – {100 * one['high']:.1f}",
            "< 0.001" if one["p_value"] < 0.001 else f"{one['p_value']:.3f}",
            str(one["people"]),
            str(one["items"]),
        ]
        for one in results["preferences"]
    ]
    wordings = [f"{name}: “{wording}”" for name, wording in results["questions"].items() if name != wording]
    questions = escape_markdown("; ".join(wordings))
    people = results["people"]
    seconds = statistics.median(person["median_seconds"] for person in people)
    sentences = [
        f"{len(people)} {'people' if len(people) != 1 else 'person'}, {sum(p['answers'] for p in people)} answers, "
        f"median {seconds:.1f} s per answer; study {escape_markdown(results['study'])}.",
        *([f"Questions: {questions}"] if questions else []),
        "Interval: Wilson; p: exact two-sided binomial test against even choice, per row, uncorrected. Both assume "
        "independent votes; votes of one participant or on one item may be correlated.",
    ]
    if results["not_counted"]:
        again = escape_markdown(", ".join(f"{one['file']} ({one['participant']})" for one in results["not_counted"]))
        sentences.append(f"Not counted, since the same participant finished a later file: {again}.")
    if one_sided := [person["participant"] for person in people if person["left_share"] in (0, 1)]:
        sentences.append(f"Always chose the same side (counted): {escape_markdown(', '.join(one_sided))}.")
    return markdown_table(header, rows) + "\n" + "\n\n".join(sentences) + "\n"
