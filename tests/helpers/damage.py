"""Seven ways in which a shard of `write_shard` is damaged."""

from collections.abc import Callable, Mapping
from pathlib import Path

BLOCK = 512


def _header(path: Path, key: int = 2) -> int:
    """Where the header of a sample's first member is: none of the first sample, none of the last."""
    data = path.read_bytes()
    starts = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    return starts[3 * key]


def _rewrite(path: Path, change: Callable[[bytes, int], bytes]) -> None:
    path.write_bytes(change(path.read_bytes(), _header(path)))


def _flip(data: bytes, header: int) -> bytes:
    at = header + BLOCK + 100
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGES: Mapping[str, Callable[[Path], None]] = {
    "cut at a member's boundary": lambda path: _rewrite(path, lambda data, header: data[:header]),
    "cut inside a header": lambda path: _rewrite(path, lambda data, header: data[: header + 200]),
    "cut inside data": lambda path: _rewrite(path, lambda data, header: data[: header + BLOCK + 150]),
    "garbage header": lambda path: _rewrite(
        path, lambda data, header: data[:header] + b"\xa5" * BLOCK + data[header + BLOCK :]
    ),
    "zeroed blocks": lambda path: _rewrite(
        path, lambda data, header: data[:header] + bytes(3 * BLOCK) + data[header + 3 * BLOCK :]
    ),
    "flipped bit": lambda path: _rewrite(path, _flip),
    "missing file": Path.unlink,
}
