"""End all processes of a training together, with one error message."""

import os
import signal
import sys
import threading
import time
from typing import NoReturn

import lightning as L

from storydiffusion.errors import UserError

PATIENCE = 10.0  # seconds
INTERVAL = 1.0  # seconds


def stop_together(trainer: L.Trainer, sentence: str) -> NoReturn:
    """End all processes with exit code 1; all of them must call this.

    Raises:
        UserError: on the first process. The others wait `PATIENCE` seconds so that it can report the error, because
            launchers kill the remaining processes as soon as one has exited.
    """
    if trainer.is_global_zero:
        raise UserError(sentence)
    time.sleep(PATIENCE)
    sys.exit(1)


def end_with_launcher() -> None:
    """Kill this process within `INTERVAL` seconds after its launcher has exited.

    Lightning's launcher, the first process, watches the processes it starts but not vice versa: without this they
    would wait in a collective operation until `trainer.timeout_minutes` are over.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="launcher-watch", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    os.kill(os.getpid(), signal.SIGKILL)  # nothing less ends a process inside a collective operation
