"""Run a command in a process that is killed at a random moment."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SECONDS = 600  # after which a process that hangs is a failure
MOST_KILLS = 40


def run_to_end(function: Callable[..., None], log: Path, *arguments: Any) -> float:
    """Call `function(*arguments)` in a forked process; return the seconds it took."""
    begun = time.monotonic()
    code = _run(function, log, arguments, SECONDS)
    assert code == 0, log.read_text()
    return time.monotonic() - begun


def kill_until_finished(
    function: Callable[..., None], log: Path, seconds: float, chance: random.Random, *arguments: Any
) -> int:
    """Repeat a command, killed within `seconds` after each start, until it ends by itself; return how often it was."""
    for kills in range(MOST_KILLS):
        patience = chance.uniform(0, 0.8 * seconds) * (1 + kills / 4)  # grows, as a command needs time to gain anything
        code = _run(function, log, arguments, patience)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, log.read_text()
    raise AssertionError(f"not finished after {MOST_KILLS} kills: {log.read_text()}")


def _run(function: Callable[..., None], log: Path, arguments: tuple[Any, ...], seconds: float) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_begin, args=(function, log, arguments))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _begin(function: Callable[..., None], log: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the threads of the parent were not copied
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    function(*arguments)
    os._exit(0)
