"""Exit quietly when the output pipe is closed, as by `storydiffusion words | head -1`."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OUTPUT_CLOSED = 141  # the shell's convention: 128 + SIGPIPE


@contextmanager
def ending_with_output() -> Iterator[None]:
    """Exit without an error message if stdout is a closed pipe; other broken pipes are errors."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not is_output_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        sys.exit(OUTPUT_CLOSED)


def is_output_closed() -> bool:
    """Return whether stdout is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors only
    return bool(poll.poll(0))
