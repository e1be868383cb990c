"""The files of a blind pairwise study: key.json, which stays with whoever runs it, and the answers people send back.

The page that asks people knows opaque names only. The key tells which comparison of the page is of which methods.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.output.files import write_atomically

FORMAT = 1
LONGEST_NAME = 64  # characters
SIDES = ("left", "right")
ORDERS = ("first", "second")


@dataclass(frozen=True)
class Comparison:
    """One thing asked: of `item`, which of two methods does better in `question`."""

    item: str
    question: str
    first: str
    second: str


@dataclass(frozen=True)
class Key:
    """What the comparisons of a study are.

    Attributes:
        study: a checksum of all that its page shows.
        per_person: how many comparisons each person is asked.
        methods: their names, in the order they were given.
        questions: name → wording.
        comparisons: the page's name of each → what it is.
    """

    study: str
    per_person: int
    methods: list[str]
    questions: dict[str, str]
    comparisons: dict[str, Comparison]


@dataclass(frozen=True)
class Answer:
    """`left` tells which of a comparison's two was shown on the left, 'first' or 'second'; `chosen` the side taken."""

    comparison: str
    left: str
    chosen: str
    seconds: float

    def __post_init__(self) -> None:
        if self.left not in ORDERS or self.chosen not in SIDES or not self.seconds >= 0:
            raise ValueError(f"an answer to {self.comparison!r} is none")

    @property
    def order(self) -> str:
        """Which of the comparison's two was chosen, 'first' or 'second'."""
        return self.left if self.chosen == "left" else ORDERS[self.left == "first"]


@dataclass(frozen=True)
class Answers:
    """All answers of one person, in the order they were given, from `file`; `finished` is the time in ISO 8601."""

    file: Path
    participant: str
    finished: str
    answers: tuple[Answer, ...]

    @property
    def left_share(self) -> float:
        """The share of answers that took the left side."""
        return sum(answer.chosen == "left" for answer in self.answers) / len(self.answers)


def save_key(key: Key, file: Path) -> None:
    """Writes the key, whole or not at all."""
    text = json.dumps({"format": FORMAT, **asdict(key)}, indent=1, ensure_ascii=False)
    write_atomically(file, (text + "\n").encode())


def load_key(file: Path) -> Key:
    """Raises UserError for a file that is missing or is no key."""
    try:
        content = _json(file)
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        comparisons = {name: Comparison(**one) for name, one in content["comparisons"].items()}
        return Key(**{**content, "comparisons": comparisons})
    except UserError:  # a file that cannot be opened
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is no key of a study: give the key.json that storydiffusion.user_study wrote"
        ) from error


def load_answers(file: Path, key: Key) -> Answers:
    """The answers in `file`, to every comparison that its person was to be asked in the study of `key`.

    Raises UserError for a file that is damaged, of another study, or not complete.
    """
    mend = "take it out of the folder, or ask for it again"
    try:
        content = _json(file)
        study = content["study"]
        answers = tuple(Answer(**answer) for answer in content["answers"])
        datetime.fromisoformat(content["finished"])
        found = Answers(file, _name(content["participant"]), content["finished"], answers)
        if content["format"] != FORMAT:
            raise ValueError("another format")
        asked = [answer.comparison for answer in answers]
        if len(set(asked)) < len(asked):
            raise ValueError("a comparison is answered twice")
    except UserError:  # a file that cannot be opened
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged, or no file of answers: {mend}") from error
    if study != key.study:
        raise UserError(f"{file} holds answers to another study ({str(study)[:LONGEST_NAME]!r}): {mend}")
    if unknown := set(asked) - key.comparisons.keys():
        raise UserError(f"{file} answers {sorted(unknown)[0]!r}, which the study does not ask: {mend}")
    planned = min(key.per_person, len(key.comparisons))
    if len(answers) != planned:
        raise UserError(f"{file} holds {len(answers)} answers where {planned} were asked: {mend}")
    return found


def _json(file: Path) -> dict[str, Any]:
    """Raises UserError for a file that cannot be read, ValueError for one that holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, Mapping):
        raise ValueError("not a mapping")
    return dict(content)


def _name(text: Any) -> str:
    """Text that may stand in a table, so no line breaks or control signs; raises ValueError."""
    if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > LONGEST_NAME:
        raise ValueError("not a name")
    return text.strip()
