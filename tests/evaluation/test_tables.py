import pytest

from storydiffusion.errors import UserError
from storydiffusion.evaluation.statistics import Estimate, PairedDifference
from storydiffusion.evaluation.tables import (
    format_difference,
    format_mean,
    format_p,
    format_points,
    markdown_table,
    replace_section,
)

DOCUMENT = (
    "# Title\n<!-- measured: speed -->\nold\n<!-- end -->\nmiddle\n<!-- measured: size -->\nold\n<!-- end -->\nlast\n"
)


def test_numbers():
    assert format_mean(Estimate(0.5142, 0.0178, 9)) == "0.514 ± 0.018"
    assert format_mean(Estimate(0.5142, 0.0178, 9), 4) == "0.5142 ± 0.0178"
    rise, fall = PairedDifference(0.27, 0.015, 9, 1e-9), PairedDifference(-0.004, 0.01, 9, 0.25)
    assert (format_points(rise), format_p(rise)) == ("+27.0 ± 1.5", "< 0.001")
    assert (format_points(fall), format_p(fall)) == ("-0.4 ± 1.0", "0.250")
    assert format_difference(rise) == "+0.270 ± 0.015"
    assert {format_mean(None), format_difference(None), format_p(None)} == {"–"}


def test_table():
    assert markdown_table(["rate", "x"], [["off", "1"], ["a|b", "2"]]).splitlines() == [
        "| rate | x |",
        "| --- | ---: |",
        "| off | 1 |",
        "| a\\|b | 2 |",
    ]
    with pytest.raises(ValueError, match="1 cells"):
        markdown_table(["rate", "x"], [["off"]])


def test_a_section_is_replaced_and_nothing_else():
    once = replace_section(DOCUMENT, "size", "| new |\n")
    assert once == DOCUMENT[: DOCUMENT.rindex("old")] + "| new |\n<!-- end -->\nlast\n"
    assert replace_section(once, "size", "| new |\n") == once
    assert replace_section(once, "size", "old") == DOCUMENT


@pytest.mark.parametrize(
    "document", ["", DOCUMENT.replace("size", "speed"), "<!-- end -->\n<!-- measured: speed -->\n"]
)
def test_a_document_without_its_markers_is_refused(document):
    with pytest.raises(UserError, match="<!-- measured: speed -->"):
        replace_section(document, "speed", "new")
