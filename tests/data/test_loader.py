"""Batches: typed, complete, in an order that only shards, seed, epoch and step decide; faults are named."""

import csv
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storydiffusion.data.clip_sampling import ClipOptions
from storydiffusion.data.loader import ClipBatch, ClipLoader, LoaderOptions
from storydiffusion.data.shard_index import ShardIndex, index_missing, index_shards
from storydiffusion.data.shards import find_shards
from storydiffusion.errors import UserError
from tests.helpers.damage import DAMAGES
from tests.helpers.videos import numbers_in, video, write_shard, write_tar

SMALL = ClipOptions(frames=3, stride=2, height=16, width=16, caption_dropout=0.0)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return video(tmp_path_factory.mktemp("clip") / "a.mp4", 12)


@pytest.fixture(scope="module")
def shards(blob: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return options for shards of 5, 4 and 4 samples."""
    folder = tmp_path_factory.mktemp("shards")
    for number, count in enumerate((5, 4, 4)):
        write_shard(folder / f"{number}.tar", [f"s{number}k{sample}" for sample in range(count)], blob)
    return indexed(folder)


def indexed(path: Path) -> Path:
    index_missing(find_shards(str(path)))
    return path


@pytest.fixture
def options(shards: Path) -> LoaderOptions:
    return LoaderOptions(str(shards), batch_size=4, clips=SMALL, window=2)


def keys(loader: ClipLoader, epochs: int = 1) -> list[list[str]]:
    return [batch.keys for _ in range(epochs) for batch in loader]


def same(one: list[ClipBatch], two: list[ClipBatch]) -> bool:
    return len(one) == len(two) and all(
        a.keys == b.keys and a.captions == b.captions and torch.equal(a.frames, b.frames)
        for a, b in zip(one, two, strict=True)
    )


def test_batch_has_the_documented_shapes(options):
    batch = next(iter(ClipLoader(options)))
    assert isinstance(batch, ClipBatch)
    assert (batch.frames.shape, batch.frames.dtype) == ((4, 3, 3, 16, 16), torch.uint8)
    assert batch.captions == [f"caption {key}" for key in batch.keys]
    for clip in batch.frames:
        first, *rest = numbers_in(clip[..., 6:].numpy())
        assert rest == [first + 2, first + 4]


def test_epoch_has_every_sample_except_the_remainder(options):
    loader = ClipLoader(options)
    assert len(loader) == 3
    first = keys(loader)
    assert (loader.epoch, loader.step) == (0, 3)
    second = keys(loader)
    assert (loader.epoch, loader.step) == (1, 3)
    for epoch in (first, second):
        assert len(epoch) == 3
        assert len({key for batch in epoch for key in batch}) == 12
    assert first != second  # and so on without end
    assert keys(ClipLoader(options), epochs=2) == first + second
    assert keys(ClipLoader(replace(options, seed=1))) != first


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_batches_are_independent_of_workers(options, backend):
    options = replace(options, clips=replace(SMALL, flip=0.5, brightness=0.3, caption_dropout=0.5), backend=backend)
    alone, helped = ClipLoader(options), ClipLoader(replace(options, workers=2))
    assert same([*alone, *alone], [*helped, *helped])


def test_ranks_share_each_batch_and_take_equally_many_steps(options):
    whole = list(ClipLoader(options))
    halves = [list(ClipLoader(options, rank, 2)) for rank in range(2)]
    assert [len(half) for half in halves] == [3, 3]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.frames, torch.cat([part.frames for part in parts]))
        assert batch.keys == [key for part in parts for key in part.keys]


def number_frames(record, indices):
    """Caption frames by the record's name and their numbers; refuse records without one."""
    if "name" not in record:
        raise ValueError("the record has no name")
    return [f"{record['name']} {index}" for index in indices]


@pytest.mark.parametrize("workers", [0, 1])
def test_captioner_captions_every_frame(blob, tmp_path, workers):
    members = {}
    for key in ("a", "b"):
        members |= {f"{key}.mp4": blob, f"{key}.txt": b"unused", f"{key}.json": f'{{"name": "{key}"}}'.encode()}
    write_tar(tmp_path / "0.tar", members)
    options = LoaderOptions(str(indexed(tmp_path)), 2, SMALL, workers, captioner=number_frames)
    (batch,) = ClipLoader(options)
    expected = [
        f"{key} {number}"
        for key, frames in zip(batch.keys, batch.frames, strict=True)
        for number in numbers_in(frames.numpy())
    ]
    assert batch.captions == expected
    assert len(batch.captions) == 2 * SMALL.frames


@pytest.mark.parametrize(("record", "needs"), [({}, "has no record"), ({"a.json": b"{}"}, "the record has no name")])
def test_a_sample_that_its_captioner_refuses_is_named(blob, tmp_path, record, needs):
    write_tar(tmp_path / "0.tar", {"a.mp4": blob, "a.txt": b"unused", **record})
    options = LoaderOptions(str(indexed(tmp_path)), 1, SMALL, captioner=number_frames)
    with pytest.raises(UserError, match=needs):
        next(iter(ClipLoader(options)))


def test_random_draws_differ_between_clips_and_epochs(options):
    loader = ClipLoader(replace(options, batch_size=12, clips=replace(SMALL, caption_dropout=0.5)))
    starts = [[numbers_in(clip[..., 6:].numpy())[0] for clip in batch.frames] for batch in [*loader, *loader]]
    assert len(set(starts[0])) > 2
    assert starts[0] != starts[1]
    other = next(iter(ClipLoader(replace(loader.options, seed=1))))
    assert starts[0] != [numbers_in(clip[..., 6:].numpy())[0] for clip in other.frames]
    dropped = [caption == "" for batch in [*loader, *loader] for caption in batch.captions]
    assert 3 < sum(dropped) < 21


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (3, 0), (4, 0), (4, 2)])
def test_restored_loader_resumes_with_the_very_next_batch(options, stop, workers):
    straight = ClipLoader(options)
    expected = [*straight, *straight, *straight]
    loader, seen, state = ClipLoader(replace(options, workers=workers)), [], {}
    while len(seen) < stop:
        for batch in loader:
            seen.append(batch)
            if len(seen) == stop:
                state = loader.state_dict()
                break
    resumed = ClipLoader(options)
    resumed.load_state_dict(state)
    while len(seen) < 9:
        seen += list(resumed)
    assert same(seen, expected)


def test_state_is_plain_and_equal_on_all_ranks(options):
    loaders = [ClipLoader(options, rank, 2) for rank in range(2)]
    for loader in loaders:
        next(iter(loader))
    assert loaders[0].state_dict() == loaders[1].state_dict()
    assert all(isinstance(value, int | str) for value in loaders[0].state_dict().values())


@pytest.mark.parametrize("change", [{"seed": 5}, {"batch_size": 2}, {"window": 3}])
def test_state_of_another_order_is_refused(options, change):
    with pytest.raises(UserError, match=f"{next(iter(change))}=.*set it back"):
        ClipLoader(replace(options, **change)).load_state_dict(ClipLoader(options).state_dict())


def test_state_of_another_version_is_refused(options):
    with pytest.raises(UserError, match="version=0"):
        ClipLoader(options).load_state_dict({**ClipLoader(options).state_dict(), "version": 0})


def test_state_of_other_data_of_equal_size_is_refused(options, shards, blob, tmp_path):
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    same_data = replace(options, shards=str(indexed(tmp_path)))
    ClipLoader(same_data).load_state_dict(ClipLoader(options).state_dict())
    write_shard(tmp_path / "1.tar", ["x0", "x1", "x2", "x3"], blob)
    index_shards(find_shards(str(tmp_path)))
    with pytest.raises(UserError, match=r"saved state has shards=.*set it back"):
        ClipLoader(same_data).load_state_dict(ClipLoader(options).state_dict())


def test_keys_are_independent_of_processes_changed_within_an_epoch(options):
    """World size and workers change twice in each epoch, over two edges between epochs."""
    expected = keys(ClipLoader(replace(options, batch_size=2)), epochs=3)  # 6 steps each
    seen: list[list[str]] = []
    state = ClipLoader(replace(options, batch_size=2)).state_dict()
    legs = [(1, 0, 2), (2, 1, 2), (1, 2, 4), (2, 0, 3), (2, 2, 4), (1, 1, 3)]  # world size, workers, steps
    for world, workers, steps in legs:
        loaders = [ClipLoader(replace(options, batch_size=2, workers=workers), rank, world) for rank in range(world)]
        parts = []
        for loader in loaders:
            loader.load_state_dict(state)
            parts.append(take(loader, steps))
        seen += [[key for part in step for key in part] for step in zip(*parts, strict=True)]
        (state, *others) = [loader.state_dict() for loader in loaders]
        assert all(other == state for other in others)
    assert seen == expected


def take(loader: ClipLoader, steps: int) -> list[list[str]]:
    """Return the keys of the next steps, across epochs."""
    taken: list[list[str]] = []
    while len(taken) < steps:
        for batch in loader:
            taken.append(batch.keys)
            if len(taken) == steps:
                break
    return taken


def test_epoch_of_ten_million_samples_needs_no_memory(options, tmp_path):
    """Steps are generated, not listed: 10,700 shards of 1,000 samples, none of them read."""
    import tracemalloc

    from storydiffusion.data.shard_index import write_summary
    from storydiffusion.data.shards import IndexRecord

    write_summary(tmp_path, [IndexRecord(f"{n:05d}.tar", 1000, 1, "0" * 64, 0) for n in range(10_700)])
    loader = ClipLoader(replace(options, shards=str(tmp_path), batch_size=8, window=8))
    assert len(loader) == 10_700_000 // 8
    tracemalloc.start()
    with pytest.raises(UserError, match=r"\.tar\.npy cannot be read"):  # it comes as far as to the first sample
        next(iter(loader))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_rows_are_cached_for_one_window_only(options, monkeypatch):
    kept: list[weakref.ref[np.ndarray]] = []
    read = ShardIndex.rows

    def rows(self: ShardIndex, shard: int) -> np.ndarray:
        found = read(self, shard)
        kept.append(weakref.ref(found))
        return found

    monkeypatch.setattr(ShardIndex, "rows", rows)
    loader = ClipLoader(replace(options, batch_size=1, window=1))
    most = max(sum(row() is not None for row in kept) for _ in loader)
    assert (len(kept), most) == (3, 1)


@pytest.mark.parametrize(
    ("members", "needs"),
    [
        ({"k1.txt": b"words"}, ["k1", "no video"]),
        ({"k1.mp4": b"VIDEO"}, ["k1", "no caption"]),
        ({"k1.mp4": b"VIDEO", "k1.txt": b"  \n"}, ["k1", "caption is empty"]),
        ({"k1.mp4": b"VIDEO", "k1.txt": b"\xff\xfe"}, ["k1", "not UTF-8"]),
        ({"k1.mp4": b"", "k1.txt": b"words"}, ["k1", "0 bytes"]),
        ({"k1.mp4": b"CUT", "k1.txt": b"words"}, ["k1"]),
        ({"k1.mp4": b"SHORT", "k1.txt": b"words"}, ["k1", "4 frames", "spans 5"]),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_error_names_a_bad_sample_in_one_sentence(tmp_path, blob, members, needs, workers):
    stand_in = {b"VIDEO": blob, b"CUT": blob[:-300], b"SHORT": video(tmp_path / "short.mp4", 4)}
    members = {"good.mp4": b"VIDEO", "good.txt": b"words", **members}
    path = write_tar(tmp_path / "bad.tar", {name: stand_in.get(data, data) for name, data in members.items()})
    indexed(path)
    with pytest.raises(UserError) as error:
        list(ClipLoader(LoaderOptions(str(path), 1, SMALL, workers)))
    for need in [str(path), *needs]:
        assert need in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_samples_are_replaced_deterministically_up_to_a_share(tmp_path, blob, caplog):
    write_shard(tmp_path / "0.tar", [f"good{number}" for number in range(9)], blob)
    write_tar(tmp_path / "1.tar", {"bad.mp4": blob[: len(blob) // 2], "bad.txt": b"words"})
    options = LoaderOptions(str(indexed(tmp_path)), 5, SMALL, rejected_share=0.1)
    loader = ClipLoader(options, quarantine=tmp_path / "run" / "quarantine.csv")
    batches = list(loader)
    (row,) = quarantined(tmp_path / "run" / "quarantine.csv")
    assert (row["shard"], row["key"], row["epoch"]) == (f"{tmp_path}/1.tar", "bad", "0")
    assert row["reason"].startswith("it ")
    assert 0 <= int(row["position"]) < 10
    assert loader.rejected == 1
    assert "1.tar, sample bad: it " in caplog.text
    names = [key for batch in batches for key in batch.keys]
    assert len(names) == 10
    assert len(set(names)) == 9
    assert "bad" not in names
    assert same(batches, list(ClipLoader(replace(options, workers=2))))
    with pytest.raises(UserError, match=r"sample bad.*more than rejected_share=0\.05"):
        list(ClipLoader(replace(options, rejected_share=0.05)))


def quarantined(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_counted_named_and_replaced_deterministically(tmp_path, blob, kind):
    for number in range(4):
        write_shard(tmp_path / f"{number}.tar", [f"s{number}k{n}" for n in range(4)], blob)
    indexed(tmp_path)
    DAMAGES[kind](tmp_path / "2.tar")
    options = LoaderOptions(str(tmp_path), 4, SMALL, rejected_share=0.5)
    loader = ClipLoader(options, quarantine=tmp_path / "quarantine.csv")
    names = keys(loader)
    rows = quarantined(tmp_path / "quarantine.csv")
    damaged = {row["key"] for row in rows}
    assert loader.rejected == len({row["position"] for row in rows}) > 0
    assert {row["shard"] for row in rows} == {f"{tmp_path}/2.tar"}
    assert damaged <= {f"s2k{n}" for n in range(4)}
    assert not damaged & {key for batch in names for key in batch}
    assert [len(batch) for batch in names] == [4] * 4
    halves = [keys(ClipLoader(replace(options, workers=rank), rank, 2)) for rank in range(2)]
    assert names == [[*first, *second] for first, second in zip(*halves, strict=True)]
    too_few = loader.rejected / 16 - 0.05
    with pytest.raises(UserError, match=rf"2\.tar, sample s2k\d: it.*more than rejected_share={too_few:g}"):
        keys(ClipLoader(replace(options, rejected_share=too_few)))


def test_unloadable_shards_are_refused_on_construction(options, tmp_path):
    with pytest.raises(UserError, match="hold 13 samples, too few"):
        ClipLoader(replace(options, batch_size=14))
    with pytest.raises(UserError, match="batch_size=4 cannot be shared by 3"):
        ClipLoader(options, 0, 3)
    with pytest.raises(UserError, match="no shards match"):
        ClipLoader(replace(options, shards=str(tmp_path)))
    (tmp_path / "0.tar").write_text("no tar")
    with pytest.raises(UserError, match=r"0\.tar is in no index"):
        ClipLoader(replace(options, shards=str(tmp_path)))
    with pytest.raises(UserError, match="'opencv'"):
        replace(options, backend="opencv")
    for change in ({"batch_size": 0}, {"workers": -1}, {"seed": -1}, {"rejected_share": 1.0}, {"decode_seconds": 0.0}):
        with pytest.raises(UserError, match=next(iter(change))):
            replace(options, **change)
