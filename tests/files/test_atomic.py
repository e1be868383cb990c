"""Atomic writes and checksums."""

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import draft, draft_folder, draft_path, remove_drafts, write_atomically, write_image
from storydiffusion.files.checksums import compute_folder_sha256, compute_sha256


def test_writes_and_replaces(tmp_path: Path):
    file = tmp_path / "new" / "folder" / "a.txt"
    for data in (b"one", b"two"):
        write_atomically(file, data)
        assert file.read_bytes() == data
    assert os.listdir(file.parent) == ["a.txt"]


def test_new_files_have_ordinary_permissions(tmp_path: Path):
    write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_full_disk_keeps_the_old_file(tmp_path: Path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    file = tmp_path / "a.bin"
    write_atomically(file, b"old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.bin: file too large") as refusal:
            write_atomically(file, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert "\n" not in str(refusal.value)


def test_target_that_is_a_folder_is_refused_and_kept(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="directory"):
        write_atomically(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_parent_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "a" / "b", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        write_atomically(tmp_path / "a", b"x")


def test_an_image_is_written_bit_for_bit(tmp_path: Path):
    image = Image.effect_noise((31, 17), 80).convert("RGB")
    write_image(tmp_path / "p" / "a.png", image)
    with Image.open(tmp_path / "p" / "a.png") as read:
        assert read.format == "PNG"
        assert read.tobytes() == image.tobytes()


def test_checksums(tmp_path: Path):
    for name, data in (("b.safetensors", b"1"), ("a/c.safetensors", b"2"), ("config.json", b"3")):
        write_atomically(tmp_path / name, data)
    digests = compute_folder_sha256(tmp_path)
    assert list(digests) == ["a/c.safetensors", "b.safetensors"]
    assert (
        digests["a/c.safetensors"] == hashlib.sha256(b"2").hexdigest() == compute_sha256(tmp_path / "a/c.safetensors")
    )


def test_a_draft_that_fails_changes_nothing(tmp_path: Path):
    file = tmp_path / "a"
    file.write_bytes(b"old")

    def fail() -> None:
        with draft(file) as temporary:
            temporary.write_bytes(b"new")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_folder_is_replaced_file_by_file_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "export"
    for name in ("kept", "part/weights"):
        write_atomically(folder / name, b"old")

    def fail() -> None:
        with draft_folder(folder) as temporary:
            write_atomically(temporary / "part" / "weights", b"half")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (folder / "part" / "weights").read_bytes() == b"old"
    with draft_folder(folder) as temporary:
        for name in ("part/weights", "new/deep/file"):
            write_atomically(temporary / name, b"new")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"kept": b"old", "part/weights": b"new", "new/deep/file": b"new"}
    assert os.listdir(tmp_path) == ["export"]


def test_drafts_are_removed_and_nothing_else(tmp_path: Path):
    names = (".hidden", "a.tmp", ".a.tmp", ".step-00000040.ckpt.tmp", ".step-00000040.json.tmp", ".1.tmp", "1.2.tmp")
    for name in (*names, draft_path(tmp_path / "b.c").name, "below/.b.7.tmp"):
        write_atomically(tmp_path / name, b"")
    write_atomically(draft_path(tmp_path / "folder") / "file", b"")
    remove_drafts(tmp_path, tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "below"}
    assert os.listdir(tmp_path / "below") == [".b.7.tmp"]
