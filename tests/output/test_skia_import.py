"""Drawing without OpenGL: a library that is made in memory, and skia on top of it."""

import ctypes
import platform
import subprocess
import sys

import pytest

from storydiffusion.output.skia_import import RETURN_ZERO, build_shared_library, load_from_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in RETURN_ZERO, reason="made for Linux on x86-64 and arm64"
)

DRAW = """
import hashlib
{before}
from storydiffusion.storyworld.renderer import render
from storydiffusion.storyworld.truth import sample_truth
print(hashlib.sha256(render(sample_truth(1, 2)).tobytes()).hexdigest())
maps = open("/proc/self/maps").read()
print("memfd:opengl" in maps, any(f"/{{name}}.so.1" in maps for name in ("libGL", "libEGL")))
"""
STAND_IN = """
import sys
class NoSkiaYet:  # the first import of skia fails as it does on a machine without the libraries
    def find_spec(self, name, path=None, target=None):
        if name == "skia":
            sys.meta_path.remove(self)
            raise ImportError("libEGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, NoSkiaYet())
"""


def test_functions_of_the_library_return_zero():
    names = [f"function_{i}" for i in range(200)]
    load_from_memory([build_shared_library("libstorydiffusion_test.so.1", names, platform.machine())])
    library = ctypes.CDLL("libstorydiffusion_test.so.1")  # found by its name, as skia finds libGL
    assert [library[name](1, 2) for name in names] == [0] * len(names)
    with pytest.raises(AttributeError):
        _ = library.function_200


def test_skia_draws_the_same_with_stubs():
    usual, without = draw(""), draw(STAND_IN)
    assert without == [usual[0], "True False"]


def draw(before: str) -> list[str]:
    command = [sys.executable, "-c", DRAW.format(before=before)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
