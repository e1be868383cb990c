"""Sources of captioned videos for shards: the interface, and WebVid's and OpenVid's CSV beside a folder of videos."""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from storydiffusion.data.video_reader import UnreadableVideoError
from storydiffusion.errors import UserError


@dataclass(frozen=True)
class SourceClip:
    """One captioned video: its name in the source, its caption, and two functions that return its metadata and MP4.

    Both functions are called in another process, so they must pickle; `video` raises UnreadableVideoError if the video
    is missing.
    """

    name: str
    caption: str
    record: Callable[[], dict[str, Any]]
    video: Callable[[], bytes]


class ClipSource(Protocol):
    """Captioned videos in a fixed order. `description`, plain data, is equal if and only if the clips are."""

    @property
    def description(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[SourceClip]: ...


@dataclass(frozen=True)
class VideoFile:
    """Reads the first of some paths that is a file when called."""

    candidates: tuple[Path, ...]

    def __call__(self) -> bytes:
        for path in self.candidates:
            if path.is_file():
                try:
                    return path.read_bytes()
                except OSError as error:
                    raise UnreadableVideoError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        raise UnreadableVideoError(f"there is no file {' or '.join(map(str, self.candidates))}")


class CsvSource:
    """Rows of a CSV with a header line, read again at each pass, so that memory does not grow with their number.

    Raises:
        UserError: the CSV, the folder of videos or a column is missing, or the CSV cannot be read.
    """

    def __init__(self, layout: "CsvLayout", table: str | Path, videos: str | Path) -> None:
        self.layout, self.table, self.videos = layout, Path(table), Path(videos)
        if not self.table.is_file():
            raise UserError(f"csv={table} is no file: give the CSV of {layout.name}")
        if not self.videos.is_dir():
            raise UserError(f"videos={videos} is no folder: give the folder with the videos of {table}")
        self._check_columns()
        with open(self.table, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.description: dict[str, Any] = {"source": layout.name, "csv_sha256": digest}

    def __len__(self) -> int:
        return sum(1 for _ in self._rows())

    def __iter__(self) -> Iterator[SourceClip]:
        for row in self._rows():
            record = {column: value for column, value in row.items() if column != self.layout.caption}
            names = [template.format(**row) for template in self.layout.files if _fills(row, template)]
            # a name that leaves the folder of videos is no candidate
            inside = [name for name in names if not name.startswith(("/", "\\")) and ".." not in Path(name).parts]
            yield SourceClip(
                name=row[self.layout.id],
                caption=row[self.layout.caption],
                record=partial(dict, record),
                video=VideoFile(tuple(self.videos / name for name in inside)),
            )

    def _rows(self) -> Iterator[dict[str, str]]:
        with open(self.table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            try:
                for row in reader:
                    yield {str(column): row[column] or "" for column in reader.fieldnames or ()}
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self.table} cannot be read near line {reader.line_num}: {error}") from error

    def _check_columns(self) -> None:
        with open(self.table, encoding="utf-8-sig", newline="") as file:
            try:
                found = list(csv.DictReader(file).fieldnames or ())
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self.table} cannot be read as a CSV: {error}") from error
        for column in (self.layout.id, self.layout.caption):
            if column not in found:
                raise UserError(
                    f"{self.table} has no column '{column}', which {self.layout.name} needs; its columns are "
                    f"{', '.join(found) or 'none'}"
                )


@dataclass(frozen=True)
class CsvLayout:
    """The columns for name and caption, and the candidate paths of a row's video in the folder of videos."""

    name: str
    id: str
    caption: str
    files: tuple[str, ...]


WEBVID = CsvLayout("webvid", "videoid", "name", ("{page_dir}/{videoid}.mp4", "{videoid}.mp4"))
OPENVID = CsvLayout("openvid", "video", "caption", ("{video}",))
CSV_LAYOUTS: Mapping[str, CsvLayout] = {layout.name: layout for layout in (WEBVID, OPENVID)}
"""Name → layout of a CSV beside a folder of videos; one entry adds such a data set.

WebVid's columns: videoid, contentUrl, duration, page_dir (older: page_idx), name. OpenVid-1M's: video, caption,
aesthetic score, motion score, temporal consistency score, camera motion, frame, fps, seconds.
"""


def _fills(row: dict[str, str], template: str) -> bool:
    """Return whether the row has a value for every column of a path template."""
    names = [part.partition("}")[0] for part in template.split("{")[1:]]
    return all(row.get(name) for name in names)
