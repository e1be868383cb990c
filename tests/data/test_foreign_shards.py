"""Shards that this package did not write: of other tools, hostile, or not shards at all."""

import io
import tarfile
from pathlib import Path

import pytest

from storydiffusion.data.shard_index import (
    ShardIndex,
    index_missing,
    verify_shards,
)
from storydiffusion.data.shards import find_shards, read_summary
from storydiffusion.errors import UserError
from tests.data.test_shard_index import opened, pickled
from tests.helpers.videos import write_shard, write_tar


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE = {
    "a pickle": member("a.pyd"),
    "another": member("a.PICKLE"),
    "a compressed pickle": member("x/a.pkl.gz"),
    "a pickle behind a video's name": member("a.mp4.pyd"),
    "weights": member("a.pth"),
    "out of the folder": member("../../a.mp4"),
    "out of the folder, in the middle": member("x/../../a.flac"),
    "out of the folder, on Windows": member("..\\a.mp4"),
    "a folder out of the folder": member("x/../..", type=tarfile.DIRTYPE),
    "absolute": member("/etc/a.txt"),
    "a line break": member("a\n.mp4"),
    "a line break in what is skipped": member("a\n.flac"),
    "an escape": member("a\x1b[2J.mp4"),
    "a direction mark": member("a\u202e4pm.mp4"),
    "a NUL": member("a.mp4", pax_headers={"path": "a\0b.mp4"}),
    "no UTF-8": member("a\udcff.mp4"),
    "a long name": member(f"{'a' * 1000}.mp4"),
    "a symlink": member("a.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": member("a.txt", type=tarfile.LNKTYPE, linkname="a.mp4"),
    "a device": member("a.mp4", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a hidden device": member(".a", type=tarfile.BLKTYPE, devmajor=1, devminor=5),
    "a FIFO": member("a.mp4", type=tarfile.FIFOTYPE),
    "an unknown type": member("a.mp4", type=b"Z"),
    "a sparse file": member("a.mp4", pax_headers={"GNU.sparse.map": "0,10", "GNU.sparse.size": "10"}),
}


@pytest.mark.parametrize("info", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_members_are_refused_by_name_without_executing(tmp_path, info):
    data = pickled(tmp_path)
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("good.mp4"))
        tar.addfile(member("good.txt"))
        if info.isreg():
            info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    name = info.pax_headers.get("path", info.name)
    with pytest.raises(UserError) as error:
        index_missing(find_shards(str(tmp_path)))
    assert f"{tmp_path}/0.tar: it holds {name[:40]!r}" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


FORMATS = ("webm", "mkv", "mov", "avi", "m4v")


FOREIGN = {
    "./": (["./a.mp4", "./a.txt", "./b.mp4", "./b.txt"], ["a", "b"]),
    "folders": (["x/a.mp4", "x/a.txt", "y/a.mp4", "y/a.txt"], ["x/a", "y/a"]),
    "dots in keys": (["v.1.mp4", "v.1.txt", "v.2.mp4", "v.2.txt"], ["v.1", "v.2"]),
    "dots in folders": (["v1.5/a.mp4", "v1.5/a.txt"], ["v1.5/a"]),
    "capitals": (["a.MP4", "a.Txt", "A.mp4", "A.TXT"], ["a", "A"]),
    "blanks and alphabets": (["a b.mp4", "a b.txt", "été 雪.mp4", "été 雪.txt"], ["a b", "été 雪"]),
    "other formats": ([f"{n}.{e}" for n in FORMATS for e in (n, "txt")], list(FORMATS)),
    "members beside": (["a.flac", "a.mp4", "a.npy", "a.txt", "a", "b.txt", "c.jpg", "b.mp4", "c.md"], ["a", "b"]),
    "hidden files": ([".DS_Store", "x/._a.mp4", "x/a.mp4", "x/a.txt", "x/.a.txt"], ["x/a"]),
}  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), FOREIGN.values(), ids=list(FOREIGN))
def test_shards_of_other_tools_are_read(tmp_path, names, expected):
    """A member holds its own name: what is read for a key is the bytes of its video and its caption."""
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for folder in sorted({str(Path(name).parent) for name in names}):
            tar.addfile(member(folder, type=tarfile.DIRTYPE))
        for name in names:
            tar.addfile(member(name, size=len(name.encode())), io.BytesIO(name.encode()))
    index_missing(find_shards(str(tmp_path)))
    index = opened(tmp_path)
    samples = [index.read(0, row) for row in index.rows(0)]
    assert [sample.key for sample in samples] == expected
    for key, members in samples:
        assert {"mp4", "txt"} == members.keys()
        for name in (data.decode() for data in members.values()):
            assert name in names
            assert str(Path(name).with_suffix("")) == key
    verify_shards(index.paths)


@pytest.mark.parametrize(
    "names",
    [["a.jpg", "a.txt", "a.json"], ["a.mp4", "b.txt"], ["a.txt.mp4", "a.flac"], [".a.mp4", ".a.txt"], ["a"]],
)
def test_tars_without_a_sample_are_refused_with_what_they_hold(tmp_path, names):
    write_tar(tmp_path / "0.tar", {"x.mp4": b"", "x.txt": b""})
    write_tar(tmp_path / "1.tar", dict.fromkeys(names, b""))
    with pytest.raises(
        UserError, match=r"1 of 2 .*1\.tar: it holds '.*but no sample of a video and a caption"
    ) as error:
        index_missing(find_shards(str(tmp_path)))
    assert all(repr(name) in str(error.value) for name in names)
    assert set(read_summary(tmp_path)) == {"0.tar"}


def test_webdataset_reads_the_same_samples(tmp_path):
    """Of names without further dots, whose keys webdataset ends at the first one."""
    from webdataset.compat import WebDataset

    names = ["./a.MP4", "./a.txt", "x/b.txt", "x/b.flac", "x/b.webm", "x/b.json", "c.txt", "README", "c.mov"]
    path = write_tar(tmp_path / "0.tar", {name: name.encode() for name in names})
    index_missing([path])
    index = ShardIndex([path])
    videos = ("mp4", "webm", "mov")
    theirs = [
        (Path(one["__key__"]).as_posix(), next(one[e] for e in videos if e in one), one["txt"])
        for one in WebDataset(str(path), shardshuffle=False)
        if "txt" in one
    ]
    ours = [(key, members["mp4"], members["txt"]) for key, members in (index.read(0, row) for row in index.rows(0))]
    assert ours == theirs


def test_duplicate_keys_and_members_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.mp4": b""})
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        tar.addfile(member("a.mp4"))
    write_tar(tmp_path / "1.tar", {"a.mp4": b"", "b.mp4": b"", "a.txt": b""})
    with pytest.raises(UserError, match=r"0\.tar: it holds a\.mp4 twice.*1\.tar: it holds a\.txt twice, or the mem"):
        index_missing(find_shards(str(tmp_path)))


def test_negative_member_size_does_not_loop(tmp_path):
    path = write_shard(tmp_path / "0.tar", ["a", "b"], b"x" * 600)
    data = bytearray(path.read_bytes())
    at = data.index(b"b.txt")
    data[at + 124 : at + 136] = (-4096 & (2**96 - 1)).to_bytes(12)  # base 256, as GNU writes what octal cannot hold
    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) - sum(data[at + 148 : at + 156]) + 8 * 32)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"0\.tar: it breaks off inside b\.txt"):
        index_missing([path])
