"""Streamed shards: written by webdataset, read from a server with faults, split, shuffled, and bounded on disk."""

import csv
import io
import os
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from webdataset.writer import ShardWriter

from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.clips import LoaderOptions
from storydiffusion.data.loader import ClipLoader
from storydiffusion.data.remote_shards import ShardFetcher, StreamOptions, list_urls, make_room
from storydiffusion.data.shard_index import index_missing
from storydiffusion.data.shards import find_shards
from storydiffusion.data.stream import StreamLoader
from storydiffusion.errors import UserError
from tests.helpers.shard_server import BUSY, CUT, STALL, ShardServer, serve_shards
from tests.helpers.videos import video

SHARDS, SAMPLES = 4, 3
CLIPS = ClipOptions(frames=3, stride=2, height=16, width=16, caption_dropout=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Return a folder of four shards of three samples, as webdataset's own writer makes them."""
    folder = tmp_path_factory.mktemp("shards")
    blob = video(folder / "a.mp4", 12)
    (folder / "a.mp4").unlink()
    with ShardWriter(f"{folder}/%06d.tar", maxcount=SAMPLES, verbose=0) as writer:
        for number in range(SHARDS * SAMPLES):
            writer.write({"__key__": f"{number:04d}", "mp4": blob, "txt": f"caption {number}", "json": {"id": number}})
    assert len(list(folder.glob("*.tar"))) == SHARDS
    return folder


@pytest.fixture
def server(shards):
    with serve_shards(shards) as started:
        yield started


@pytest.fixture
def stream(tmp_path) -> StreamOptions:
    return StreamOptions(shuffle=4, cache=str(tmp_path / "fetched"), cache_gb=1.0, retries=3, timeout_seconds=60.0)


def build_options(server: ShardServer, **changes) -> LoaderOptions:
    pattern = f"{server.url}/{{000000..{SHARDS - 1:06d}}}.tar"
    return LoaderOptions(pattern, **{"batch_size": 2, "clips": CLIPS, "backend": "pyav", **changes})


def read(loader: StreamLoader, batches: int) -> list[str]:
    return [key for batch in islice(loader, batches) for key in batch.keys]


ALL = [f"{number:04d}" for number in range(SHARDS * SAMPLES)]


def test_a_pass_has_every_sample_once_in_another_order_each_time(server, stream):
    loader = StreamLoader(build_options(server), stream)
    keys = read(loader, SHARDS * SAMPLES)  # two passes
    first, second = keys[: len(ALL)], keys[len(ALL) :]
    assert sorted(first) == sorted(second) == ALL
    assert first != second != ALL
    assert Counter(name for name, _ in server.requests) == {f"{number:06d}.tar": 1 for number in range(SHARDS)}
    assert (loader.rejected, loader.step) == (0, len(ALL))


def test_batches_are_those_of_the_indexed_reader(server, stream, shards, tmp_path):
    for file in shards.glob("*.tar"):
        (tmp_path / file.name).symlink_to(file)
    index_missing(find_shards(str(tmp_path)))
    options = build_options(server, batch_size=1)
    indexed = {batch.keys[0]: batch for batch in ClipLoader(replace(options, shards=str(tmp_path)))}
    for batch in islice(StreamLoader(options, stream), len(ALL)):
        other = indexed[batch.keys[0]]
        assert batch.captions == other.captions  # type: ignore[union-attr]
        assert (batch.frames.shape, batch.frames.dtype) == (other.frames.shape, other.frames.dtype)  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", [STALL, CUT, BUSY])
def test_faults_of_the_server_are_tried_again(server, stream, fault):
    server.faults = {"000001.tar": [fault, fault], "000003.tar": [fault]}
    patient = replace(stream, timeout_seconds=1.0 if fault == STALL else 60.0, retries=8)
    assert sorted(read(StreamLoader(build_options(server), patient), len(ALL) // 2)) == ALL
    assert [answer for name, answer in server.requests if name == "000001.tar"][:3] == [fault, fault, ""]


def test_a_shard_that_fails_for_good_is_listed_and_left_out_or_ends_the_run(server, stream, tmp_path):
    server.faults = {"000002.tar": [BUSY] * 1000}
    few = replace(stream, retries=1)
    file = tmp_path / "quarantine.csv"
    loader = StreamLoader(build_options(server, rejected_share=0.1), few, quarantine=file)
    keys = read(loader, 2 * (SHARDS - 1) * SAMPLES // 2)
    assert set(keys) == set(ALL) - {"0006", "0007", "0008"}
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert rows[0]["shard"] == f"{server.url}/000002.tar"
    assert "503" in rows[0]["reason"]
    with pytest.raises(UserError, match=r"000002\.tar.*it cannot be fetched"):
        read(StreamLoader(build_options(server), few), 6)


def test_a_dead_server_ends_the_run(server, stream):
    server.faults = {f"{number:06d}.tar": [BUSY] * 1000 for number in range(SHARDS)}
    with pytest.raises(UserError, match="cannot be fetched"):
        read(StreamLoader(build_options(server, rejected_share=0.5), replace(stream, retries=0)), 1)


def test_a_missing_shard_is_not_tried_again(server, stream):
    options = replace(build_options(server), shards=f"{server.url}/{{000000..000009}}.tar")
    with pytest.raises(UserError, match="there is no such shard"):
        read(StreamLoader(options, stream), 6)
    assert max(Counter(name for name, _ in server.requests).values()) == 1


def test_processes_and_workers_share_the_shards(server, stream):
    parts = []
    for rank in range(2):
        loader = StreamLoader(build_options(server, workers=2), stream, rank, 2)
        parts.append(read(loader, 2 * SAMPLES))
    assert all(set(Counter(part).values()) == {1} for part in parts)
    assert sorted(parts[0] + parts[1]) == ALL
    with pytest.raises(UserError, match=r"4 shards cannot be split among 3 processes of 2 workers"):
        StreamLoader(build_options(server, workers=2, batch_size=6), stream, 0, 3)


def test_only_copies_of_shards_are_removed_the_oldest_first(tmp_path):
    names = [f"{number:016x}-a.tar" for number in range(4)]
    for number, name in enumerate([*names, "thesis.tex", f".{names[0]}.7.tmp"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (number, number))
    make_room(tmp_path, 25e-9)
    assert {file.name for file in tmp_path.iterdir()} == {*names[2:], "thesis.tex", f".{names[0]}.7.tmp"}


def test_a_copy_that_is_removed_while_it_is_read_stays_readable(server, stream):
    fetcher = ShardFetcher(stream, lambda url, reason: pytest.fail(f"{url}: {reason}"))
    with fetcher.open(f"{server.url}/000000.tar") as first:
        make_room(Path(stream.cache), 0)
        assert not list(Path(stream.cache).iterdir())
        assert first.read() == (server.folder / "000000.tar").read_bytes()


def test_the_cache_keeps_its_size(server, stream, shards):
    size = (shards / "000000.tar").stat().st_size
    small = replace(stream, cache_gb=1.5 * size / 1e9)
    read(StreamLoader(build_options(server), small), 2 * len(ALL))
    files = [file for file in Path(stream.cache).iterdir() if file.is_file()]
    assert 1 <= len(files) <= 2
    assert not list(Path(stream.cache).glob(".*.tmp"))
    assert len(server.requests) > SHARDS


def test_a_resumed_run_counts_on_in_another_order(server, stream):
    loader = StreamLoader(build_options(server), stream)
    begun = read(loader, 2)
    state = loader.state_dict()
    resumed = StreamLoader(build_options(server), stream)
    resumed.load_state_dict(state)
    assert resumed.step == 2
    assert read(resumed, 2) != begun
    assert resumed.step == 4


def test_unusable_samples_are_listed_by_address_and_key(shards, stream, tmp_path):
    with tarfile.open(shards / "000000.tar") as whole, tarfile.open(tmp_path / "000000.tar", "w") as tar:
        for member in whole:
            data = b"no video" if member.name == "0001.mp4" else whole.extractfile(member).read()  # type: ignore[union-attr]
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with serve_shards(tmp_path) as server:
        options = replace(build_options(server, rejected_share=0.1), shards=f"{server.url}/000000.tar")
        loader = StreamLoader(options, stream, quarantine=tmp_path / "quarantine.csv")
        assert set(read(loader, 4)) == {"0000", "0002"}
    text = (tmp_path / "quarantine.csv").read_text()
    assert f"{server.url}/000000.tar,0001," in text


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_untrusted_shards_are_refused(shards, stream, tmp_path, damage):
    file = tmp_path / "000000.tar"
    data = (shards / "000000.tar").read_bytes()
    file.write_bytes(data[: len(data) // 2])
    if damage == "pickle":
        with tarfile.open(file, "w") as tar:
            tar.addfile(tarfile.TarInfo("0001.pkl"), io.BytesIO())
    with serve_shards(tmp_path) as server:
        options = replace(build_options(server), shards=f"{server.url}/000000.tar")
        said = "breaks off" if damage == "cut" else "a pickle"
        with pytest.raises(UserError, match=said):
            read(StreamLoader(options, replace(stream, retries=0)), 1)


def test_addresses_are_patterns_of_known_schemes():
    assert list_urls("https://host/{00..02}.tar") == [f"https://host/0{number}.tar" for number in range(3)]
    assert list_urls(["a.tar", "http://host/b.tar"]) == ["a.tar", "http://host/b.tar"]
    for pattern, said in (
        ("pipe:curl http://host/a.tar", "is a command"),
        ("simplecache::http://host/a.tar", "has the scheme simplecache::http"),
        ("ftp://host/a.tar", "give one of http, https, s3, gs"),
        ("http://host/{00..02.tar", "cannot be expanded"),
    ):
        with pytest.raises(UserError, match=said):
            list_urls(pattern)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(scheme, package):
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(UserError, match=rf"{package}.*\.\[stream\]"):
            list_urls(f"{scheme}://bucket/a.tar")
    else:
        assert list_urls(f"{scheme}://bucket/a.tar")
