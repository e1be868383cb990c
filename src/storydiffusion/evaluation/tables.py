"""Numbers, text and tables in Markdown, and the sections of RESULTS.md that `reproduce` keeps up to date."""

import re
import unicodedata
from collections.abc import Sequence

from storydiffusion.errors import UserError
from storydiffusion.evaluation.statistics import Estimate, PairedDifference

HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "[": "&#91;", "]": "&#93;"}
"""Characters of tags and links"""
MARKUP = re.compile(r"[\\`*~$]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=www)\.", re.IGNORECASE)
"""Marks of emphasis, code and formulas, and of addresses that become links"""
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of control, direction and unassigned characters, and of line breaks"""


def escape_markdown(text: str) -> str:
    """Return text of unknown origin so that Markdown shows it as it is, in one line: no tags, links, marks or controls.

    An invisible character becomes its code, as in U+202E.
    """
    shown = "".join(f"U+{ord(c):04X}" if unicodedata.category(c) in INVISIBLE else c for c in text)
    return re.sub(r"[&<>\[\]]", lambda found: HTML[found[0]], MARKUP.sub(r"\\\g<0>", shown))


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
