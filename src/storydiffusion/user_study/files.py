"""Files of a blind pairwise study: key.json, which stays with the experimenter, and the participants' answers.

The study page contains opaque names only. The key maps each comparison on the page to its methods.
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
    """One comparison of the methods `first` and `second` on `item`, under `question`."""

    item: str
    question: str
    first: str
    second: str


@dataclass(frozen=True)
class Key:
    """The methods behind the opaque names of a study page.

    Attributes:
        study: checksum of the page's content.
        per_person: comparisons per participant.
        methods: method names in the order given.
        questions: name → wording.
        comparisons: opaque name on the page → comparison.
    """

    study: str
    per_person: int
    methods: list[str]
    questions: dict[str, str]
    comparisons: dict[str, Comparison]


@dataclass(frozen=True)
class Answer:
    """One answer: `left` is the method shown on the left ('first' or 'second'), `chosen` the chosen side."""

    comparison: str
    left: str
    chosen: str
    seconds: float

    def __post_init__(self) -> None:
        if self.left not in ORDERS or self.chosen not in SIDES or not self.seconds >= 0:
            raise ValueError(f"the answer to {self.comparison!r} is invalid")

    @property
    def order(self) -> str:
        """Return the chosen method, 'first' or 'second'."""
        return self.left if self.chosen == "left" else ORDERS[self.left == "first"]


@dataclass(frozen=True)
class Answers:
    """All answers of one participant in the order given, read from `file`; `finished` is a time in ISO 8601."""

    file: Path
    participant: str
    finished: str
    answers: tuple[Answer, ...]

    @property
    def left_share(self) -> float:
        """Return the share of answers that chose the left side."""
        return sum(answer.chosen == "left" for answer in self.answers) / len(self.answers)


def save_key(key: Key, file: Path) -> None:
    """Write the key atomically."""
    text = json.dumps({"format": FORMAT, **asdict(key)}, indent=1, ensure_ascii=False)
    write_atomically(file, (text + "\n").encode())


def load_key(file: Path) -> Key:
    """Read a key. Raises UserError for a file that is missing or not a key."""
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
            f"{file} is not the key of a study: give the key.json that `storydiffusion user-study` wrote"
        ) from error


def load_answers(file: Path, key: Key) -> Answers:
    """Read a participant's answers and check them against the key of the study.

    Raises UserError for a file that is damaged, of another study, or incomplete.
    """
    remedy = "remove it from the folder, or ask the participant to send it again"
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
        raise UserError(f"{file} is damaged or not an answers file: {remedy}") from error
    if study != key.study:
        raise UserError(f"{file} holds answers to another study ({str(study)[:LONGEST_NAME]!r}): {remedy}")
    if unknown := set(asked) - key.comparisons.keys():
        raise UserError(f"{file} answers {sorted(unknown)[0]!r}, which is not in the study: {remedy}")
    planned = min(key.per_person, len(key.comparisons))
    if len(answers) != planned:
        raise UserError(f"{file} holds {len(answers)} answers instead of {planned}: {remedy}")
    return found


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError for an unreadable file, ValueError for other content."""
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
    """Return a participant name that is safe in a table (no control characters). Raises ValueError."""
    if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > LONGEST_NAME:
        raise ValueError("not a name")
    return text.strip()
