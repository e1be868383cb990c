"""Measured numbers as Markdown: cells, tables, and the section of a document that a command keeps up to date."""

from collections.abc import Sequence

from storydiffusion.errors import UserError
from storydiffusion.evaluation.statistics import Estimate, PairedDifference


def percent(share: Estimate) -> str:
    """A share with its standard error, in percent: `51.4 ± 1.8`."""
    return f"{100 * share.mean:.1f} ± {100 * share.standard_error:.1f}"


def points(difference: PairedDifference) -> str:
    """A difference of shares with its standard error, in percentage points: `+27.0 ± 1.5`."""
    return f"{100 * difference.mean:+.1f} ± {100 * difference.standard_error:.1f}"


def p_value(difference: PairedDifference) -> str:
    return "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned left and the others right; bars in cells are escaped."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under a header of {len(header)}")
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def replace_section(document: str, name: str, content: str) -> str:
    """`document` with `content` in place of what stands between `<!-- measured: NAME -->` and the next `<!-- end -->`.

    Raises UserError where the first marker does not stand there exactly once, or the second does not follow it.
    """
    begin, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, _, rest = document.partition(begin)
    if document.count(begin) != 1 or end not in rest:
        raise UserError(
            f"the document needs one line {begin} and, after it, a line {end}: add them where it shall stand"
        )
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"
