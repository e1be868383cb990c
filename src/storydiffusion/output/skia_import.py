"""Import skia, also on machines without OpenGL: `from storydiffusion.output.skia_import import skia`.

The wheel links to libGL and libEGL, which servers and containers often lack and only an administrator can install.
StoryWorld and PDF pages are drawn on the CPU, without a call of them. If they are missing, two libraries of these names
are built in memory and loaded: the first defines every OpenGL function that skia mentions as one that returns 0. The
format is that of the System V ABI (gABI chapters 4 and 5); a loaded library satisfies every later request for its name.
"""

import ctypes
import importlib.util
import os
import platform
import re
import struct
from pathlib import Path

RETURN_ZERO = {  # processor → its ELF number, machine code
    "x86_64": (62, bytes.fromhex("31c0c3")),  # xor eax, eax; ret
    "aarch64": (183, bytes.fromhex("000080d2c0035fd6")),  # mov x0, #0; ret
}
PAGE = 0x10000  # the largest page of these processors: the writable part must not share one with code
HEADER, SEGMENT, SYMBOL = 64, 56, 24  # bytes
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
EXECUTABLE, WRITABLE, READABLE = 1, 2, 4
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 4, 5, 6, 10, 11, 14
GLOBAL_FUNCTION = 0x12


def build_shared_library(soname: str, functions: list[str], processor: str) -> bytes:
    """Build an ELF shared library named `soname` whose `functions` take anything and return 0."""
    machine, code = RETURN_ZERO[processor]
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [soname, *functions])
    count = len(functions) + 1  # symbol 0 is none
    code_at = HEADER + 4 * SEGMENT
    symbols_at = code_at + 8
    hash_at = symbols_at + SYMBOL * count
    names_at = hash_at + 4 * (3 + count)

    symbols, name_at = bytes(SYMBOL), 2 + len(soname)
    for name in functions:
        symbols += struct.pack("<IBBHQQ", name_at, GLOBAL_FUNCTION, 0, 1, code_at, len(code))
        name_at += len(name) + 1
    chain = [*range(2, count), 0] if functions else []
    hashes = struct.pack(f"<{3 + count}I", 1, count, min(1, len(functions)), 0, *chain)  # all in one bucket
    fixed = code.ljust(8, b"\0") + symbols + hashes + names

    dynamic = [
        (SONAME, 1), (HASH, hash_at), (SYMTAB, symbols_at), (STRTAB, names_at), (STRSZ, len(names)), (SYMENT, SYMBOL),
        (0, 0),
    ]  # fmt: skip
    size, end = 16 * len(dynamic), code_at + len(fixed)
    dynamic_at = -(-end // PAGE) * PAGE
    segments = [
        (LOAD, READABLE | EXECUTABLE, 0, end),
        (LOAD, READABLE | WRITABLE, dynamic_at, size),
        (DYNAMIC, READABLE | WRITABLE, dynamic_at, size),
        (STACK, READABLE | WRITABLE, 0, 0),
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, machine, 1, 0, HEADER, 0, 0, HEADER, SEGMENT, len(segments), 0, 0, 0
    )
    for kind, flags, at, length in segments:
        header += struct.pack("<IIQQQQQQ", kind, flags, at, at, at, length, length, PAGE)
    return (header + fixed).ljust(dynamic_at, b"\0") + b"".join(struct.pack("<QQ", *entry) for entry in dynamic)


def load_from_memory(libraries: list[bytes]) -> None:
    """Load shared libraries from memory. Linux only."""
    for library in libraries:
        file = os.memfd_create("opengl")  # stays open: its number is in the path, and one path loads one library
        os.write(file, library)
        ctypes.CDLL(f"/proc/self/fd/{file}")


def load_opengl_stubs() -> None:
    """Load stub libGL and libEGL before skia requests them."""
    spec = importlib.util.find_spec("skia")
    assert spec is not None
    assert spec.origin is not None
    mentioned = re.findall(rb"(?<=\0)e?gl[A-Z]\w*(?=\0)", Path(spec.origin).read_bytes())
    functions = sorted({name.decode() for name in mentioned})
    wanted = {"libGL.so.1": functions, "libEGL.so.1": []}
    load_from_memory([build_shared_library(*library, platform.machine()) for library in wanted.items()])


try:
    import skia
except ImportError as error:
    if not re.search(r"lib(GL|EGL)\.so", str(error)) or platform.machine() not in RETURN_ZERO:
        raise
    load_opengl_stubs()
    import skia

__all__ = ["skia"]
