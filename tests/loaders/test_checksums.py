import hashlib
import os

from storydiffusion.loaders import checksums
from storydiffusion.loaders.checksums import cache_file, compute_checksums


def write(file, data: bytes) -> str:
    file.write_bytes(data)
    os.utime(file, (1, 1))  # changed long ago
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, calls = tmp_path / "a.safetensors", []
    original = checksums.compute_sha256
    monkeypatch.setattr(checksums, "compute_sha256", lambda path: calls.append(path) or original(path))
    first = write(file, b"one")
    assert [compute_checksums({"a": file}) for _ in range(2)] == [{"a": first}] * 2
    assert len(calls) == 1
    second = write(file, b"three")
    assert compute_checksums({"a": file}) == {"a": second}
    file.unlink()
    write(tmp_path / "b", b"two")
    compute_checksums({"b": tmp_path / "b"})
    assert str(file) not in cache_file().read_text()


def test_without_a_usable_cache_digests_are_the_same(tmp_path, monkeypatch):
    file = tmp_path / "a"
    digest = write(file, b"one")
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compute_checksums({"a": file}) == {"a": digest}


def test_a_blob_of_the_hub_is_named_by_its_digest(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("0" * 64)).write_bytes(b"anything")
    (tmp_path / "model.safetensors").symlink_to(blobs / ("0" * 64))
    assert compute_checksums({"m": tmp_path / "model.safetensors"}) == {"m": "0" * 64}
