"""How the processes of one training end: together, and with one sentence."""

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
    """Ends all processes with exit code 1, for a reason that all of them have agreed on.

    Raises:
        UserError: on the first process. The others leave it the time to say so: launchers kill all that are left as
            soon as one has ended.
    """
    if trainer.is_global_zero:
        raise UserError(sentence)
    time.sleep(PATIENCE)
    sys.exit(1)


def end_with_launcher() -> None:
    """From now on this process is killed within `INTERVAL` when the one that has started it is gone.

    Lightning's launcher, the first process, watches those that it starts, but not the other way round: without this
    they would wait for its part of a sum until `trainer.timeout_minutes` are over.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="launcher-watch", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    os.kill(os.getpid(), signal.SIGKILL)  # a process that hangs in a collective operation hears nothing less
