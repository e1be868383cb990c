"""Checkpoints: the newest one that counts always loads, whatever happened to the newer ones or to their writer."""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.training.checkpoint_io import (
    VerifiedCheckpointIO,
    certify_folder,
    check_folder,
    checkpoint_path,
    load_plain,
    newest_checkpoint,
    remove_older,
)

KILLS = 100


def content(step: int, size: int = 1000) -> dict[str, object]:
    return {"global_step": step, "state_dict": {"weight": torch.full((size,), float(step))}}


def save(folder: Path, step: int, size: int = 1000) -> Path:
    path = checkpoint_path(folder, step)
    VerifiedCheckpointIO().save_checkpoint(content(step, size), path)
    return path


def found_step(folder: Path) -> int | None:
    """Return the step of the newest valid checkpoint after checking its content."""
    found = newest_checkpoint(folder)
    if found is None:
        return None
    loaded = VerifiedCheckpointIO().load_checkpoint(found.path)
    assert loaded["global_step"] == found.step
    assert (loaded["state_dict"]["weight"] == found.step).all()
    return found.step


def write_without_end(folder: Path, step: int, written: Path) -> None:
    """Save as a training does, and record every step whose checkpoint is complete."""
    torch.set_num_threads(1)  # the threads of the parent were not copied
    with written.open("a") as log:
        while True:
            step += 1
            save(folder, step, size=250_000)
            remove_older(folder, step)
            log.write(f"{step}\n")
            log.flush()


def test_writer_killed_at_any_moment_leaves_a_loadable_newest_checkpoint(tmp_path):
    folder, written = tmp_path / "checkpoints", tmp_path / "written"
    written.touch()
    moments, step, halves = random.Random(0), 0, 0
    context = multiprocessing.get_context("fork")  # torch is loaded already
    kills, deadline = 0, time.monotonic() + 100
    while kills < KILLS or step <= 1 or not halves:  # a busy machine needs longer to write any
        assert time.monotonic() < deadline, f"{kills} kills, {halves} in the middle of a file, step {step}"
        writer = context.Process(target=write_without_end, args=(folder, step, written))
        writer.start()
        time.sleep(moments.uniform(0.0, 0.1 + 0.001 * kills))
        writer.kill()
        writer.join()
        kills += 1
        done = [int(line) for line in written.read_text().splitlines()]
        step = found_step(folder) or 0
        assert step >= max(done, default=0)
        halves += any(file.name.startswith(".") for file in folder.glob("*")) if folder.exists() else 0
        if step > 1:
            assert len(list(folder.glob("step-*.ckpt"))) >= 2


def test_two_checkpoints_are_kept(tmp_path):
    (tmp_path / "mine.ckpt").touch()
    for step in (3, 5, 8, 13):
        save(tmp_path, step)
        remove_older(tmp_path, step)
    (tmp_path / "mine.ckpt").unlink()  # is there still
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"step-{step:08d}.{suffix}" for step in (8, 13) for suffix in ("ckpt", "json")
    ]
    manifest = json.loads((tmp_path / "step-00000013.json").read_text())
    assert manifest["step"] == 13
    assert manifest["files"]["step-00000013.ckpt"]["size"] == (tmp_path / "step-00000013.ckpt").stat().st_size


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def disown(file: Path) -> None:
    file.with_suffix(".json").unlink()


def exchange(file: Path) -> None:
    """Give the checkpoint the manifest of the previous one."""
    shutil.copy(file.with_name("step-00000001.json"), file.with_suffix(".json"))


def scribble(file: Path) -> None:
    file.with_suffix(".json").write_text('{"step": 2, "files": [')


DAMAGES = [
    (flip, "changed bytes"),
    (cut, "bytes, not"),
    (disown, "no manifest"),
    (exchange, "manifest of step 1"),
    (scribble, "unreadable manifest"),
    (Path.unlink, "is missing"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=lambda value: getattr(value, "__name__", None))
def test_damaged_checkpoint_is_skipped_and_named(tmp_path, damage, reason):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == found_step(tmp_path) == 1
    assert len(found.passed_over) == 1
    assert found.passed_over[0].startswith("step-00000002.ckpt ")
    assert reason in found.passed_over[0]


def test_run_does_not_restart_from_scratch_if_no_checkpoint_is_valid(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for step in (1, 2):
        flip(save(tmp_path, step))
    with pytest.raises(UserError, match=r"no valid checkpoint \(step-00000002.*; step-00000001"):
        newest_checkpoint(tmp_path)
    (tmp_path / "old").mkdir()
    torch.save(content(7), tmp_path / "old" / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt has no manifest"):
        newest_checkpoint(tmp_path / "old")


def test_checkpoint_in_place_with_a_draft_manifest_is_valid(tmp_path):
    """A kill between the two renames leaves this, for the first checkpoint and for a rewritten one."""
    save(tmp_path, 1)
    (tmp_path / "step-00000001.json").rename(tmp_path / ".step-00000001.json.tmp")
    assert found_step(tmp_path) == 1
    save(tmp_path, 2)
    before = (tmp_path / "step-00000002.json").read_bytes()
    VerifiedCheckpointIO().save_checkpoint({**content(2), "more": 1}, checkpoint_path(tmp_path, 2))
    (tmp_path / "step-00000002.json").rename(tmp_path / ".step-00000002.json.tmp")
    (tmp_path / "step-00000002.json").write_bytes(before)
    assert found_step(tmp_path) == 2
    remove_older(tmp_path, 2)
    assert found_step(tmp_path) == 2
    for step in (3, 4):
        save(tmp_path, step)
        remove_older(tmp_path, step)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_unloadable_content_is_not_written(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="could run code"):
        VerifiedCheckpointIO().save_checkpoint(
            {**content(2), "module": torch.nn.Linear(1, 1)}, tmp_path / "step-00000002.ckpt"
        )
    assert found_step(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_changed_bytes_are_detected_when_read_back(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = os.fsync

    def fail(descriptor: int) -> None:
        """A disk that loses a bit."""
        real(descriptor)
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if file.name.endswith(".ckpt.tmp"):
            flip(file)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="other bytes than were written"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert found_step(tmp_path) == 1


def test_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    """Order that survives a power cut: a file's bytes, then its name, then the manifest's name."""
    done: list[tuple[str, str]] = []
    sync, move = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        done.append(("on the disk", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def replace(source: Path, target: Path) -> None:
        move(source, target)
        done.append(("moved", target.name))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(tmp_path, 1)
    assert done == [
        ("on the disk", ".step-00000001.ckpt.tmp"), ("on the disk", ".step-00000001.json.tmp"),
        ("moved", "step-00000001.ckpt"), ("on the disk", tmp_path.name),
        ("moved", "step-00000001.json"), ("on the disk", tmp_path.name),
    ]  # fmt: skip


@pytest.fixture
def limited() -> Iterator[None]:
    """Limit files to 100 kB, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_refused(folder: Path, reason: str) -> None:
    """Check that step 2 cannot be written and only step 1 remains."""
    with pytest.raises(UserError, match=reason) as refusal:
        save(folder, 2, size=500_000)
    assert str(folder / "step-00000002.ckpt") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert found_step(folder) == 1
    assert sorted(file.name for file in folder.iterdir()) == ["step-00000001.ckpt", "step-00000001.json"]


def test_file_size_limit_is_one_sentence_and_keeps_the_previous_checkpoint(tmp_path, limited):
    save(tmp_path, 1)
    check_refused(tmp_path, "file too large")


@pytest.mark.parametrize(
    ("change", "reason"), [("size=1m", "no space left on device"), ("ro", "read-only file system")]
)
def test_full_or_read_only_disk_is_one_sentence_and_keeps_the_previous_checkpoint(tmp_path, change, reason):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        save(tmp_path, 1)
        subprocess.run(["mount", "-o", f"remount,{change}", tmp_path], check=True)
        check_refused(tmp_path, reason)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_file_in_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*checkpoints/step-00000001\.ckpt: file exists"):
        save(tmp_path / "checkpoints", 1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def folder_of_deepspeeds(folder: Path, step: int) -> Path:
    """Write DeepSpeed's layout by hand: Lightning runs DeepSpeed on CUDA only."""
    path = checkpoint_path(folder, step)
    (path / "checkpoint").mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    (path / "zero_to_fp32.py").touch()
    for rank in range(2):
        torch.save(content(step), path / "checkpoint" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return path


@pytest.mark.parametrize("damage", ["none", "flip", "cut", "missing", "added"])
def test_deepspeed_folder_is_valid_only_with_all_its_files(tmp_path, damage):
    for step in (1, 2):
        certify_folder(folder_of_deepspeeds(tmp_path, step))
    victim = checkpoint_path(tmp_path, 2) / "checkpoint" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    change = {
        "none": lambda: None,
        "flip": lambda: flip(victim),
        "cut": lambda: cut(victim),
        "missing": victim.unlink,
        "added": lambda: (victim.parent / "more.pt").touch(),
    }
    change[damage]()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == (2 if damage == "none" else 1)
    if damage != "none":
        assert ("more.pt" if damage == "added" else victim.name) in found.passed_over[0]
    remove_older(tmp_path, 3)
    assert not checkpoint_path(tmp_path, 1).exists()


def test_deepspeed_folder_without_a_manifest_is_invalid(tmp_path):
    save(tmp_path, 1)
    checkpoint_path(tmp_path, 2).mkdir()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.passed_over) == (1, ("step-00000002.ckpt has no manifest",))


def test_malicious_checkpoint_is_refused_by_name_without_executing_it(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    save(tmp_path, 1)
    planted = checkpoint_path(tmp_path, 2)
    torch.save({**content(2), "more": Harm()}, planted)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    certify(planted)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.path == planted
    for mmap in (False, True):
        with pytest.raises(UserError, match=r"step-00000002\.ckpt as tensors and plain data"):
            load_plain(found.path, mmap)
    with pytest.raises(UserError, match="could run code"):
        VerifiedCheckpointIO().load_checkpoint(found.path, weights_only=False)
    assert not (tmp_path / "harm").exists()


def test_malicious_deepspeed_folder_is_refused_by_name(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    path = folder_of_deepspeeds(tmp_path, 1)
    check_folder(path)
    for name, legacy in (
        ("mp_rank_00_model_states.pt", False),
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", True),
    ):
        planted = path / "checkpoint" / name
        torch.save({"more": Harm()}, planted, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            check_folder(path)
        planted.unlink()
    check_folder(path)
    (path / "latest").write_text("../../elsewhere")
    with pytest.raises(UserError, match=r"step-00000001\.ckpt/latest names '../../elsewhere'"):
        check_folder(path)
    (path / "latest").unlink()
    with pytest.raises(UserError, match=r"step-00000001\.ckpt is not a DeepSpeed checkpoint"):
        check_folder(path)
    assert not (tmp_path / "harm").exists()


def certify(file: Path) -> None:
    """Write a matching manifest, as an attacker can."""
    data = file.read_bytes()
    stored = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    file.with_suffix(".json").write_text(json.dumps({"step": 2, "files": {file.name: stored}}))
