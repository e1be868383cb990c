import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.errors import UserError
from storydiffusion.evaluation.statistics import Estimate, PairedDifference
from storydiffusion.evaluation.tables import (
    escape_markdown,
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Mia's cat, no. 3 (50 %): 雪, café!", "Mia's cat, no. 3 (50 %): 雪, café!"),
        ("csa.anchor_panels=4, p_01", "csa.anchor_panels=4, p_01"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("<!-- end -->", "&lt;!-- end --&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("[x](javascript:alert(1))", "&#91;x&#93;(javascript:alert(1))"),
        ("![x](http://a.b/c)", "!&#91;x&#93;(http:\\//a.b/c)"),
        ("https://a.b www.a.b", "https:\\//a.b www\\.a.b"),
        ("*a* _b_ ~c~ `d` $e$", "\\*a\\* \\_b\\_ \\~c\\~ \\`d\\` \\$e\\$"),
        ("\\[", "\\\\&#91;"),
        ("a\nb\r\0\x1b[31m", "aU+000AbU+000DU+0000U+001B&#91;31m"),
        ("a\u202eb\u2066\u200b\u2028\ud800", "aU+202EbU+2066U+200BU+2028U+D800"),
    ],
)
def test_text_of_unknown_origin_is_shown_as_it_is(text, shown):
    assert escape_markdown(text) == shown


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text() | st.text(alphabet="<>[]()!*_`~$&\\|:/w.a \n"))
def test_escaped_text_stays_in_its_cell_and_holds_no_markup(text):
    table = markdown_table(["a"], [[escape_markdown(text)]])
    assert table.count("\n") == 3
    cell = table.splitlines()[2]
    assert not set("<>[]") & set(cell)
    assert not re.search(r"(?<!\\)(\\\\)*[`*~$]", cell)
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", cell)) == 2


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
