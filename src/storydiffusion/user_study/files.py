"""Files of a blind pairwise study: key.json, which stays with the experimenter, and the participants' answers.

The study page contains opaque names only. The key maps each comparison on the page to its methods.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import build, read_object

FORMAT = 1
LONGEST_NAME = 64  # characters
LONGEST_ANSWER = 10**8  # seconds, three years
LARGEST_ANSWERS = 8 * 2**20  # bytes
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
        if self.left not in ORDERS or self.chosen not in SIDES or not 0 <= self.seconds <= LONGEST_ANSWER:
            raise ValueError(f"the answer to {self.comparison[:LONGEST_NAME]!r} is invalid")

    @property
    def order(self) -> str:
        """Return the chosen method, 'first' or 'second'."""
        return self.left if self.chosen == "left" else ORDERS[self.left == "first"]


@dataclass(frozen=True)
class _Sent:
    """The content of a participant's file."""

    format: int
    study: str
    participant: str
    started: str
    finished: str
    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        name, asked = self.participant, {answer.comparison for answer in self.answers}
        if self.format != FORMAT:
            raise ValueError("it has another format")
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:  # safe in a table
            raise ValueError(f"the participant {name[:LONGEST_NAME]!r} is not a name")
        datetime.fromisoformat(self.finished)
        if len(asked) < len(self.answers):
            raise ValueError("a comparison is answered twice")


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
        content = read_object(file)
        if content.pop("format", None) != FORMAT:
            raise ValueError("another format")
        return build(Key, content)
    except OSError as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from error
    except ValueError as error:
        raise UserError(
            f"{file} is not the key of a study ({error}): give the key.json that `storydiffusion user-study` wrote"
        ) from error


def load_answers(file: Path, key: Key) -> Answers:
    """Read a participant's answers and check them against the key of the study.

    Raises UserError for a file that is damaged, of another study, or incomplete.
    """
    remedy = "remove it from the folder, or ask the participant to send it again"
    try:
        sent = build(_Sent, read_object(file, LARGEST_ANSWERS))
    except OSError as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged or not an answers file ({error}): {remedy}") from error
    if sent.study != key.study:
        raise UserError(f"{file} holds answers to another study ({sent.study[:LONGEST_NAME]!r}): {remedy}")
    answers, asked = sent.answers, [answer.comparison for answer in sent.answers]
    if unknown := set(asked) - key.comparisons.keys():
        raise UserError(f"{file} answers {sorted(unknown)[0][:LONGEST_NAME]!r}, which is not in the study: {remedy}")
    planned = min(key.per_person, len(key.comparisons))
    if len(answers) != planned:
        raise UserError(f"{file} holds {len(answers)} answers instead of {planned}: {remedy}")
    return Answers(file, sent.participant.strip(), sent.finished, answers)
