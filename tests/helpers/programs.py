"""Programs for PATH that stand in for those of a cluster."""

from pathlib import Path


def write_program(file: Path, text: str) -> None:
    """Write an executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
