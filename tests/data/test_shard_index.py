"""The index: it finds every byte and every damage, refuses what is not of the contract, and opens without reading."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storydiffusion.data.shard_index import (
    ShardIndex,
    UnreadableShardError,
    index_missing,
    index_shards,
    verify_shards,
    write_summary,
)
from storydiffusion.data.shards import find_shards, read_summary
from storydiffusion.errors import UserError
from tests.conftest import Outcome, run_verb
from tests.helpers.damage import DAMAGES
from tests.helpers.videos import write_shard

SAMPLES = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write ten indexed shards of 4 samples of 3000 bytes."""
    for number in range(10):
        write_shard(tmp_path / f"{number}.tar", [f"s{number}k{n}" for n in range(SAMPLES)], bytes([number + 1]) * 3000)
    index_missing(find_shards(str(tmp_path)))
    return tmp_path


def opened(folder: Path) -> ShardIndex:
    return ShardIndex(find_shards(str(folder)))


def test_index_locates_the_bytes_of_every_member(folder):
    index = opened(folder)
    assert index.counts.tolist() == [SAMPLES] * 10
    for shard in (0, 9):
        with tarfile.open(index.paths[shard]) as tar:
            bytes_of = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        found = {}
        for row in index.rows(shard):
            key, members = index.read(shard, row)
            found |= {f"{key}.{extension}": data for extension, data in members.items()}
        assert found == bytes_of


def test_members_in_any_order_and_long_names_are_indexed(tmp_path):
    """PAX headers precede their members and belong to the sample's bytes."""
    key = "k" * 150
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for name in (f"{key}.txt", f"{key}.mp4", "b.json", "b.txt", "b.mp4"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(name), 1.5
            tar.addfile(info, io.BytesIO(name.encode()))
    index_missing(find_shards(str(tmp_path)))
    index = opened(tmp_path)
    samples = [index.read(0, row) for row in index.rows(0)]
    assert samples[0] == (key, {"mp4": f"{key}.mp4".encode(), "txt": f"{key}.txt".encode()})
    assert samples[1] == ("b", {"mp4": b"b.mp4", "txt": b"b.txt", "json": b"b.json"})


def test_opening_reads_one_line_for_each_shard_and_nothing_else(folder):
    """The rows of all samples would not fit in memory: they are read with the first sample of their shard."""
    expected = opened(folder).fingerprint
    rows = folder / "index" / "3.tar.npy"
    rows.write_bytes(rows.read_bytes()[:-1])
    for number in range(4, 10):
        (folder / "index" / f"{number}.tar.npy").unlink()
        (folder / f"{number}.tar").unlink()
    index = opened(folder)
    assert (index.fingerprint, index.counts.sum()) == (expected, 10 * SAMPLES)
    assert len(index.rows(2)) == SAMPLES
    with pytest.raises(UserError, match=r"3\.tar\.npy cannot be read \(its checksum does not match\): delete"):
        index.rows(3)
    with pytest.raises(UserError, match=r"4\.tar\.npy cannot be read \(No such file"):
        index.rows(4)


def test_fingerprint_depends_on_contents_and_their_order(folder, tmp_path_factory):
    paths = find_shards(str(folder))
    copy = tmp_path_factory.mktemp("copy")
    for path in paths:
        (copy / path.name).write_bytes(path.read_bytes())
    index_missing(find_shards(str(copy)))
    assert opened(copy).fingerprint == opened(folder).fingerprint
    assert ShardIndex(paths[::-1]).fingerprint != opened(folder).fingerprint
    write_shard(copy / "9.tar", ["other"], b"x")
    index_shards(find_shards(str(copy)))
    assert opened(copy).fingerprint != opened(folder).fingerprint


def test_verification_names_all_seven_damages_at_once(folder):
    for number, damage in enumerate(DAMAGES.values()):
        damage(folder / f"{number}.tar")
    with pytest.raises(UserError) as error:
        verify_shards(find_shards(str(folder)))
    assert str(error.value).startswith(f"{len(DAMAGES)} of 10 shards cannot be used: ")
    for number in range(10):
        assert (f"{folder}/{number}.tar: it" in str(error.value)) == (number < len(DAMAGES))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_is_detected_on_reading(folder, kind):
    index = opened(folder)
    DAMAGES[kind](folder / "0.tar")
    bad = []
    for row in index.rows(0):
        try:
            index.read(0, row)
        except UnreadableShardError as error:
            bad.append(str(error))
    assert bad
    assert all(reason.startswith(("it cannot be read: no such file", "its ")) for reason in bad)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "flipped bit"])
def test_damage_visible_in_a_tar_is_detected_without_an_index(folder, kind):
    DAMAGES[kind](folder / "0.tar")
    with pytest.raises(UserError, match=r"1 of 1 shards cannot be used: \S+/0\.tar: it "):
        index_shards(find_shards(str(folder)))
    assert len(read_summary(folder)) == 9


def test_indexed_shards_are_reread_only_if_changed(folder):
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "index").glob("*.npy")}
    (folder / "index" / "2.tar.npy").unlink()
    write_shard(folder / "5.tar", ["new"], b"new")
    index_shards(find_shards(str(folder)))
    again = {path.name: path.stat().st_mtime_ns for path in (folder / "index").glob("*.npy")}
    assert sorted(name for name in times if again[name] != times[name]) == ["2.tar.npy", "5.tar.npy"]
    assert opened(folder).counts.tolist() == [4, 4, 4, 4, 4, 1, 4, 4, 4, 4]


def test_interrupted_indexing_keeps_its_progress(tmp_path, monkeypatch):
    from storydiffusion.data import shard_index

    for number in range(6):
        write_shard(tmp_path / f"{number}.tar", ["a"], b"x")
    write = shard_index.write_index

    def interrupted(path: Path):
        if path.name == "4.tar":
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(shard_index, "write_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_shards(find_shards(str(tmp_path)), workers=1)
    done = read_summary(tmp_path)
    assert set(done) <= {"0.tar", "1.tar", "2.tar", "3.tar"}
    assert done
    monkeypatch.setattr(shard_index, "write_index", write)
    index_shards(find_shards(str(tmp_path)))
    assert opened(tmp_path).counts.tolist() == [1] * 6


def test_training_indexes_missing_shards_and_never_changed_ones(folder):
    (folder / "0.tar").write_bytes((folder / "1.tar").read_bytes())
    write_shard(folder / "new.tar", ["n"], b"x")
    index_missing(find_shards(str(folder)))
    index = opened(folder)
    assert len(index.paths) == 11
    with pytest.raises(UnreadableShardError, match="have changed since they were indexed"):
        index.read(0, index.rows(0)[0])


def test_error_names_the_command_for_shards_without_an_index(folder):
    path = write_shard(folder / "new.tar", ["n"], b"x")
    with pytest.raises(UserError, match=r"new\.tar is in no index: storydiffusion index-shards shards=/"):
        ShardIndex([path])


def pickled(folder: Path) -> bytes:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (folder / "owned",))

    return pickle.dumps(Bomb())


@pytest.mark.parametrize("name", ["pipe:touch owned.tar", "https://x.tar", "a|b.tar", "a\nb.tar", ".hidden.tar"])
def test_shards_with_unsafe_names_are_refused_everywhere(folder, name):
    if "/" not in name:
        write_shard(folder / name, ["n"], b"x")
        with pytest.raises(UserError, match="unsafe name"):
            find_shards(str(folder))
        (folder / name).unlink()
    records = [replace(record, name=record.name.replace("3.tar", name)) for record in read_summary(folder).values()]
    write_summary(folder, records)  # with the checksum that fits, as whoever plants one can write it
    with pytest.raises(UserError, match=r"shards\.json cannot be read as an index") as error:
        find_shards(str(folder))
    assert f"{name!r} is not the name of a shard" in str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[:-3],
        lambda text: text.replace('"samples": 4', '"samples": 5'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: '{"format": 1, "shards": {}}',
    ],
)
def test_a_damaged_or_foreign_summary_is_refused_in_one_sentence(folder, spoil: Callable[[str], str]):
    file = folder / "index" / "shards.json"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(UserError, match=r"shards\.json cannot be read as an index of shards \(.*\): delete .* again$"):
        opened(folder)


def test_pickled_rows_are_not_loaded(folder):
    file = io.BytesIO()
    np.save(file, np.array([pickled(folder)], dtype=object), allow_pickle=True)
    (folder / "index" / "0.tar.npy").write_bytes(file.getvalue())
    records = read_summary(folder)
    forged = replace(records["0.tar"], rows_crc32=zlib.crc32(file.getvalue()))
    write_summary(folder, [forged, *(record for name, record in records.items() if name != "0.tar")])
    with pytest.raises(UserError, match=r"0\.tar\.npy cannot be read"):
        opened(folder).rows(0)
    assert not (folder / "owned").exists()


@pytest.fixture
def index_command(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """Calls `storydiffusion index-shards OVERRIDES` in this process, in an empty working directory."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: run_verb("index-shards", overrides, capsys)


def test_the_command(index_command, tmp_path):
    for number in range(3):
        write_shard(tmp_path / "shards" / f"{number}.tar", ["a", "b", "c"], b"x" * 600)
    outcome = index_command("shards=shards", "workers=1")
    assert (outcome.code, outcome.out) == (0, "indexed 3 shards of 9 samples\n"), outcome
    outcome = index_command("shards='shards/{0..1}.tar'", "verify=true")
    assert (outcome.code, outcome.out) == (0, "verified 2 shards of 6 samples\n"), outcome
    DAMAGES["flipped bit"](tmp_path / "shards" / "1.tar")
    outcome = index_command("shards=shards", "verify=true")
    assert outcome.code == 1
    assert outcome.err.startswith("index_shards.py: 1 of 3 shards cannot be used: shards/1.tar: it")


@pytest.mark.parametrize("override", ["shards='pipe:touch owned'", "shards=nowhere", "workers=-1", "shard=x"])
def test_bad_input_is_one_sentence(index_command, tmp_path, override):
    outcome = index_command("shards=nowhere", override)
    assert outcome.code == 1
    assert len(outcome.sentences) == 1, outcome.err
    assert not list(tmp_path.iterdir())
