"""CSV tables of WebVid and OpenVid beside folders of videos."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.data.csv_table import MAX_CHARACTERS
from storydiffusion.data.sources import OPENVID, WEBVID, CsvLayout, CsvSource, build_csv_layout
from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError

COLUMNS = ["videoid", "contentUrl", "duration", "page_dir", "name"]


def table(folder: Path, columns: list[str], *rows: list[str]) -> Path:
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder / "table.csv"


def make(folder: Path, layout: CsvLayout, columns: list[str], *rows: list[str]) -> CsvSource:
    (folder / "videos" / "000001_000050").mkdir(parents=True, exist_ok=True)
    (folder / "videos" / "000001_000050" / "21179416.mp4").write_bytes(b"in its page's folder")
    (folder / "videos" / "33.mp4").write_bytes(b"flat")
    return CsvSource(layout, table(folder, columns, *rows), folder / "videos")


def test_webvid(tmp_path):
    first = ["21179416", "https://x/1.mp4", "PT00H00M11S", "000001_000050", 'A "red" car, fast.\nÉté']
    second = ["33", "https://x/2.mp4", "PT00H00M09S", "000001_000050", "A cat"]
    source = make(tmp_path, WEBVID, COLUMNS, first, second)
    one, two = source
    assert len(source) == 2
    assert (one.name, one.caption, one.video()) == ("21179416", first[4], b"in its page's folder")
    assert one.record() == dict(zip(COLUMNS[:4], first[:4], strict=True))
    assert (two.caption, two.video()) == ("A cat", b"flat")


def test_older_webvid_without_page_dir(tmp_path):
    columns = ["videoid", "name", "page_idx", "contentUrl", "duration"]
    (clip,) = make(tmp_path, WEBVID, columns, ["33", "A cat", "7", "https://x/2.mp4", "PT00H00M09S"])
    assert clip.video() == b"flat"


def test_openvid(tmp_path):
    columns = ["video", "caption", "aesthetic score", "motion score", "fps", "seconds"]
    (clip,) = make(tmp_path, OPENVID, columns, ["33.mp4", "A cat", "4.9", "2.1", "24.0", "9.5"])
    assert (clip.name, clip.caption, clip.video()) == ("33.mp4", "A cat", b"flat")
    assert clip.record()["aesthetic score"] == "4.9"


@pytest.mark.parametrize(("layout", "missing"), [(WEBVID, "name"), (WEBVID, "videoid"), (OPENVID, "caption")])
def test_error_names_a_missing_column_and_the_existing_ones(tmp_path, layout, missing):
    columns = [column for column in (*COLUMNS, "video", "caption") if column != missing]
    with pytest.raises(UserError, match=f"no column '{missing}'.*{', '.join(columns)}"):
        make(tmp_path, layout, columns)


def test_unreadable_tables_are_refused(tmp_path):
    (tmp_path / "videos").mkdir()
    for data in (b"", b"\xff\xfe\x00videoid,name"):
        (tmp_path / "table.csv").write_bytes(data)
        with pytest.raises(UserError, match=r"table\.csv"):
            CsvSource(WEBVID, tmp_path / "table.csv", tmp_path / "videos")
    with pytest.raises(UserError, match=r"csv=.*nowhere is not a file"):
        CsvSource(WEBVID, tmp_path / "nowhere", tmp_path / "videos")
    with pytest.raises(UserError, match=r"videos=.*nowhere is not a folder"):
        CsvSource(WEBVID, table(tmp_path, COLUMNS), tmp_path / "nowhere")


def test_error_names_a_missing_video(tmp_path):
    (clip,) = make(tmp_path, WEBVID, COLUMNS, ["5", "", "", "p", "A dog"])
    with pytest.raises(UnreadableVideoError, match=r"no file .*p/5\.mp4 or .*5\.mp4"):
        clip.video()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_names_that_leave_the_folder_are_not_read(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    (clip,) = make(tmp_path, OPENVID, ["video", "caption"], [name, "A dog"])
    with pytest.raises(UnreadableVideoError, match="no file"):
        clip.video()
    with pytest.raises(UnreadableVideoError, match=f"'{name}' leads out of the folder"):
        clip.video()


def test_short_rows_have_empty_cells(tmp_path):
    (clip,) = make(tmp_path, WEBVID, COLUMNS, ["33", "u"])
    assert (clip.caption, clip.video()) == ("", b"flat")


HEADER = ",".join(COLUMNS) + "\n"


def read(folder: Path, text: str | bytes, layout: CsvLayout = WEBVID) -> list[tuple[str, str, str]]:
    """Return name, caption, and file or reason of every row of a table; the folder has the videos 33, 34 and 35."""
    (folder / "videos").mkdir(exist_ok=True)
    for name in ("33", "34", "35"):
        (folder / "videos" / f"{name}.mp4").write_text(f"file {name}")
    (folder / "t.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    found = []
    source = CsvSource(layout, folder / "t.csv", folder / "videos")
    for clip in source:
        try:
            found.append((clip.name, clip.caption, clip.video().decode()))
        except UnreadableVideoError as error:
            found.append((clip.name, clip.caption, str(error)))
    assert len(found) == len(source)
    return found


GOOD = ("35", "A bird", "file 35")


@pytest.mark.parametrize("name", ["7" * 300, "a/" * 3000 + "b", "a\0b", "33.mp4/b", "*", "~", ".", ""])
def test_a_name_that_is_no_path_costs_its_own_row(tmp_path, name):
    first, second = read(tmp_path, f"{HEADER}{name},u,d,,A cat\n35,u,d,,A bird\n")
    assert first[2] != ""
    assert not first[2].startswith("file ")
    assert second == GOOD


def test_surplus_cells_cost_their_own_row(tmp_path):
    first, second = read(tmp_path, f"{HEADER}33,u,d,,A cat, a dog\n35,u,d,,A bird\n")
    assert first[::2] == ("33", "line 2: it has 6 cells, the header has 5: quote a text that contains commas")
    assert second == GOOD


@pytest.mark.parametrize(
    "middle",
    [
        '33,u,d,,"A cat\n34,u,d,,A dog\n',  # never closed
        '33,u,d,,"A cat\n34,u,d,,"A dog"\n',
        '33,u,d,,"A cat\n34,u,d,,A dog\n34,u,d,,A dog"\n',  # closed, as if it were one caption
    ],
)
def test_an_unbalanced_quote_costs_its_own_row(tmp_path, middle):
    rows = read(tmp_path, HEADER + middle + "35,u,d,,A bird\n")
    assert rows[0][0] == "33"
    assert "line 2: a quote in it is never closed" in rows[0][2]
    assert rows[1][0::2] == ("34", "file 34")
    assert rows[-1] == GOOD
    assert len(rows) == 2 + middle.count("34,")


def test_an_unbalanced_quote_of_two_columns_costs_its_own_row(tmp_path):
    text = 'video,caption\n33.mp4,"A cat\n34.mp4,A dog"\n35.mp4,"One day,\nall was well"\n'
    rows = read(tmp_path, text, OPENVID)
    assert "a quote in it is never closed" in rows[0][2]
    assert rows[2] == ("35.mp4", "One day,\nall was well", "file 35")


def test_a_quote_in_the_last_line_that_is_never_closed_costs_its_own_row(tmp_path):
    first, second = read(tmp_path, f'{HEADER}35,u,d,,A bird\n33,u,d,,"A cat')
    assert (first, second[2]) == (GOOD, "line 3: a quote in it is never closed")


def test_a_line_beyond_the_limit_costs_its_own_row(tmp_path):
    first, second = read(tmp_path, f"{HEADER}33,u,d,,{'x' * (3 * MAX_CHARACTERS)}\n35,u,d,,A bird\n")
    assert first[2] == "line 2: its line has 100,000 characters or more"
    assert second == GOOD


def test_blank_lines_and_line_ends_of_other_systems_are_read(tmp_path):
    assert read(tmp_path, f"\ufeff{HEADER}\n\n35,u,d,,A bird\n".replace("\n", "\r\n")) == [GOOD]


@pytest.mark.parametrize("data", [b"caf\xe9", "café".encode("utf-16"), "caf\x81".encode("cp437", "replace") + b"\x81"])
def test_another_encoding_is_answered_with_utf_8(tmp_path, data):
    with pytest.raises(UserError, match=r"t\.csv is not UTF-8: .* save it as UTF-8"):
        read(tmp_path, HEADER.encode() + b"33,u,d,," + data + b"\n")


def test_columns_of_other_names(tmp_path):
    text = "clip no.,what {it} shows,the.file [mp4]\n7,A cat,33\n8,A dog,34.mp4\n"
    assert read(tmp_path, text, build_csv_layout("the.file [mp4]", "what {it} shows", "clip no.")) == [
        ("7", "A cat", "file 33"),
        ("8", "A dog", "file 34"),
    ]
    for wrong in (("file", "what {it} shows", "clip no."), ("clip no.", "text", "clip no.")):
        with pytest.raises(UserError, match=r"no column '(file|text)', which csv needs; its columns are clip no\."):
            read(tmp_path, text, build_csv_layout(*wrong))
    with pytest.raises(UserError, match=r"video=a\{b: rename the column"):
        build_csv_layout("a{b", "caption", "id")


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv has the column 'name' twice"):
        read(tmp_path, "videoid,name,name\n")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("3,5\"\n\r'a\\\0 é\t;"), max_size=60), st.integers(1, 5))
def test_no_table_is_a_traceback_and_no_good_row_after_a_line_end_is_lost(tmp_path_factory, text, columns):
    folder = tmp_path_factory.mktemp("fuzz")
    header = ",".join(("video", "caption", "b", "c", "d")[: max(columns, 2)])
    rows = read(folder, f"{header}\n{text}\n35.mp4,A bird{',x' * (max(columns, 2) - 2)}\n", OPENVID)
    assert ("35.mp4", "A bird", "file 35") in rows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            [b"videoid", b"page_dir", b"name", b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"a"]
        )
        | st.binary(max_size=6),
        max_size=40,
    ).map(b"".join),
    st.sampled_from([b"", b"videoid,page_dir,name\n"]),
)
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, data, header):
    folder = tmp_path_factory.getbasetemp()
    (folder / "fuzz.csv").write_bytes(header + data)
    with suppress(UserError):
        clips = list(CsvSource(WEBVID, folder / "fuzz.csv", folder))
        for clip in clips:
            with suppress(UnreadableVideoError):
                clip.video()
            json.dumps(clip.record())
