"""A CSV of the samples that a run could not use, with the reasons."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from storydiffusion.errors import UserError


class Reject(NamedTuple):
    """An unusable sample, and the place in the order where it was found."""

    shard: str
    key: str
    reason: str
    epoch: int
    position: int

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key}: {self.reason}"


class Quarantine:
    """Appends rejects to `file`, written by only one process; a resumed run may name a sample again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, rejects: Sequence[Reject]) -> None:
        """Append the rejects; raise UserError if the file cannot be written."""
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
            raise UserError(f"cannot write {self.file}: {reason}; free space there") from error
