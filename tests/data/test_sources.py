"""CSV tables of WebVid and OpenVid beside folders of videos."""

import csv
from pathlib import Path

import pytest

from storydiffusion.data.sources import OPENVID, WEBVID, CsvLayout, CsvSource
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
    with pytest.raises(UserError, match=r"csv=.*nowhere is no file"):
        CsvSource(WEBVID, tmp_path / "nowhere", tmp_path / "videos")
    with pytest.raises(UserError, match=r"videos=.*nowhere is no folder"):
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


def test_short_rows_have_empty_cells(tmp_path):
    (clip,) = make(tmp_path, WEBVID, COLUMNS, ["33", "u"])
    assert (clip.caption, clip.video()) == ("", b"flat")
