"""Line breaking with kinsoku, and drawing characters from more than one font."""

import itertools
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from storydiffusion.errors import UserError
from storydiffusion.output.lettering import (
    NOT_AT_END,
    NOT_AT_START,
    Lettering,
    balance_lines,
    break_lines,
    find_missing,
    printable,
)
from storydiffusion.output.typefaces import FONTS, check_fonts, coverage, subset

TEXTS = st.text("ab é,.!“”()日本語っー。、「」《》한국 \n…—", max_size=60)


def cells(text: str) -> float:
    """Return the width in a monospaced font: one unit per character."""
    return len(text)


DEJAVU = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")  # has Hebrew and Arabic


def drawn(text: str, *fonts: str) -> bytes:
    image = Image.new("L", (600, 80), 255)
    Lettering(32, fonts).draw(ImageDraw.Draw(image), text, 10, 50, "black")
    return image.tobytes()


@pytest.mark.parametrize(
    ("text", "limit", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 100, ["one two three"]),
        ("supercalifragilistic", 8, ["supercal", "ifragili", "stic"]),
        ("日本語の文章", 3, ["日本語", "の文章"]),
        ("早上好。小白", 3, ["早上", "好。小", "白"]),
        ("ちょっと待って", 4, ["ちょっと", "待って"]),
        ("あああっと", 3, ["ああ", "あっと"]),
        ("ラーメン", 1, ["ラ", "ー", "メ", "ン"]),
        ("他说《春天》了", 3, ["他说", "《春", "天》了"]),
        ("她说“你好”。", 4, ["她说“你", "好”。"]),
        ("한국어 자막", 4, ["한국어", "자막"]),
        ("a\nb", 9, ["a", "b"]),
        ("", 9, []),
        ("日本語 and English", 6, ["日本語", "and", "Englis", "h"]),
    ],
)
def test_lines_break_at_allowed_places(text: str, limit: int, lines: list[str]):
    assert break_lines(text, cells, limit) == lines


@given(TEXTS, st.integers(4, 30))
def test_nothing_is_lost_and_every_line_fits(text: str, limit: int):
    lines = break_lines(text, cells, limit)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(0 < len(line) <= limit for line in lines)


@given(TEXTS.filter(lambda text: "\n" not in text), st.integers(4, 30))
def test_kinsoku_holds_where_there_is_room(text: str, limit: int):
    lines = break_lines(printable(text), cells, limit)
    for before, after in itertools.pairwise(lines):
        if before + after in text and len(before) < limit:  # no space there, and no unit had to be cut
            assert after[0] not in NOT_AT_START
            assert before[-1] not in NOT_AT_END


@given(TEXTS, st.integers(4, 30))
def test_balanced_lines_are_equal_in_number_and_no_wider(text: str, limit: int):
    plain, balanced = break_lines(text, cells, limit), balance_lines(text, cells, limit)
    assert len(balanced) <= len(plain)
    assert max(map(len, balanced), default=0) <= max(map(len, plain), default=0)
    assert "".join("".join(balanced).split()) == "".join(text.split())


def test_balanced_lines_have_similar_lengths():
    assert balance_lines("aaa bbb ccc ddd", cells, 12) == ["aaa bbb", "ccc ddd"]


def test_fonts_cover_their_documented_scripts():
    latin, eastern = (coverage(family) for family in FONTS)
    assert all(ord(char) in latin for char in "Zażółć gęślą jaźń — “naïve” façade, Größe!")
    assert all(
        ord(char) in eastern for char in "天地玄黄你好吗日本語カタカナひらがな한국어자막《》「」，。！？Жизньλόγος"
    )


def test_each_character_comes_from_a_font_that_has_it():
    box = drawn("\U0001f389")  # no font has it: the box
    assert box != drawn("")
    for char in "é雪ひ한Ж":
        assert drawn(char) not in (box, drawn(""))


def test_width_matches_the_drawn_extent():
    text = "Wide 雪の日 text"
    image = Image.new("L", (600, 80), 0)
    lettering = Lettering(32)
    lettering.draw(ImageDraw.Draw(image), text, 10, 50, "white")
    left, _, right, _ = image.getbbox() or (0, 0, 0, 0)
    assert left >= 8
    assert abs(right - 10 - lettering.width(text)) < 6


def test_invisible_characters_draw_no_boxes():
    assert printable("a\u200b\ufeffb\x07 \t c\r\n\n d\ufe0f") == "ab c\nd"
    assert printable("e\u0301") == "é"


def test_subset_has_the_characters_and_little_else():
    small = subset("Story Kai", "雪の日")
    assert len(small) < 10_000
    assert small[:4] == b"OTTO"


SCRIPTS = {
    "Thai": ("ตอนเช้า", "ตอนเช้า"),
    "Hindi": ("सुबह!", "सुबह"),
    "Arabic": ("في Ada", "في"),
    "Hebrew": ("בוקר 12", "בוקר"),
    "emoji": ("🎉👩\u200d🚀 ok", "🎉👩🚀"),
    "rare Han": ("雪龘", "龘"),
    "covered": ("Zoe\u0308, 雪\u200b…\n한국어 Жизнь\ufe0f\x07", ""),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_characters_that_no_font_has_are_found(script: str):
    text, missing = SCRIPTS[script]
    assert find_missing(text) == "".join(dict.fromkeys(missing))


def test_a_font_file_adds_its_characters_and_comes_first():
    assert find_missing("بيت שלום abc", [DEJAVU]) == ""
    assert find_missing("ตอน", [DEJAVU]) == "ตอน"
    assert drawn("a", DEJAVU) != drawn("a")
    assert drawn("雪", DEJAVU) == drawn("雪")


needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="Pillow lacks Raqm")


@needs_raqm
@pytest.mark.parametrize("text", ["שלום", "بيت", "سلام عليكم"])
def test_right_to_left_text_is_joined_and_ordered(text: str):
    image = Image.new("L", (600, 80), 255)
    font = ImageFont.truetype(DEJAVU, 32)
    ImageDraw.Draw(image).text((10, 50), text, font=font, fill="black", anchor="ls", direction="rtl")
    assert drawn(text, DEJAVU) == image.tobytes()
    assert Lettering(32, [DEJAVU]).width(text) == font.getlength(text, direction="rtl")


@needs_raqm
def test_runs_of_several_fonts_follow_the_direction_of_the_line():
    runs = [(run, direction) for _, run, direction in Lettering(32, [DEJAVU]).runs("שלום 雪 abc בית")]
    assert runs == [(" בית", "rtl"), ("雪 ", "ltr"), ("abc", "ltr"), ("שלום ", "rtl")]


def test_marks_stay_with_their_letter():
    assert break_lines("ก้ก้ก้", cells, 2) == ["ก้", "ก้", "ก้"]
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    assert printable("a\u200cb") == "ab"


def test_files_that_are_no_fonts_are_refused(tmp_path: Path):
    good = Path(DEJAVU).read_bytes()
    for name, data in {"text.ttf": b"no font", "empty.ttf": b"", "cut.ttf": good[:2000]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            check_fonts([str(tmp_path / name)])
    with pytest.raises(UserError, match="no such file"):
        check_fonts([str(tmp_path / "none.ttf")])
    check_fonts([DEJAVU])
