"""Text files of limited size."""

from pathlib import Path


def read_text(file: str | Path, largest: int) -> str:
    """Read a UTF-8 file of at most `largest` bytes. Raises OSError, or ValueError for other content."""
    with open(file, "rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    return data.decode()
