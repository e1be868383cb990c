"""Sources of captioned videos for shards: the interface, and WebVid's and OpenVid's CSV beside a folder of videos."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from storydiffusion.data.csv_table import Row, compute_digest, read_columns, read_rows
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
            try:
                if path.is_file():
                    return path.read_bytes()
            except (OSError, ValueError, MemoryError) as error:  # a name too long, or with a NUL
                raise UnreadableVideoError(
                    f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}"
                ) from error
        raise UnreadableVideoError(f"there is no file {' or '.join(map(str, self.candidates))}")


@dataclass(frozen=True)
class NoVideo:
    """In place of a video that cannot be read: raises the reason when called."""

    reason: str

    def __call__(self) -> bytes:
        raise UnreadableVideoError(self.reason)


class CsvSource:
    """Rows of a CSV with a header line, read again at each pass, so that memory does not grow with their number.

    A damaged row is a clip whose video cannot be read, with the reason.

    Raises:
        UserError: the CSV, the folder of videos or a column is missing, or the CSV is not UTF-8.
    """

    def __init__(self, layout: "CsvLayout", table: str | Path, videos: str | Path) -> None:
        self.layout, self.table, self.videos = layout, Path(table), Path(videos)
        if not self.table.is_file():
            raise UserError(f"csv={table} is not a file: give the CSV of {layout.name}")
        if not self.videos.is_dir():
            raise UserError(f"videos={videos} is not a folder: give the folder with the videos of {table}")
        digest = compute_digest(self.table)
        self._columns = read_columns(self.table)
        self._check_columns()
        self.description: dict[str, Any] = {"source": layout.name, "csv_sha256": digest, **layout.settings}

    def __len__(self) -> int:
        return sum(1 for _ in self._rows())

    def __iter__(self) -> Iterator[SourceClip]:
        for row in self._rows():
            cells = row.cells
            record = {column: value for column, value in cells.items() if column != self.layout.caption}
            yield SourceClip(
                name=cells[self.layout.id] or f"line {row.line}",
                # a damaged row is rejected for its damage even if it has no caption
                caption=cells[self.layout.caption] or (row.fault or ""),
                record=partial(dict, record),
                video=NoVideo(f"line {row.line}: {row.fault}") if row.fault else self._find_video(cells),
            )

    def _find_video(self, cells: Mapping[str, str]) -> VideoFile | NoVideo:
        names = [name for template in self.layout.files if (name := _fill(template, cells))]
        inside = [name for name in names if not name.startswith(("/", "\\")) and ".." not in Path(name).parts]
        if inside:
            return VideoFile(tuple(self.videos / name for name in inside))
        if names:
            return NoVideo(f"no file is read for it: '{names[0]}' leads out of the folder {self.videos}")
        return NoVideo("no file is read for it: its row names no video")

    def _rows(self) -> Iterator[Row]:
        return read_rows(self.table, self._columns, self._is_row)

    def _is_row(self, cells: dict[str, str]) -> bool:
        """Return whether a line inside a quoted cell is likely a row: it names a video, not a part of a sentence."""
        if len(self._columns) > 2:
            return bool(cells[self.layout.id]) and not any(map(str.isspace, cells[self.layout.id]))
        try:
            return any((self.videos / _fill(template, cells)).is_file() for template in self.layout.files)
        except (OSError, ValueError):
            return False

    def _check_columns(self) -> None:
        for column in (self.layout.id, self.layout.caption, *PLACE.findall(self.layout.files[-1])):
            if column not in self._columns:
                raise UserError(
                    f"{self.table} has no column '{column}', which {self.layout.name} needs; its columns are "
                    f"{', '.join(self._columns) or 'none'}"
                )


@dataclass(frozen=True)
class CsvLayout:
    """The columns for name and caption, and the candidate paths of a row's video in the folder of videos.

    The columns of the last path must exist. `settings` belong to the description of the source.
    """

    name: str
    id: str
    caption: str
    files: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


WEBVID = CsvLayout("webvid", "videoid", "name", ("{page_dir}/{videoid}.mp4", "{videoid}.mp4"))
OPENVID = CsvLayout("openvid", "video", "caption", ("{video}",))
CSV_LAYOUTS: Mapping[str, CsvLayout] = {layout.name: layout for layout in (WEBVID, OPENVID)}
"""Name → layout of a CSV beside a folder of videos; one entry adds such a data set.

WebVid's columns: videoid, contentUrl, duration, page_dir (older: page_idx), name. OpenVid-1M's: video, caption,
aesthetic score, motion score, temporal consistency score, camera motion, frame, fps, seconds.
"""
PLACE = re.compile(r"\{([^{}]*)\}")  # of a column in a path


def build_csv_layout(video: str, caption: str, id: str) -> CsvLayout:
    """Return the layout of a CSV with columns of any name; a video may be named with or without .mp4.

    Raises UserError if the column of videos has braces in its name.
    """
    if PLACE.sub("", f"{{{video}}}"):
        raise UserError(f"video={video}: rename the column, without braces")
    return CsvLayout("csv", id, caption, (f"{{{video}}}", f"{{{video}}}.mp4"), {"columns": f"{video}, {caption}, {id}"})


def _fill(template: str, cells: Mapping[str, str]) -> str:
    """Return a path template with the row's values; empty if one is missing."""
    if not all(cells.get(column) for column in PLACE.findall(template)):
        return ""
    return PLACE.sub(lambda place: cells[place[1]], template)
