"""result.json: what one way of doing something measured on each of several subjects (stories, clips, images).

Two results are compared subject by subject, so the values of every subject are kept, not their mean alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from storydiffusion.errors import UserError
from storydiffusion.output.files import write_atomically

FILE = "result.json"

Better = Literal["higher", "lower", "truth"]
"""which values are better: higher ones, lower ones, or those nearer to the truth's, as of motion"""


@dataclass(frozen=True)
class Figure:
    """One value for each subject, in their order; None where a subject has no such thing."""

    values: list[float | None]
    better: Better

    def __post_init__(self) -> None:
        if self.better not in get_args(Better):
            raise UserError(f"better={self.better!r}: choose one of {', '.join(get_args(Better))}")


@dataclass(frozen=True)
class Result:
    """All figures of one way.

    Attributes:
        subjects: a name for each; those of the same name are paired between results.
        figures: by name.
        settings: plain data, all that the values depend on.
        remarks: sentences that a reader of the figures must know: which networks gave them, that a model is small.
    """

    subjects: list[str]
    figures: dict[str, Figure]
    settings: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.subjects)) < len(self.subjects):
            raise UserError("two subjects of a result have one name: give each its own")
        for name, figure in self.figures.items():
            if len(figure.values) != len(self.subjects):
                raise UserError(f"{name} has {len(figure.values)} values for {len(self.subjects)} subjects")

    def values(self, name: str) -> dict[str, float]:
        """Subject → value of the figure `name`, without those that have none; empty where there is no such figure."""
        if name not in self.figures:
            return {}
        pairs = zip(self.subjects, self.figures[name].values, strict=True)
        return {subject: value for subject, value in pairs if value is not None}


def save_result(result: Result, folder: Path) -> None:
    """Writes `folder`/result.json, whole or not at all."""
    write_atomically(folder / FILE, (json.dumps(asdict(result), indent=1, allow_nan=False) + "\n").encode())


def load_result(file: Path) -> Result:
    """Raises UserError for a file that is missing or is no result."""
    try:
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        figures = {name: Figure(**figure) for name, figure in content["figures"].items()}
        return Result(**{**content, "figures": figures})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no result: measure it again") from error
