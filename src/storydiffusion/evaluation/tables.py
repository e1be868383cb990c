"""Numbers and tables in Markdown, and the sections of RESULTS.md that `reproduce` keeps up to date."""

from collections.abc import Sequence

from storydiffusion.errors import UserError
from storydiffusion.evaluation.statistics import Estimate, PairedDifference


def format_mean(found: Estimate | None, digits: int = 3) -> str:
    """Format a mean with its standard error: `0.514 ± 0.018`; a dash for None."""
    return "–" if found is None else f"{found.mean:.{digits}f} ± {found.standard_error:.{digits}f}"


def format_difference(found: PairedDifference | None) -> str:
    """Format a difference with its standard error: `+0.270 ± 0.015`; a dash for None."""
    return "–" if found is None else f"{found.mean:+.3f} ± {found.standard_error:.3f}"


def format_points(difference: PairedDifference) -> str:
    """Format a difference of shares in percentage points: `+27.0 ± 1.5`."""
    return f"{100 * difference.mean:+.1f} ± {100 * difference.standard_error:.1f}"


def format_p(difference: PairedDifference | None) -> str:
    """Format a p-value: `0.250`, `< 0.001`; a dash for None."""
    if difference is None:
        return "–"
    return "< 0.001" if difference.p_value < 0.001 else f"{difference.p_value:.3f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is aligned left and the others right; bars in cells are escaped."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells under a header of {len(header)}")
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def replace_section(document: str, name: str, content: str) -> str:
    """Return `document` with `content` between `<!-- measured: NAME -->` and the next `<!-- end -->`.

    Raises:
        UserError: the first marker does not occur exactly once, or the second does not follow it.
    """
    begin, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, _, rest = document.partition(begin)
    if document.count(begin) != 1 or end not in rest:
        raise UserError(f"the document needs one line {begin} followed by a line {end}. Add both")
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"
