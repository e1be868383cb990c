"""Another process that owns a folder."""

import subprocess
import sys
from pathlib import Path

OWN = """
import sys, time
from storydiffusion.output.folder_lock import own_folder
with own_folder(sys.argv[1]):
    print("owned", flush=True)
    sys.stdin.readline()
"""


class Owner:
    """Another process that owns a folder; `line` is the first that it prints."""

    def __init__(self, folder: Path, code: str = OWN) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()

    def release(self) -> None:
        self.process.communicate("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()  # not for the end of its output, which its children share
