"""The registry of clip sources: built-in ones, new ones, and errors that name the setting."""

import pickle
from functools import partial
from pathlib import Path

import pytest

from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import ClipLoader, LoaderOptions
from storydiffusion.data.shard_writer import write_shards
from storydiffusion.data.sources import CsvLayout, SourceClip, VideoFile
from storydiffusion.errors import UserError
from storydiffusion.storyworld.clip_source import StoryWorldSource
from storydiffusion.storyworld.scene_clips import SceneClip
from storydiffusion.training.clip_sources import SOURCES, build_csv_source, build_source
from tests.helpers.videos import video

STORYWORLD = {"clips": 2, "seed": 1, "frames": 4, "size": 64, "fps": 8, "edition": 1}


def test_settings_that_are_none_count_as_not_given():
    assert build_source("storyworld", {**STORYWORLD, "csv": None}) == StoryWorldSource(2, 1, 4, 64, 8, 1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kinetics", {}, "source=kinetics is unknown: choose one of storyworld, webvid, openvid"),
        ("webvid", {"csv": "a.csv"}, "source=webvid needs videos: write videos=VALUE"),
        ("webvid", {"csv": "a.csv", "videos": ".", "fps": 8}, "source=webvid has no setting fps: .* csv, videos"),
        ("webvid", {"csv": "/nowhere.csv", "videos": "."}, "csv=/nowhere.csv is not a file"),
    ],
)
def test_errors_name_the_setting(name, settings, message):
    with pytest.raises(UserError, match=message):
        build_source(name, settings)


def test_one_csv_layout_adds_a_data_set(tmp_path, monkeypatch):
    layout = CsvLayout("panda", id="clip_id", caption="text", files=("{clip_id}.mp4",))
    monkeypatch.setitem(SOURCES, "panda", partial(build_csv_source, layout))
    video(tmp_path / "7.mp4", 4)
    (tmp_path / "table.csv").write_text("clip_id,text\n7,A red panda eats\n")
    source = build_source("panda", {"csv": tmp_path / "table.csv", "videos": tmp_path})
    assert [(clip.name, clip.caption) for clip in source] == [("7", "A red panda eats")]


class FolderSource:
    """Videos of a folder, captioned by their file names: the whole interface of a source."""

    def __init__(self, videos: str) -> None:
        self.files = sorted(Path(videos).glob("*.mp4"))
        self.description = {"source": "folder", "files": [file.name for file in self.files]}

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self):
        for file in self.files:
            yield SourceClip(file.stem, file.stem.replace("_", " "), record=dict, video=VideoFile((file,)))


def test_one_class_adds_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "folder", FolderSource)
    video(tmp_path / "a_red_fox.mp4", 4)
    write_shards(build_source("folder", {"videos": tmp_path}), tmp_path / "shards")
    (batch,) = ClipLoader(LoaderOptions(str(tmp_path / "shards"), 1, ClipOptions(4, 1, 64, 64, caption_dropout=0)))
    assert batch.captions == ["a red fox"]


def test_storyworld_source_of_the_second_edition_records_every_character():
    source = build_source("storyworld", {**STORYWORLD, "clips": 4, "edition": 2})
    assert source.description == {"source": "storyworld", "seed": 1, "frames": 4, "size": 64, "fps": 8, "edition": 2}
    assert "edition" not in build_source("storyworld", STORYWORLD).description  # as in shards written before
    for sample in source:
        record = sample.record()
        clip = SceneClip.from_dict(record["clip"])
        assert [len(frame) for frame in record["truth"]] == [len(clip.motions)] * 4
        assert clip.start.characters[0].kind in sample.caption
    assert pickle.loads(pickle.dumps(sample.record))() == record  # workers call it
    assert sample.video()[4:8] == b"ftyp"
