"""A command whose output pipe is closed exits at once without an error message, whichever code printed."""

import os
import subprocess
import sys

import pytest

from storydiffusion.files.closed_output import OUTPUT_CLOSED


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["words"], ["infer", "--help"], ["train", "--cfg", "job"]])
def test_a_closed_output_ends_the_command_in_silence(arguments, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "storydiffusion", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (OUTPUT_CLOSED, "")


def test_another_broken_pipe_is_an_error():
    program = (
        "from storydiffusion.files.closed_output import ending_with_output\n"
        "with ending_with_output():\n"
        "    raise BrokenPipeError('of a socket')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "of a socket" in done.stderr
