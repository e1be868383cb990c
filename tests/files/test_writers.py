"""Files are written by files/atomic.py: a process killed at any moment leaves whole files."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "storydiffusion"
OWN_DRAFTS = {
    "files/atomic.py": "writes the drafts",
    "training/checkpoint_io.py": "drafts that are verified before they are renamed",
    "training/miniature/world_cache.py": "opens a draft of files/atomic.py",
    "data/shard_writer.py": "drafts of whole shards",
    "data/quarantine.py": "appends single lines",
    "output/folder_lock.py": "the lock is not a result",
}
MODULES = sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))


def find_writes(source: str) -> list[int]:
    """Return the lines that write a file in place: write_text, write_bytes, or open for writing."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}
        library = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_av = isinstance(library, ast.Name) and library.id == "av"  # into a buffer, or a draft
        writes = name == "open" and not is_av and any(set(mode) & set("wxa") and len(mode) < 4 for mode in modes)
        if writes or name in ("write_text", "write_bytes"):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", [module for module in MODULES if module not in OWN_DRAFTS])
def test_no_module_writes_a_file_in_place(module):
    assert find_writes((PACKAGE / module).read_text(encoding="utf-8")) == []


def test_the_exceptions_are_still_there():
    assert set(OWN_DRAFTS) <= set(MODULES)


def test_the_finder_of_writes_sees_them():
    source = 'a.write_text("x")\nopen(b, "w")\nc.open("xb")\nopen(d, mode="a")\nopen(e)\nopen(f, "rb")\nav.open(g, "w")'
    assert find_writes(source) == [1, 2, 3, 4]
