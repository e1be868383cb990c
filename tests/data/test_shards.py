"""Shards: what is written can be read by us and by others, and what is wrong with one is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storydiffusion.data.shard_index import ShardIndex, index_missing, verify_shards
from storydiffusion.data.shard_writer import REJECTS, WriterOptions, write_shards
from storydiffusion.data.shards import INDEX, MANIFEST, SUMMARY, find_shards, read_manifest, read_summary
from storydiffusion.data.sources import SourceClip, VideoFile
from storydiffusion.errors import UserError
from tests.helpers.videos import video, write_tar


@dataclass(frozen=True)
class Folder:
    """A source of `count` clips of one video file; those in `bad` have a file that is not a video."""

    folder: Path
    count: int
    bad: frozenset[int] = frozenset()
    version: int = 1

    @property
    def description(self) -> dict[str, Any]:
        return {"source": "folder", "version": self.version}

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[SourceClip]:
        for number in range(self.count):
            path = self.folder / ("bad.mp4" if number in self.bad else "good.mp4")
            yield SourceClip(
                f"clip {number}", f"caption  of\n{number}", partial(dict, number=number), VideoFile((path,))
            )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("videos")
    video(folder / "good.mp4", 4)
    (folder / "bad.mp4").write_bytes(b"no video")
    return Folder(folder, 7, frozenset({3}))


NAMES = st.sampled_from(["0.tar", "", "../0.tar", "/etc/passwd", "pipe:ls", "\0", "a" * 300]) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
FEW = WriterOptions(clips_per_shard=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_follow_the_contract(source, tmp_path):
    manifest = write_shards(source, tmp_path, FEW)
    assert manifest == read_manifest(tmp_path)
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [
        ("000000.tar", 3), ("000001.tar", 2), ("000002.tar", 1),
    ]  # fmt: skip
    assert (manifest.complete, manifest.samples, manifest.rejected) == (True, 6, 1)
    with tarfile.open(tmp_path / "000001.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["000000004.json", "000000004.mp4", "000000004.txt"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_other_tools_read_shards(source, tmp_path):
    from webdataset.compat import WebDataset  # here, for it takes seconds that the other processes need not spend

    write_shards(source, tmp_path, FEW)
    shards = WebDataset(str(tmp_path / "{000000..000002}.tar"), shardshuffle=False)
    samples = list(shards)
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in (0, 1, 2, 4, 5, 6)]
    assert samples[3]["mp4"] == (source.folder / "good.mp4").read_bytes()
    assert samples[3]["txt"] == b"caption of 4"
    stream = {"frames": 4, "fps": 8.0, "height": 32, "width": 64}
    assert json.loads(samples[3]["json"]) == {"id": "clip 4", "number": 4, "stream": stream}


def test_shards_are_indexed_when_written(source, tmp_path):
    manifest = write_shards(source, tmp_path, FEW)
    index = ShardIndex(find_shards(str(tmp_path)))
    assert [index.read(0, row).key for row in index.rows(0)] == ["000000000", "000000001", "000000002"]
    assert index.read(0, index.rows(0)[1]).members["txt"] == b"caption of 1"
    assert [(record.sha256, record.samples) for record in index.records] == [
        (shard.sha256, shard.samples) for shard in manifest.shards
    ]
    verify_shards(index.paths)


def test_unusable_video_is_listed_with_the_reason(source, tmp_path):
    write_shards(source, tmp_path, FEW)
    rejects = [json.loads(line) for line in (tmp_path / REJECTS).read_text().splitlines()]
    assert [(reject["shard"], reject["key"], reject["id"]) for reject in rejects] == [
        ("000001.tar", "000000003", "clip 3")
    ]
    assert "not a video" in rejects[0]["reason"]


def test_bytes_are_independent_of_the_number_of_processes(source, tmp_path):
    write_shards(source, tmp_path / "one", FEW)
    write_shards(source, tmp_path / "two", replace(FEW, workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_run_rewrites_missing_shards_only(source, tmp_path):
    write_shards(source, tmp_path, FEW)
    first, times = contents(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    (tmp_path / "000001.tar").unlink()
    write_shards(source, tmp_path, FEW)
    assert contents(tmp_path) == first
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert [path.name for path in sorted(times) if times[path] != again[path]] == ["000001.tar"]


def test_longer_source_extends_the_shards(source, tmp_path):
    write_shards(replace(source, count=5), tmp_path / "grown", FEW)
    write_shards(source, tmp_path / "grown", FEW)
    write_shards(source, tmp_path / "straight", FEW)
    assert contents(tmp_path / "grown") == contents(tmp_path / "straight")


def test_killed_run_is_completed_by_the_next(source, tmp_path):
    """Killed in the middle of a shard: incomplete shards are invalid, finished ones are kept."""
    program = (
        "import sys, time; from tests.data import test_shards; from tests.data.test_shards import *\n"
        "class Slow(VideoFile):\n"
        "    def __call__(self):\n        time.sleep(0.1); return super().__call__()\n"
        "test_shards.VideoFile = Slow\n"
        "write_shards(Folder(Path(sys.argv[1]), 7, frozenset({3})), sys.argv[2], FEW)\n"
    )
    command = [sys.executable, "-c", program, str(source.folder), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "000000.tar").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = read_manifest(tmp_path / "killed")
    assert manifest is not None
    assert not manifest.complete
    with pytest.raises(UserError, match="not finished"):
        find_shards(str(tmp_path / "killed"))
    write_shards(source, tmp_path / "killed", FEW)
    write_shards(source, tmp_path / "straight", FEW)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_folder_of_another_source_is_refused(source, tmp_path):
    write_shards(source, tmp_path, FEW)
    with pytest.raises(UserError, match="version=1, not 2: choose another folder"):
        write_shards(replace(source, version=2), tmp_path, FEW)
    with pytest.raises(UserError, match="clips_per_shard=3, not 4"):
        write_shards(source, tmp_path, replace(FEW, clips_per_shard=4))
    write_tar(tmp_path / "foreign" / "x.tar", {})
    with pytest.raises(UserError, match="without a manifest"):
        write_shards(source, tmp_path / "foreign", FEW)


def test_error_if_no_video_is_usable(source, tmp_path):
    with pytest.raises(UserError, match=r"not one of 7 videos can be used.*not a video.*rejects\.jsonl"):
        write_shards(replace(source, bad=frozenset(range(7))), tmp_path, FEW)
    assert len((tmp_path / REJECTS).read_text().splitlines()) == 7


@pytest.mark.parametrize("workers", [1, 2])
def test_error_names_an_unwritable_folder(source, tmp_path, workers):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write into .*file"):
        write_shards(source, tmp_path / "file" / "out", replace(FEW, workers=workers))


def test_patterns_folders_and_lists_name_shards(tmp_path):
    for number in range(4):
        write_tar(tmp_path / f"{number:02d}.tar", {})
    names = lambda patterns: [path.name for path in find_shards(patterns)]  # noqa: E731
    assert names(str(tmp_path)) == ["00.tar", "01.tar", "02.tar", "03.tar"]
    assert names(f"{tmp_path}/{{01..02}}.tar") == ["01.tar", "02.tar"]
    assert names([f"{tmp_path}/03.tar", f"{tmp_path}/00.tar"]) == ["03.tar", "00.tar"]


@pytest.mark.parametrize(
    ("pattern", "needs"),
    [
        ("nowhere", "no shards match nowhere"),
        ("x/{000000..000003}.tar", "no shards match x/000000.tar"),
        ([], "no shards match"),
        ("empty", "no shards match empty"),
        ("pipe:touch owned", "not a local path"),
        ("x/{pipe:touch owned,a}.tar", "unsafe name"),
        ("https://example.org/{0..9}.tar", "not a local path"),
        ("s3://bucket/0.tar", "not a local path"),
        ("touch owned |", "not a local path"),
    ],
)
def test_missing_and_remote_shards_are_refused(tmp_path, monkeypatch, pattern, needs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=needs):
        find_shards(pattern)
    assert os.listdir(tmp_path) == ["empty"]


def test_duplicate_shards_are_refused(tmp_path):
    path = write_tar(tmp_path / "0.tar", {})
    with pytest.raises(UserError, match="named twice"):
        find_shards([str(path), str(tmp_path)])


@pytest.mark.parametrize("data", [b"", b"words, no tar" * 100, bytes(100)])
def test_error_names_a_shard_that_is_not_a_tar(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"0\.tar: it is damaged or not a tar"):
        index_missing([tmp_path / "0.tar"])


def test_error_names_a_shard_that_differs_from_its_manifest(source, tmp_path):
    write_shards(source, tmp_path, FEW)
    shutil.rmtree(tmp_path / "index")
    with open(tmp_path / "000002.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=r"000002\.tar: it differs from its manifest"):
        index_missing(find_shards(str(tmp_path)))


@pytest.mark.parametrize("name", ["../0.tar", "/0.tar", "pipe:touch owned", "s3://0.tar", ""])
def test_manifest_that_leaves_its_folder_is_refused(source, tmp_path, name):
    write_shards(source, tmp_path, FEW)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"000001.tar"', json.dumps(name)))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read.*not the name of a shard"):
        find_shards(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "shards": []}'])
def test_error_names_a_damaged_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {"format": st.just(1), "source": st.just({}) | VALUES},
        optional={
            "complete": st.booleans() | VALUES,
            "samples": VALUES,
            "shards": st.lists(
                st.fixed_dictionaries({"name": NAMES, "samples": VALUES, "bytes": VALUES, "sha256": NAMES})
            )
            | VALUES,
            "other": VALUES,
        },
    ).map(json.dumps)
    | VALUES.map(json.dumps)
    | st.text(max_size=20)
)
def test_any_manifest_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "any_manifest"
    (folder / INDEX).mkdir(parents=True, exist_ok=True)
    for file, read in ((MANIFEST, read_manifest), (f"{INDEX}/{SUMMARY}", read_summary)):
        (folder / file).write_text(text, encoding="utf-8", errors="surrogatepass")
        with suppress(UserError):
            read(folder)
    with suppress(UserError):
        find_shards(str(folder))
