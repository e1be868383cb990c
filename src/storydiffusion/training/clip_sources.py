"""The sources of captioned videos that shards can be written from: the registry behind `make-shards source=NAME`."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from storydiffusion.data.clips import Captioner
from storydiffusion.data.sources import CSV_LAYOUTS, ClipSource, CsvLayout, CsvSource, build_csv_layout
from storydiffusion.errors import UserError
from storydiffusion.storyworld.clip_source import StoryWorldSource
from storydiffusion.storyworld.frame_captions import describe_frames

CAPTIONERS: Mapping[str, Captioner | None] = {"clip": None, "storyworld_frames": describe_frames}
"""data.captions → what captions the frames of a clip; None: its one caption"""


def build_csv_source(layout: CsvLayout, csv: str, videos: str) -> CsvSource:
    """Return the rows of the table `csv` whose videos are in the folder `videos`."""
    return CsvSource(layout, csv, videos)


def build_own_csv_source(csv: str, videos: str, video: str, caption: str, id: str) -> CsvSource:
    """Return the rows of a table whose columns `video`, `caption` and `id` have names of its own."""
    return CsvSource(build_csv_layout(video, caption, id), csv, videos)


SOURCES: dict[str, Callable[..., ClipSource]] = {
    "storyworld": StoryWorldSource,
    **{name: partial(build_csv_source, layout) for name, layout in CSV_LAYOUTS.items()},
    "csv": build_own_csv_source,
}
"""Name → function of the source's own settings; one entry adds a data set."""


def build_source(name: str, settings: Mapping[str, Any]) -> ClipSource:
    """Return the source `name`; settings that are None count as not given.

    Raises:
        UserError: the source is unknown, lacks a setting or does not take one.
    """
    if name not in SOURCES:
        raise UserError(f"source={name} is unknown: choose one of {', '.join(SOURCES)}")
    given = {key: value for key, value in settings.items() if value is not None}
    wanted = list(inspect.signature(SOURCES[name]).parameters)
    if unknown := sorted(given.keys() - set(wanted)):
        raise UserError(f"source={name} has no setting {unknown[0]}: its settings are {', '.join(wanted)}")
    if missing := [key for key in wanted if key not in given]:
        raise UserError(f"source={name} needs {missing[0]}: write {missing[0]}=VALUE")
    return SOURCES[name](**given)
