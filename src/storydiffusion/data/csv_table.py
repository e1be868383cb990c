"""Rows of a CSV that may be damaged: a row that cannot be read is yielded with the reason, and the next one is read.

A quote that is never closed would swallow the rows after it. Here it costs only its own row: reading resumes with the
next line.
"""

import codecs
import csv
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from storydiffusion.errors import UserError

MAX_CHARACTERS = 100_000  # of a row; below the limit of the csv module for one cell


@dataclass(frozen=True)
class Row:
    """A row: the number of its first line, its cells by column, and what is wrong with it, if anything."""

    line: int
    cells: dict[str, str]
    fault: str | None = None


def read_columns(table: Path) -> list[str]:
    """Return the column names of the header line; empty if the table is.

    Raises UserError if the header cannot be read or names a column twice.
    """
    with open(table, encoding="utf-8-sig", newline="") as file:
        header = file.readline(MAX_CHARACTERS)
    try:
        columns = next(csv.reader([header], strict=True), [])
    except csv.Error as error:
        raise UserError(f"{table} cannot be read as a CSV: {error} in its header line") from error
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise UserError(f"{table} has the column '{twice[0]}' twice: rename one")
    return columns


def read_rows(table: Path, columns: Sequence[str], is_row: Callable[[dict[str, str]], bool]) -> Iterator[Row]:
    """Yield the rows below the header; missing cells are empty.

    Args:
        is_row: returns whether the cells of a line inside a quoted cell are a row, which the quote has swallowed.
    """
    with open(table, encoding="utf-8-sig", newline="") as file:
        lines = _Lines(file)
        lines.take()
        while lines.has_more():
            taken, cells, is_open = _take_row(lines)
            first = lines.number - len(taken) + 1
            fault = _find_fault(taken, cells, is_open, columns, is_row)
            if fault and len(taken) > 1:
                lines.put_back(taken[1:])
                cells = _split(taken[0])
            if cells:
                cells += [""] * (len(columns) - len(cells))
                yield Row(first, dict(zip(columns, cells, strict=False)), fault)


def compute_digest(table: Path) -> str:
    """Return the SHA-256 of a table; raise UserError if it is not UTF-8."""
    digest, decoder, size = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open(table, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                decoder.decode(data)
                size += len(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{table} is not UTF-8: it has the byte 0x{error.object[error.start]:02x} near byte "
            f"{size + error.start:,}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{table} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return digest.hexdigest()


class _Lines:
    """The lines of a file with the number of the last one taken; lines can be put back. Longer lines are cut."""

    def __init__(self, file: TextIO) -> None:
        self.number = 0
        self._file = file
        self._waiting: deque[str] = deque()

    def has_more(self) -> bool:
        if not self._waiting and (line := self._file.readline(MAX_CHARACTERS)):
            rest = line
            while len(rest) == MAX_CHARACTERS and not rest.endswith(("\n", "\r")):
                rest = self._file.readline(MAX_CHARACTERS)
            self._waiting.append(line)
        return bool(self._waiting)

    def take(self) -> str:
        if not self.has_more():
            return ""
        self.number += 1
        return self._waiting.popleft()

    def put_back(self, lines: Sequence[str]) -> None:
        self.number -= len(lines)
        self._waiting.extendleft(reversed(lines))


def _take_row(lines: _Lines) -> tuple[list[str], list[str], bool]:
    """Return the lines of the next row, its cells, and whether it ends inside quotes."""
    taken: list[str] = []
    is_open = False

    def iterate() -> Iterator[str]:
        nonlocal is_open
        while lines.has_more() and sum(map(len, taken)) < MAX_CHARACTERS:
            taken.append(lines.take())
            yield taken[-1][: MAX_CHARACTERS - sum(map(len, taken[:-1]))]
        is_open = True

    cells = next(csv.reader(iterate()), [])
    return taken, cells, is_open


def _split(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _find_fault(
    taken: Sequence[str],
    cells: Sequence[str],
    is_open: bool,
    columns: Sequence[str],
    is_row: Callable[[dict[str, str]], bool],
) -> str | None:
    if len(taken[0]) >= MAX_CHARACTERS:
        return f"its line has {MAX_CHARACTERS:,} characters or more"
    if is_open:
        return "a quote in it is never closed"
    if len(taken) > 1 and (
        len(cells) > len(columns) or not _is_strict(taken) or _swallows_a_row(taken[1:], columns, is_row)
    ):
        return "a quote in it is never closed, or closed in a later row"
    if len(cells) > len(columns):
        return f"it has {len(cells)} cells, the header has {len(columns)}: quote a text that contains commas"
    return None


def _is_strict(lines: Sequence[str]) -> bool:
    try:
        next(csv.reader(lines, strict=True))
    except csv.Error:
        return False
    return True


def _swallows_a_row(lines: Sequence[str], columns: Sequence[str], is_row: Callable[[dict[str, str]], bool]) -> bool:
    found = (_split(line) for line in lines)
    return any(len(cells) == len(columns) and is_row(dict(zip(columns, cells, strict=True))) for cells in found)
