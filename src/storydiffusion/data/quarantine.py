"""The samples that a run could not use, and why, in a CSV that grows as they are met."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from storydiffusion.errors import UserError


class Reject(NamedTuple):
    """A sample that cannot be used, and the place in the order where that was found."""

    shard: str
    key: str
    reason: str
    epoch: int
    position: int

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key}: {self.reason}"


class Quarantine:
    """Appends to `file`, which one process alone writes; a run that goes on after a break may name a sample again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, rejects: Sequence[Reject]) -> None:
        """Raises UserError where the file cannot be written."""
        if not rejects:
            return
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(rejects)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a", encoding="utf-8", newline="") as stream:
                header = "" if stream.tell() else ",".join(Reject._fields) + "\n"
                stream.write(header + text.getvalue())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"cannot write {self.file}: {reason}; make room there") from error
